"""shared-outbox, as a user would write it."""

import asyncio
import gc
import json
import subprocess
import sys
from datetime import UTC, datetime
from time import perf_counter, time
from typing import Any

import psutil
from sqlalchemy import MetaData, text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, AsyncSession

from outbox_sqlalchemy import OutboxBroker, make_outbox_table
from tests.benchmarks.workloads import Countdown, Result, body, empty_tables, interleaved, percentiles, vacuum

MEGABYTE = 1 << 20

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

    alone, ours, hand = await interleaved(
        messages,
        lambda number: transaction(nothing, number),
        lambda number: transaction(with_ours, number),
        lambda number: transaction(by_hand, number),
    )
    await engine.dispose()
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


async def drain(dsn: str, messages: int, *, best: bool = False, batch: int = 0) -> Result:
    """*batch*: the handler takes lists of so many bodies; 0: one body."""
    engine = await prepare(dsn)
    options: dict[str, Any] = {}
    if best:
        options["logger"] = None
        gc.freeze()  # as the worker commands do
    broker = OutboxBroker(engine, outbox_table=outbox, **options)
    countdown = Countdown(messages)
    if batch:

        @broker.subscriber("orders", batch=True, max_records=batch)
        async def handle_all(bodies: list[dict]) -> None:  # type: ignore[type-arg]  # as users write it
            countdown.more(len(bodies))
    else:

        @broker.subscriber("orders")
        async def handle(body: dict) -> None:  # type: ignore[type-arg]  # as users write it
            countdown.one()

    await fill(broker, messages)
    await vacuum(engine, "bench_ours")
    async with broker:
        countdown.start()
        await broker.start()
        await countdown.done.wait()
    await engine.dispose()
    return countdown.result()


async def fill(broker: OutboxBroker, messages: int) -> None:
    for start in range(0, messages, 1_000):
        await broker.publish_batch(*[body(n) for n in range(start, min(messages, start + 1_000))], queue="orders")


async def drain_processes(dsn: str, messages: int, *, processes: int, computing: int = 0) -> Result:
    """From the word "go" to workers that are ready, to the last run of a handler in any of them.

    *computing*: microseconds for which a handler keeps its processor busy.
    """
    engine = await prepare(dsn)
    await fill(OutboxBroker(engine, outbox_table=outbox), messages)
    await vacuum(engine, "bench_ours")
    workers = await asyncio.gather(*(_worker(dsn, computing) for _ in range(processes)))
    started = perf_counter()
    for worker in workers:
        _tell(worker, "go")
    async with engine.connect() as connection:
        await connection.execution_options(isolation_level="AUTOCOMMIT")
        while await connection.scalar(text("SELECT EXISTS (SELECT FROM bench_ours)")):  # noqa: ASYNC110  # it tells nobody
            await asyncio.sleep(0.02)
    for worker in workers:
        _tell(worker, "stop")
    last = max([float(await _line_of(worker)) for worker in workers])
    await asyncio.gather(*(worker.wait() for worker in workers))
    await engine.dispose()
    return Result({"msg/s": messages / (last - started)})


def _tell(worker: asyncio.subprocess.Process, word: str) -> None:
    assert worker.stdin is not None
    worker.stdin.write(f"{word}\n".encode())


async def _line_of(worker: asyncio.subprocess.Process) -> str:
    assert worker.stdout is not None
    return (await worker.stdout.readline()).decode()


async def backlog(dsn: str, messages: int, *, rows: int) -> Result:
    """The rate of the first *messages* of *rows*; where there are fewer, of that many in as many fills as it takes."""
    engine = await prepare(dsn)
    rows = min(rows, messages * 50)  # a smoke run does not fill a table for minutes
    wall, handled = 0.0, 0
    while handled < messages:
        await _insert(engine, rows)
        await vacuum(engine, "bench_ours")
        count = min(rows, messages)
        wall += (await _handle(engine, count)).wall
        handled += count
        await _empty(engine)
    await engine.dispose()
    return Result({"msg/s": handled / wall})


