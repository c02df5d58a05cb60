"""`ping`: what a health check is told, in time, whatever the database and the application's pool are doing."""

import asyncio
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack

import pytest
from sqlalchemy import URL, MetaData

from outbox_sqlalchemy import OutboxBroker, make_outbox_tables
from tests.databases import OwnServer, backends, execute, frozen
from tests.places import Place, answered_within, running, until


def consuming(place: Place, **options: object) -> OutboxBroker:
    broker = place.broker(**options)

    @broker.subscriber("orders")
    async def handle(body: int) -> None: ...

    return broker


@pytest.fixture(params=["consuming", "publishing"])
def kind(request: pytest.FixtureRequest) -> str:
    """A broker with a subscriber, and one that only publishes."""
    return str(request.param)


def broker_of(kind: str, place: Place) -> OutboxBroker:
    return consuming(place) if kind == "consuming" else place.broker()


async def test_a_broker_is_healthy_from_its_start_to_its_stop(both: Place, kind: str) -> None:
    broker = broker_of(kind, both)

    assert await broker.ping() is False
    async with broker:
        assert await broker.ping() is False
        await broker.start()
        assert await broker.ping() is True
        assert await broker.ping(1.0) is True
    assert await broker.ping() is False


async def test_a_broker_that_serves_none_of_its_queues_is_healthy(place: Place) -> None:
    broker = consuming(place)
    broker.serve([])

    async with running(broker):
        assert await broker.ping(1.0) is True


async def test_a_broker_without_a_database_is_not(place: Place) -> None:
    async with running(OutboxBroker(outbox_table=place.tables)) as broker:
        assert await broker.ping(1.0) is False


async def test_a_pool_whose_connections_are_all_in_use_does_not_matter(
    shared_database: URL, driver: str, kind: str
) -> None:
    place = Place(shared_database, driver)
    await place.engine.dispose()
    place.engine = place.another_engine(pool_size=2, max_overflow=0, pool_timeout=30.0)
    async with AsyncExitStack() as stack:
        stack.push_async_callback(place.close)
        broker = await stack.enter_async_context(running(broker_of(kind, place)))
        for _ in range(2):
            await stack.enter_async_context(place.engine.connect())

        assert await broker.ping(2.0) is True


async def test_a_worker_comes_back_while_all_of_the_pool_is_in_use(shared_database: URL, driver: str) -> None:
    place = Place(shared_database, driver)
    await place.engine.dispose()
    place.engine = place.another_engine(pool_size=1, max_overflow=0, pool_timeout=30.0)
    async with AsyncExitStack() as stack:
        stack.push_async_callback(place.close)
        broker = await stack.enter_async_context(running(consuming(place)))
        connection = await stack.enter_async_context(place.engine.connect())
        pid = (await connection.exec_driver_sql("SELECT pg_backend_pid()")).scalar_one()
        others = (
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND pid <> %s"
        )
        execute(shared_database, f"{others} AND pid <> pg_backend_pid()", pid)

        await until(lambda: broker.ping(1.0), True)


@pytest.mark.parametrize("loop", ["Claimer.run", "Settler.run", "Worker._tend"])
async def test_a_loop_that_is_dead_is_noticed(place: Place, loop: str) -> None:
    async with running(consuming(place)) as broker:
        (task,) = (task for task in asyncio.all_tasks() if task.get_coro().__qualname__ == loop)  # type: ignore[union-attr]  # it has one
        assert await broker.ping(1.0) is True

        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

        assert await broker.ping(1.0) is False


async def test_asking_while_it_stops_is_answered(both: Place, kind: str) -> None:
    broker = broker_of(kind, both)
    await broker.start()

    asked = [asyncio.create_task(broker.ping(5.0)) for _ in range(10)]
    await asyncio.sleep(0)
    await broker.stop()

    assert {type(answer) for answer in await asyncio.gather(*asked)} == {bool}
    assert await broker.ping(5.0) is False


# A database that does not answer


@pytest.fixture(scope="module")
def own_server() -> Iterator[OwnServer]:
    with OwnServer.running() as server:
        yield server


@pytest.fixture
async def frozen_place(own_server: OwnServer, driver: str) -> AsyncIterator[Place]:
    """An outbox on a server of its own, whose processes a test may stop."""
    with own_server.database() as url:
        place = Place(url, driver)
        make_outbox_tables(metadata := MetaData())
        metadata.create_all(place.sync_engine)
        yield place
        await place.close()


async def test_a_worker_whose_connections_are_silent_is_unhealthy_in_time_and_comes_back(frozen_place: Place) -> None:
    place = frozen_place
    async with running(consuming(place), patience=60) as broker:
        await place.engine.dispose()
        place.sync_engine.dispose()
        pids = backends(place.url)
        assert len(pids) == 3
        with frozen(*pids):
            for timeout in (0.3, 1.0):
                with answered_within(timeout + 0.3):
                    assert await broker.ping(timeout) is False
            # The links are given up after their deadline, and the new ones have other processes.
            await until(lambda: broker.ping(0.5), True, patience=30)
        assert await broker.ping(1.0) is True


async def test_a_server_that_is_stopped_is_noticed_and_so_is_its_return(
    own_server: OwnServer, frozen_place: Place, kind: str
) -> None:
    async with running(broker_of(kind, frozen_place), patience=60) as broker:
        assert await broker.ping(1.0) is True
        own_server.stop()
        with answered_within(1.3):
            assert await broker.ping(1.0) is False
        own_server.start()
        await until(lambda: broker.ping(1.0), True)


async def test_a_server_that_accepts_and_is_silent_is_noticed_in_time(place: Place, driver: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:  # the kernel accepts
        port = server.getsockname()[1]
        url = URL.create("postgresql", "nobody", host="127.0.0.1", port=port, database="nowhere")
        silent = Place(url, driver)
        async with running(silent.broker()) as broker:
            for timeout in (0.2, 0.5):
                with answered_within(timeout + 0.3):
                    assert await broker.ping(timeout) is False
        await silent.close()
