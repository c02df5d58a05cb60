"""Connections that are dead and were never closed: their server answers nothing, and says nothing of it."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import ExitStack
from time import monotonic

import pytest
from sqlalchemy.ext.asyncio import create_async_engine

from outbox_core.envelope import compose
from outbox_core.events import Event, LeaseLost
from outbox_core.message import Delivery
from tests.contract.conftest import POSTGRESQL, Work, working
from tests.contract.harness import METADATA, TABLES, DjangoOutbox, SqlAlchemyOutbox, SqlOutbox, bodies, consumer, until
from tests.contract.test_completion import transactional
from tests.databases import OwnServer, backends, frozen, with_driver


@pytest.fixture(scope="module")
def own_server() -> Iterator[OwnServer]:
    with OwnServer.running() as server:
        yield server


@pytest.fixture(params=POSTGRESQL)
async def lonely_outbox(request: pytest.FixtureRequest, own_server: OwnServer) -> AsyncIterator[SqlOutbox]:
    """PostgreSQL with each driver and adapter, on a server whose processes a test may stop."""
    kind, driver = (
        (DjangoOutbox, "psycopg") if request.param.startswith("django") else (SqlAlchemyOutbox, request.param)
    )
    with own_server.database() as url:
        outbox = kind(create_async_engine(with_driver(url, driver)), TABLES)
        async with outbox.engine.begin() as connection:
            await connection.run_sync(METADATA.create_all)
        yield outbox
        await outbox.close()


@pytest.fixture
async def work_lonely(lonely_outbox: SqlOutbox) -> AsyncIterator[Work]:
    async with working(lonely_outbox) as start:
        yield start


async def test_a_worker_whose_connections_are_all_silent_goes_on_in_time_and_keeps_what_it_holds(
    lonely_outbox: SqlOutbox, work_lonely: Work
) -> None:
    started: list[str] = []
    events: list[Event] = []
    slept = asyncio.Event()

    async def handle(delivery: Delivery) -> None:
        started.append(delivery.payload.decode())
        if delivery.payload == b"slow":
            await slept.wait()

    await work_lonely(consumer(handle, max_workers=2), observers=[events.append])
    await lonely_outbox.publish(compose("slow", "orders"))
    await until(lambda: started)
    await asyncio.sleep(0.5)  # the heartbeat has its connection
    await lonely_outbox.engine.dispose()
    silent = backends(lonely_outbox.engine.url)
    assert len(silent) == 4
    with frozen(*silent):
        begin = monotonic()
        await lonely_outbox.publish(compose("next", "orders"))
        await until(lambda: started == ["slow", "next"], within=30)
        took = monotonic() - begin
        await asyncio.sleep(max(0.0, 12 - took))  # longer than a lease
        slept.set()
        await until(lambda: _all_gone(lonely_outbox), within=30)

    print(f"handling goes on {took:.1f} s after all connections fell silent")
    assert took < 20
    assert started == ["slow", "next"]
    assert not any(isinstance(event, LeaseLost) for event in events)


async def test_a_transaction_whose_end_falls_silent_is_given_up_in_time_and_run_again(
    lonely_outbox: SqlOutbox, work_lonely: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("outbox_core.completion.DEADLINE", 1.0)

    async def nothing_more(delivery: Delivery) -> None: ...

    await _is_run_again(lonely_outbox, work_lonely, nothing_more)


@pytest.mark.parametrize(
    "lonely_outbox", ["asyncpg", "psycopg"], indirect=True
)  # Django's run in threads: nobody cuts them
async def test_so_is_one_whose_handler_waits_in_silence_for_longer_than_it_may(
    lonely_outbox: SqlOutbox, work_lonely: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("outbox_core.completion.DEADLINE", 1.0)

    async def another_statement(delivery: Delivery) -> None:
        await lonely_outbox.store.insert([compose("mail", "mails")], delivery.session)

    await _is_run_again(lonely_outbox, work_lonely, another_statement, handler_timeout=2.0)


async def _is_run_again(
    outbox: SqlOutbox, work: Work, after: Callable[[Delivery], Awaitable[None]], **options: object
) -> None:
    """All connections fall silent in a transactional handler, which does *after* and ends."""
    runs: list[str] = []

    async def handle(batch: Sequence[Delivery]) -> None:
        (delivery,) = batch
        runs.append(delivery.payload.decode())
        await outbox.store.insert([compose("mail", "mails")], delivery.session)
        if runs == ["first", "silent"]:
            silence.enter_context(frozen(*backends(outbox.engine.url)))
            await after(delivery)

    with ExitStack() as silence:
        await work(transactional(outbox.store, handle, **options))
        await outbox.publish(compose("first", "orders"))
        await until(lambda: runs == ["first"])
        await outbox.publish(compose("silent", "orders"))
        await until(lambda: runs == ["first", "silent", "silent"], within=30)
        await until(lambda: _handled(outbox), within=30)

    assert bodies(await outbox.pending()) == ["mail", "mail"]
    assert await outbox.dead_letters() == []


async def _handled(outbox: SqlOutbox) -> bool:
    return "silent" not in bodies(await outbox.pending())


async def _all_gone(outbox: SqlOutbox) -> bool:
    return await outbox.pending() == []
