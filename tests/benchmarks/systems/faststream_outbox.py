"""faststream-outbox 0.19.0, the closest peer, with its defaults and with the best settings found in a sweep."""

from time import perf_counter
from typing import Any

from faststream_outbox import OutboxBroker, make_outbox_table
from sqlalchemy import MetaData, text
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession

from tests.benchmarks.workloads import Countdown, Result, adding, body, empty_tables, vacuum

metadata = MetaData()
outbox = make_outbox_table(metadata, "bench_peer")


async def prepare(dsn: str) -> AsyncEngine:
    return await empty_tables(dsn, metadata)


async def publish_one(dsn: str, messages: int) -> Result:
    engine = await prepare(dsn)
    broker = OutboxBroker(engine, outbox_table=outbox)

    async def transaction(number: int, publish: bool) -> None:
        async with AsyncSession(engine) as session, session.begin():
            await session.execute(text("INSERT INTO bench_orders (name) VALUES (:name)"), {"name": "order"})
            if publish:
                await broker.publish(body(number), queue="orders", session=session)

    result = await adding(messages, transaction)
    await engine.dispose()
    return result


async def publish_batch(dsn: str, messages: int) -> Result:
    engine = await prepare(dsn)
    broker = OutboxBroker(engine, outbox_table=outbox)
    rounds = max(1, messages // 1_000)
    started = perf_counter()
    for _ in range(rounds):
        await _fill(engine, broker, 1_000)
    wall = perf_counter() - started
    await engine.dispose()
    return Result({"msg/s": rounds * 1_000 / wall})


async def drain(dsn: str, messages: int, *, best: bool = False) -> Result:
    engine = await prepare(dsn)
    options: dict[str, Any] = {"logger": None} if best else {}
    tuned = {"max_workers": 2, "fetch_batch_size": 1000, "terminal_flush_batch_size": 500} if best else {}
    broker = OutboxBroker(engine, outbox_table=outbox, **options)
    countdown = Countdown(messages)

    @broker.subscriber("orders", **tuned)
    async def handle(body: dict) -> None:  # type: ignore[type-arg]  # as users write it
        countdown.one()

    for start in range(0, messages, 1_000):
        await _fill(engine, broker, min(1_000, messages - start))
    await vacuum(engine, "bench_peer")
    countdown.start()
    await broker.start()
    await countdown.done.wait()
    await broker.stop()
    await engine.dispose()
    return countdown.result()


async def _fill(engine: AsyncEngine, broker: OutboxBroker, count: int) -> None:
    async with AsyncSession(engine) as session, session.begin():
        await broker.publish_batch(*[body(number) for number in range(count)], queue="orders", session=session)
