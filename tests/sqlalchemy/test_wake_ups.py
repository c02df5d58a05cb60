"""No message waits for the poll, whatever the order of arming, publishing and committing.

The poll is at 30 seconds here, so a lost wake-up shows as a timeout.
"""

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import asyncpg
import pytest
from sqlalchemy import URL, MetaData, text
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession

from outbox_core.schema import Tables
from outbox_sqlalchemy import OutboxBroker, make_outbox_table
from tests.databases import execute, plain

metadata = MetaData()
outbox = make_outbox_table(metadata)
CHANNEL = Tables().channel
PATIENCE = 5.0


@pytest.fixture(autouse=True)
async def tables(engine: AsyncEngine) -> None:
    async with engine.begin() as connection:
        await connection.run_sync(metadata.create_all)


class Recorder:
    """A broker whose only handler records what it gets."""

    def __init__(self, engine: AsyncEngine, *, max_workers: int = 1, notify: bool = True) -> None:
        self.broker = OutboxBroker(engine, outbox_table=outbox, notify=notify, graceful_timeout=1.0)
        self.handled: list[object] = []
        self._changed = asyncio.Condition()

        @self.broker.subscriber("orders", max_workers=max_workers, max_fetch_interval=30.0)
        async def handle(body: object) -> None:
            await self.work(body)
            async with self._changed:
                self.handled.append(body)
                self._changed.notify_all()

    async def work(self, body: object) -> None:
        """What the handler does before it records."""

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(PATIENCE), self._changed:
            await self._changed.wait_for(condition)

    @asynccontextmanager
    async def running(self) -> AsyncIterator["Recorder"]:
        async with self.broker:
            await self.broker.start()
            yield self


async def test_a_sleeping_worker_is_woken_by_a_commit(engine: AsyncEngine) -> None:
    publisher = OutboxBroker(engine, outbox_table=outbox)
    async with Recorder(engine).running() as recorder:
        await asleep(engine)

        await publisher.publish(1, "orders")

        await recorder.until(lambda: recorder.handled == [1])


async def test_a_transaction_that_published_before_the_worker_slept_and_commits_after_is_not_missed(
    engine: AsyncEngine,
) -> None:
    publisher = OutboxBroker(engine, outbox_table=outbox)
    async with AsyncSession(engine) as session, session.begin():
        await publisher.publish("early", "orders", session=session)
        async with Recorder(engine).running() as recorder:
            await until(lambda: locks(engine), [("shared", 1)])

            await session.commit()

            await recorder.until(lambda: recorder.handled == ["early"])


async def test_a_rolled_back_publish_lets_the_worker_sleep(engine: AsyncEngine) -> None:
    publisher = OutboxBroker(engine, outbox_table=outbox)
    async with AsyncSession(engine) as session:
        await publisher.publish("never", "orders", session=session)
        async with Recorder(engine).running() as recorder:
            await session.rollback()

            await asleep(engine)

            assert recorder.handled == []


async def test_nothing_is_late_under_many_interleaved_transactions(engine: AsyncEngine) -> None:
    publisher = OutboxBroker(engine, outbox_table=outbox)
    chance = random.Random(7)

    async def publish(number: int) -> None:
        async with AsyncSession(engine) as session, session.begin() as transaction:
            await asyncio.sleep(chance.uniform(0, 0.05))
            await publisher.publish(number, "orders", session=session)
            await asyncio.sleep(chance.choice([0, 0, 0.001, 0.01, 0.03]))
            if number % 10 == 9:
                await transaction.rollback()

    async def client(first: int) -> None:
        for number in range(first, first + 40):
            await publish(number)
            if number % 13 == 0:
                await asyncio.sleep(0.1)  # long enough for the worker to fall asleep

    async with Recorder(engine).running() as recorder:
        await asyncio.gather(*(client(first) for first in range(0, 160, 40)))

        await recorder.until(lambda: len(recorder.handled) == 144)

    assert sorted(recorder.handled, key=str) == sorted((n for n in range(160) if n % 10 != 9), key=str)


