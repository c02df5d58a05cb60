"""Connections that are dead and were never closed: their server answers nothing, and says nothing of it."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from time import monotonic

import pytest
from sqlalchemy.ext.asyncio import create_async_engine

from outbox_core.envelope import compose
from outbox_core.events import Event, LeaseLost
from outbox_core.message import Delivery
from tests.contract.conftest import POSTGRESQL, Work, working
from tests.contract.harness import METADATA, TABLES, DjangoOutbox, SqlAlchemyOutbox, SqlOutbox, consumer, until
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


async def _all_gone(outbox: SqlOutbox) -> bool:
    return await outbox.pending() == []
