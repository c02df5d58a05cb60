"""shared-outbox, as a user would write it."""

import asyncio
import json
from time import perf_counter
from typing import Any

from sqlalchemy import MetaData, text
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession

from outbox_sqlalchemy import OutboxBroker, make_outbox_table
from tests.benchmarks.workloads import Countdown, Result, body, empty_tables, percentile, timed, vacuum

metadata = MetaData()
outbox = make_outbox_table(metadata, "bench_ours")


async def prepare(dsn: str) -> AsyncEngine:
    return await empty_tables(dsn, metadata)


async def publish_one(dsn: str, messages: int) -> Result:
    """What one message adds to a transaction with one domain row, beside the same INSERT written by hand."""
    engine = await prepare(dsn)
    broker = OutboxBroker(engine, outbox_table=outbox)
    hand_written = text(
        "INSERT INTO bench_ours (message_id, queue, payload, headers, next_attempt_at) "
        "VALUES (gen_random_uuid(), :queue, :payload, CAST(:headers AS jsonb), statement_timestamp()) RETURNING id"
    )

    async def with_ours(session: AsyncSession, number: int) -> None:
        await broker.publish(body(number), "orders", session=session)

    async def by_hand(session: AsyncSession, number: int) -> None:
        payload = json.dumps(body(number)).encode()
        await session.execute(hand_written, {"queue": "orders", "payload": payload, "headers": '{"a": "b"}'})

    async def nothing(session: AsyncSession, number: int) -> None:
        pass

    async def transaction(add: Any, number: int) -> None:
        async with AsyncSession(engine) as session, session.begin():
            await session.execute(text("INSERT INTO bench_orders (name) VALUES (:name)"), {"name": "order"})
            await add(session, number)

    costs = {"alone": 0.0, "ours": 0.0, "hand": 0.0}
    rounds = 5
    for _ in range(rounds):  # interleaved, since the disk's mood is larger than the difference
        costs["alone"] += await timed(messages // rounds, lambda number: transaction(nothing, number))
        costs["ours"] += await timed(messages // rounds, lambda number: transaction(with_ours, number))
        costs["hand"] += await timed(messages // rounds, lambda number: transaction(by_hand, number))
    await engine.dispose()
    alone, ours, hand = (cost / rounds for cost in costs.values())
    return Result({"adds µs": ours - alone, "by hand adds µs": hand - alone})


async def publish_batch(dsn: str, messages: int) -> Result:
    engine = await prepare(dsn)
    broker = OutboxBroker(engine, outbox_table=outbox)
    bodies = [body(number) for number in range(1_000)]
    rounds = max(1, messages // 1_000)
    started = perf_counter()
    for _ in range(rounds):
        async with AsyncSession(engine) as session, session.begin():
            await broker.publish_batch(*bodies, queue="orders", session=session)
    wall = perf_counter() - started
    await engine.dispose()
    return Result({"msg/s": rounds * 1_000 / wall})


async def drain(dsn: str, messages: int, *, best: bool = False) -> Result:
    engine = await prepare(dsn)
    options: dict[str, Any] = {"logger": None} if best else {}
    broker = OutboxBroker(engine, outbox_table=outbox, **options)
    countdown = Countdown(messages)

    @broker.subscriber("orders")
    async def handle(body: dict) -> None:  # type: ignore[type-arg]  # as users write it
        countdown.one()

    for start in range(0, messages, 1_000):
        await broker.publish_batch(*[body(n) for n in range(start, min(messages, start + 1_000))], queue="orders")
    await vacuum(engine, "bench_ours")
    async with broker:
        countdown.start()
        await broker.start()
        await countdown.done.wait()
    await engine.dispose()
    return countdown.result()


async def idle_latency(dsn: str, messages: int) -> Result:
    """From just before COMMIT to the handler's first line, one message at a time on an idle worker."""
    engine = await prepare(dsn)
    broker = OutboxBroker(engine, outbox_table=outbox)
    latencies: list[float] = []
    handled = asyncio.Event()
    committing = 0.0

    @broker.subscriber("orders")
    async def handle(body: dict) -> None:  # type: ignore[type-arg]  # as users write it
        latencies.append((perf_counter() - committing) * 1e3)
        handled.set()

    async with broker:
        await broker.start()
        for number in range(messages):
            await asyncio.sleep(0.06)  # long enough for the worker to fall asleep again
            handled.clear()
            async with AsyncSession(engine) as session, session.begin():
                await broker.publish(body(number), "orders", session=session)
                committing = perf_counter()
            await handled.wait()
    await engine.dispose()
    return Result({f"p{share:.0%}"[:-1] + " ms": percentile(latencies, share) for share in (0.5, 0.95, 0.99)})


async def concurrent_publishers(dsn: str, messages: int, *, clients: int, variant: str) -> Result:
    """Transactions a second of *clients* publishers whose commits take about 2.5 ms, with a worker running.

    `none`: a store that never notifies; `ours`: as users get it; `naive`: pg_notify in every transaction.
    """
    engine = await prepare(dsn)
    broker = OutboxBroker(engine, outbox_table=outbox, notify=variant == "ours")
    worker = OutboxBroker(engine, outbox_table=outbox, logger=None)
    total = messages * 1

    @worker.subscriber("orders")
    async def handle(body: dict) -> None:  # type: ignore[type-arg]  # as users write it
        pass

    async def client(share: int) -> None:
        async with engine.connect() as connection:
            await connection.execute(text("SET commit_delay = 2000"))
            await connection.execute(text("SET commit_siblings = 0"))
            await connection.commit()
            for number in range(share):
                async with connection.begin():
                    await connection.execute(text("INSERT INTO bench_orders (name) VALUES ('order')"))
                    await broker.publish(body(number), "orders", session=connection)
                    if variant == "naive":
                        await connection.execute(text("SELECT pg_notify('bench', 'orders')"))

    async with worker:
        await worker.start()
        started = perf_counter()
        await asyncio.gather(*(client(total // clients) for _ in range(clients)))
        wall = perf_counter() - started
    await engine.dispose()
    return Result({"tx/s": total // clients * clients / wall})