async def test_an_idle_worker_takes_over_while_the_one_that_slept_first_is_busy(engine: AsyncEngine) -> None:
    publisher = OutboxBroker(engine, outbox_table=outbox)
    first, second = Recorder(engine), Recorder(engine)
    stuck = asyncio.Event()

    async def work(body: object) -> None:
        if body == "slow":
            await stuck.wait()

    first.work = second.work = work  # type: ignore[method-assign]  # the recorder's seam
    async with first.running():
        await asleep(engine)
        async with second.running():
            await publisher.publish("slow", "orders")
            await until(lambda: leased(engine), 1)
            for number in range(3):
                await publisher.publish(number, "orders")
                await asyncio.sleep(0.4)  # let the idle one fall asleep in between

            everything = [*first.handled, *second.handled]
            stuck.set()

    assert everything == [0, 1, 2]


async def test_publishers_notify_nobody_while_the_worker_is_busy(engine: AsyncEngine, database: URL) -> None:
    publisher = OutboxBroker(engine, outbox_table=outbox)
    recorder = Recorder(engine)
    release = asyncio.Event()
    recorder.work = lambda body: _wait(release)  # type: ignore[assignment,method-assign]  # the recorder's seam
    async with listening(database) as heard, recorder.running():
        await publisher.publish(0, "orders")
        await until(lambda: leased(engine), 1)
        await until(lambda: locks(engine), [])
        heard.clear()

        for number in range(1, 51):
            await publisher.publish(number, "orders")

        assert heard == []
        release.set()
        await recorder.until(lambda: len(recorder.handled) == 51)


async def test_without_notify_the_worker_is_not_woken(engine: AsyncEngine, database: URL) -> None:
    publisher = OutboxBroker(engine, outbox_table=outbox, notify=False)
    async with listening(database) as heard:
        await publisher.publish(1, "orders")

    assert heard == []


async def test_listening_is_resumed_after_the_connection_was_cut(engine: AsyncEngine, database: URL) -> None:
    publisher = OutboxBroker(engine, outbox_table=outbox)
    async with Recorder(engine).running() as recorder:
        await asleep(engine)
        listening_here = "query LIKE 'LISTEN%' AND datname = current_database()"
        execute(database, f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE {listening_here}")
        await until(lambda: listeners(engine), 1)
        await asleep(engine)

        await publisher.publish("after", "orders")

        await recorder.until(lambda: recorder.handled == ["after"])


async def _wait(event: asyncio.Event) -> None:
    await event.wait()


@asynccontextmanager
async def listening(database: URL) -> AsyncIterator[list[str]]:
    """What is notified on the outbox's channel, proofs of listening aside."""
    heard: list[str] = []
    connection = await asyncpg.connect(plain(database))
    await connection.add_listener(CHANNEL, lambda _c, _p, _ch, payload: heard.append(payload))
    try:
        yield heard
        await connection.execute("SELECT 1")  # whatever was notified before has arrived with this answer
    finally:
        await connection.close()


async def asleep(engine: AsyncEngine) -> None:
    """Return when a worker has armed its queue."""
    await until(lambda: locks(engine), [("exclusive", 1)])


async def locks(engine: AsyncEngine) -> list[tuple[str, int]]:
    sql = """SELECT CASE mode WHEN 'ExclusiveLock' THEN 'exclusive' ELSE 'shared' END, count(*)
             FROM pg_locks WHERE locktype = 'advisory' AND database = (SELECT oid FROM pg_database
                                                                       WHERE datname = current_database())
             GROUP BY 1"""
    return [(row[0], row[1]) for row in await fetch(engine, sql)]


async def leased(engine: AsyncEngine) -> int:
    return int((await fetch(engine, "SELECT count(*) FROM outbox WHERE leased_until IS NOT NULL"))[0][0])


async def listeners(engine: AsyncEngine) -> int:
    sql = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'LISTEN%' AND datname = current_database()"
    return int((await fetch(engine, sql))[0][0])


async def fetch(engine: AsyncEngine, sql: str) -> list[tuple]:  # type: ignore[type-arg]  # rows of any shape
    async with engine.connect() as connection:
        return [tuple(row) for row in await connection.execute(text(sql))]


async def until(look: Callable[[], Awaitable[object]], expected: object) -> None:
    """Return when *look* sees *expected*; fail with what it saw last."""
    seen: object = None
    for _ in range(int(PATIENCE / 0.02)):
        seen = await look()
        if seen == expected:
            return
        await asyncio.sleep(0.02)
    pytest.fail(f"expected {expected!r}, saw {seen!r}")