async def pinned(dsn: str, messages: int, *, seconds: int) -> Result:
    """The rate of *messages* in the last of so many seconds in which a transaction held back vacuum, under load."""
    engine = await prepare(dsn)
    seconds = min(seconds, messages // 100)  # a smoke run does not wait for a minute
    async with engine.connect() as old:
        await old.execution_options(isolation_level="REPEATABLE READ")
        await old.execute(text("SELECT count(*) FROM bench_ours"))
        if not seconds:
            await old.rollback()
        ended = perf_counter() + seconds
        while perf_counter() < ended:
            await _insert(engine, messages)
            await _handle(engine, messages)
        await _insert(engine, messages)
        wall = (await _handle(engine, messages)).wall
    await engine.dispose()
    return Result({"msg/s": messages / wall})


async def _insert(engine: AsyncEngine, rows: int) -> None:
    """Rows as `publish` writes them, without its time."""
    async with engine.begin() as connection:
        await connection.execute(
            text(
                "INSERT INTO bench_ours (message_id, queue, payload, headers, next_attempt_at) "
                "SELECT gen_random_uuid(), 'orders', convert_to(:payload, 'UTF8'), "
                """'{"content-type": "application/json"}', statement_timestamp() FROM generate_series(1, :rows)"""
            ),
            {"payload": json.dumps(body(1)), "rows": rows},
        )


async def _empty(engine: AsyncEngine) -> None:
    async with engine.begin() as connection:
        await connection.execute(text("TRUNCATE bench_ours"))


async def _handle(engine: AsyncEngine, messages: int) -> Countdown:
    """A worker with default options handles so many messages."""
    broker = OutboxBroker(engine, outbox_table=outbox)
    countdown = Countdown(messages)

    @broker.subscriber("orders")
    async def handle(body: dict) -> None:  # type: ignore[type-arg]  # as users write it
        countdown.one()

    async with broker:
        countdown.start()
        await broker.start()
        await countdown.done.wait()
    return countdown


async def together(dsn: str, messages: int, *, worker: int) -> Result:
    """Transactions a second of one publisher for *messages* seconds, with a worker in another process or without.

    With the worker also the table's size, when the seconds begin and the largest: they begin when autovacuum has been there
    once, which looks for what it has to do each minute, for until then any table grows that loses rows. Where the server
    has it switched off, the table is vacuumed each minute from here.
    """
    engine, seconds = await prepare(dsn), messages
    broker = OutboxBroker(engine, outbox_table=outbox)
    helper = await _worker(dsn) if worker else None
    count = 0

    async def publish() -> None:
        nonlocal count
        while True:
            async with AsyncSession(engine) as session, session.begin():
                await session.execute(text("INSERT INTO bench_orders (name) VALUES ('order')"))
                await broker.publish(body(count), "orders", session=session)
            count += 1

    figures: dict[str, float] = {}
    publisher, vacuuming = asyncio.create_task(publish()), asyncio.create_task(_vacuum_if_nobody_does(engine))
    if helper is None:
        await asyncio.sleep(seconds)
        figures["tx/s"] = count / seconds
    else:
        _tell(helper, "go")
        async with engine.connect() as connection:
            await connection.execution_options(isolation_level="AUTOCOMMIT")
            await _vacuumed(connection, within=2 * seconds)
            looks, before, started = [await _look_at_table(connection)], count, perf_counter()
            while perf_counter() < started + seconds:
                await asyncio.sleep(0.5)
                looks.append(await _look_at_table(connection))
            figures["tx/s"] = (count - before) / (perf_counter() - started)
        _tell(helper, "stop")
        await helper.wait()
        figures |= {
            "MB at first": looks[0][0] / MEGABYTE,
            "largest MB": max(size for size, _ in looks) / MEGABYTE,
            "most dead tuples": max(dead for _, dead in looks),
        }
    for task in (publisher, vacuuming):
        task.cancel()
    await asyncio.gather(publisher, vacuuming, return_exceptions=True)
    await engine.dispose()
    return Result(figures)


async def _vacuum_if_nobody_does(engine: AsyncEngine) -> None:
    async with engine.connect() as connection:
        switched_on = await connection.scalar(text("SHOW autovacuum")) == "on"
    while not switched_on:
        await asyncio.sleep(60)
        await vacuum(engine, "bench_ours")


async def _vacuumed(connection: AsyncConnection, within: float) -> None:
    """Return when the table has been vacuumed, after so many seconds at most."""
    ended = perf_counter() + within
    count = "pg_stat_get_autovacuum_count(oid) + pg_stat_get_vacuum_count(oid)"
    query = text(f"SELECT {count} FROM pg_class WHERE oid = 'bench_ours'::regclass")
    while perf_counter() < ended and not await connection.scalar(query):  # noqa: ASYNC110  # it tells nobody
        await asyncio.sleep(0.5)


async def _look_at_table(connection: AsyncConnection) -> tuple[int, int]:
    """Its size in bytes, indexes included, and how many dead tuples it has."""
    query = "SELECT pg_total_relation_size('bench_ours'), pg_stat_get_dead_tuples('bench_ours'::regclass::oid)"
    size, dead = (await connection.execute(text(query))).one()
    return size, dead


async def _worker(dsn: str, computing: int = 0) -> asyncio.subprocess.Process:
    """A worker in a process of its own, ready to be told "go"; see `ours_worker`."""
    command = [sys.executable, "-m", "tests.benchmarks.systems.ours_worker", dsn, str(computing)]
    worker = await asyncio.create_subprocess_exec(*command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    await _line_of(worker)
    return worker


async def memory(dsn: str, messages: int) -> Result:
    """What a worker holds that waits for its first message."""
    engine = await prepare(dsn)
    broker = OutboxBroker(engine, outbox_table=outbox)

    @broker.subscriber("orders")
    async def handle(body: dict) -> None: ...  # type: ignore[type-arg]  # as users write it

    async with broker:
        await broker.start()
        await asyncio.sleep(1)
        resident = psutil.Process().memory_info().rss
    await engine.dispose()
    return Result({"resident MB": resident / MEGABYTE})


async def scheduled(dsn: str, messages: int) -> Result:
    """How late a handler starts after the moment for which its message was scheduled; one every 50 ms."""
    engine = await prepare(dsn)
    broker = OutboxBroker(engine, outbox_table=outbox)
    late: list[float] = []
    done = asyncio.Event()

    @broker.subscriber("orders")
    async def handle(due: float) -> None:
        late.append((time() - due) * 1e3)
        if len(late) == messages:
            done.set()

    async with broker:
        await broker.start()
        first = time() + 1.5
        for number in range(messages):
            due = first + number * 0.05
            await broker.publish(due, "orders", activate_at=datetime.fromtimestamp(due, UTC))
        await done.wait()
    await engine.dispose()
    return percentiles(late)


async def idle_latency(dsn: str, messages: int, *, driver: str = "asyncpg") -> Result:
    """From just before COMMIT to the handler's first line, one message at a time on an idle worker."""
    engine = await prepare(dsn.replace("+asyncpg", f"+{driver}"))
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
    return percentiles(latencies)


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
