"""What a worker costs the application and the server: three connections of its own, and nothing of the pool."""

import asyncio
import gc
from collections import Counter
from typing import Any

import asyncpg
import psycopg
import pytest
from sqlalchemy import event, text
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession
from sqlalchemy.pool import NullPool

from outbox_core.errors import DatabaseUnavailable
from outbox_sqlalchemy import OutboxBroker
from outbox_sqlalchemy.connections import OwnConnection
from tests.databases import execute, plain, postgres_database
from tests.places import Place, until

NAME = "outbox-test-worker"


def named_engine(place: Place, **options: Any) -> AsyncEngine:
    """An engine whose connections the server shows under a name of their own."""
    if place.driver == "asyncpg":
        connect_args: dict[str, Any] = {"server_settings": {"application_name": NAME}}
    else:
        connect_args = {"application_name": NAME}
    return place.another_engine(connect_args=connect_args, **options)


def connections(place: Place) -> int:
    sql = "SELECT count(*) FROM pg_stat_activity WHERE application_name = %s AND datname = current_database()"
    return int(str(execute(place.url, sql, NAME)[0][0]))


def terminate(place: Place) -> int:
    sql = """SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
             WHERE application_name = %s AND datname = current_database()"""
    return int(str(execute(place.url, sql, NAME)[0][0]))


class Busy:
    """A broker with six subscribers of ten workers each, and the most connections that were seen."""

    def __init__(self, place: Place, engine: AsyncEngine) -> None:
        self.broker = OutboxBroker(engine, outbox_table=place.tables, logger=None)
        self.handled: Counter[tuple[int, int]] = Counter()
        for queue in range(6):
            self._subscribe(queue)

    def _subscribe(self, queue: int) -> None:
        @self.broker.subscriber(f"queue-{queue}", max_workers=10)
        async def handle(body: int) -> None:
            await asyncio.sleep(0.001)
            self.handled[queue, body] += 1

    async def publish(self, count: int) -> None:
        for queue in range(6):
            await self.broker.publish_batch(*range(count), queue=f"queue-{queue}")


@pytest.mark.parametrize("pool", [{"pool_size": 1, "max_overflow": 0, "pool_timeout": 1.0}, {"pool_size": 10}])
async def test_a_worker_has_three_connections_whatever_it_serves_and_one_more_for_the_leases_of_what_it_holds(
    postgres: Place, pool: dict[str, Any]
) -> None:
    engine = named_engine(postgres, **pool)
    busy = Busy(postgres, engine)
    seen = []
    async with busy.broker:
        await busy.broker.start()
        await engine.dispose()  # what the start has left in the pool; the worker's own have left it
        seen.append(connections(postgres))
        publisher = Busy(postgres, postgres.engine)
        for _ in range(3):
            await publisher.publish(40)
            seen.append(connections(postgres))
            assert engine.pool.checkedout() == 0  # type: ignore[attr-defined]  # a queue pool's
        await until(lambda: len(postgres.rows()), 0)
        seen.append(connections(postgres))

    assert set(seen) <= {3, 4}
    assert set(busy.handled.values()) == {3}
    await until(lambda: connections(postgres), 0)
    await engine.dispose()


async def test_the_application_can_use_all_of_its_pool_while_a_worker_runs(postgres: Place) -> None:
    engine = named_engine(postgres, pool_size=2, max_overflow=0, pool_timeout=1.0)
    busy = Busy(postgres, engine)
    async with busy.broker:
        await busy.broker.start()
        async with AsyncSession(engine) as first, AsyncSession(engine) as second:
            await busy.broker.publish(1, "queue-1", session=first)
            await busy.broker.publish(2, "queue-2", session=second)
            await first.commit()
            await second.commit()
        await until(lambda: sorted(busy.handled), [(1, 1), (2, 2)])

    assert engine.pool.checkedout() == 0  # type: ignore[attr-defined]  # a queue pool's
    await engine.dispose()


async def test_an_engine_without_a_pool_will_do(postgres: Place) -> None:
    engine = named_engine(postgres, poolclass=NullPool)
    busy = Busy(postgres, engine)
    async with busy.broker:
        await busy.broker.start()
        await busy.publish(5)
        await until(lambda: len(busy.handled), 30)

        assert connections(postgres) in {3, 4}  # the fourth is opened when something is held for longer than a moment

    await until(lambda: connections(postgres), 0)


async def test_a_connection_that_nobody_waits_for_any_more_is_closed(postgres: Place) -> None:
    made: list[Any] = []
    half_way = asyncio.Event()

    async def connect() -> Any:
        driver = await DRIVERS[postgres.driver](plain(postgres.url))
        made.append(driver)
        half_way.set()
        await asyncio.sleep(
            0.1
        )  # as between the parts of a handshake, where a driver forgets its socket if it is cancelled
        return driver

    engine = postgres.another_engine(async_creator=connect)
    opening = asyncio.create_task(OwnConnection.open(engine))
    await half_way.wait()
    opening.cancel()
    with pytest.raises(asyncio.CancelledError):
        await opening

    (driver,) = made
    assert driver.is_closed() if postgres.driver == "asyncpg" else driver.closed


DRIVERS: dict[str, Any] = {"asyncpg": asyncpg.connect, "psycopg": psycopg.AsyncConnection.connect}


async def test_a_stopped_worker_leaves_the_engine_usable(place: Place) -> None:
    broker = place.broker()

    @broker.subscriber("orders")
    async def handle(body: int) -> None: ...

    async with broker:
        await broker.start()

    async with place.engine.connect() as connection:
        assert await connection.scalar(text("SELECT 1")) == 1


async def test_no_message_is_lost_when_every_connection_is_cut(fresh_postgres: Place) -> None:
    place = fresh_postgres
    engine = named_engine(place, poolclass=NullPool)
    busy = Busy(place, engine)
    publisher = Busy(place, place.engine)
    await publisher.publish(100)
    cuts = []
    async with busy.broker:
        await busy.broker.start()
        for number in range(3):
            await until(lambda least=number * 100: len(busy.handled) > least, True)
            cuts.append(terminate(place))
            await publisher.publish(100)
        await until(lambda: len(place.rows()), 0, patience=10)

    assert cuts[0] in {3, 4}  # with the one of the leases, if something was held at that moment
    assert len(busy.handled) == 600
    assert min(busy.handled.values()) == 4
    assert place.rows(place.tables.dead_letters) == []


async def test_a_handler_that_runs_while_the_connections_are_cut_is_settled_once(fresh_postgres: Place) -> None:
    place = fresh_postgres
    broker = OutboxBroker(named_engine(place, poolclass=NullPool), outbox_table=place.tables, logger=None)
    started, release = asyncio.Event(), asyncio.Event()
    handled: list[int] = []

    @broker.subscriber("orders")
    async def handle(body: int) -> None:
        started.set()
        await release.wait()
        handled.append(body)

    async with broker, asyncio.timeout(10):
        await broker.start()
        await broker.publish(7, "orders")
        await started.wait()
        terminate(place)
        release.set()
        await until(place.rows, [])

    assert handled == [7]


async def test_a_broker_starts_again_after_a_stop(place: Place) -> None:
    broker = place.broker()
    handled: list[int] = []

    @broker.subscriber("orders")
    async def handle(body: int) -> None:
        handled.append(body)

    for number in range(3):
        await broker.start()
        await broker.publish(number, "orders")
        await until(lambda expected=[*range(number + 1)]: handled == expected, True)
        await broker.stop()
    await broker.publish(3, "orders")

    assert handled == [0, 1, 2]
    assert [row.payload for row in place.rows()] == [b"3"]


def test_a_broker_starts_again_on_another_event_loop(sync_place: Place) -> None:
    engine = sync_place.another_engine(poolclass=NullPool)
    broker = OutboxBroker(engine, outbox_table=sync_place.tables, logger=None)
    handled: list[int] = []

    @broker.subscriber("orders")
    async def handle(body: int) -> None:
        handled.append(body)

    async def once(number: int) -> None:
        async with broker:
            await broker.start()
            assert await broker.ping(5)
            await broker.publish(number, "orders")
            await until(lambda: len(handled), number + 1)

    for number in range(3):
        asyncio.run(once(number))

    assert handled == [0, 1, 2]


async def test_two_workers_share_a_queue_and_handle_each_message_once(postgres: Place) -> None:
    first, second = Busy(postgres, postgres.engine), Busy(postgres, postgres.engine)
    async with first.broker, second.broker:
        await first.broker.start()
        await second.broker.start()
        await first.publish(100)
        await until(lambda: len(postgres.rows()), 0)

    assert set((first.handled + second.handled).values()) == {1}
    assert len(first.handled + second.handled) == 600


async def test_stopping_gives_back_what_has_not_begun(place: Place) -> None:
    broker = place.broker(graceful_timeout=5.0)
    started, release = asyncio.Event(), asyncio.Event()
    handled: list[int] = []

    @broker.subscriber("orders", prefetch=10)
    async def handle(body: int) -> None:
        started.set()
        await release.wait()
        handled.append(body)

    await broker.publish_batch(1, 2, 3, queue="orders")
    await broker.start()
    await started.wait()
    stopping = asyncio.create_task(broker.stop())
    await until(lambda: [row.leased_until is None for row in place.rows()], [False, True, True])
    release.set()
    await stopping

    assert handled == [1]
    assert [(row.payload, row.deliveries_count, row.attempts_count) for row in place.rows()] == [
        (b"2", 0, 0),
        (b"3", 0, 0),
    ]


async def test_a_handler_that_outlasts_the_graceful_timeout_is_given_back_without_an_attempt(place: Place) -> None:
    broker = place.broker(graceful_timeout=0.05)
    started = asyncio.Event()

    @broker.subscriber("orders")
    async def handle(body: int) -> None:
        started.set()
        await asyncio.Event().wait()

    async with broker:
        await broker.start()
        await broker.publish(1, "orders")
        await started.wait()

    (row,) = place.rows()
    assert (row.attempts_count, row.deliveries_count, row.leased_until) == (0, 0, None)


async def test_the_workers_connections_go_to_the_engines_database(fresh_postgres: Place) -> None:
    server = fresh_postgres.url.set(database="postgres")
    with postgres_database(server) as other:
        elsewhere = Place(other, fresh_postgres.driver)
        elsewhere.metadata.create_all(elsewhere.sync_engine)
        broker = elsewhere.broker()
        handled: list[int] = []

        @broker.subscriber("orders")
        async def handle(body: int) -> None:
            handled.append(body)

        await fresh_postgres.broker().publish(1, "orders")
        async with broker:
            await broker.start()
            await broker.publish(2, "orders")
            await until(lambda: handled, [2])
        await elsewhere.close()

    assert len(fresh_postgres.rows()) == 1


async def test_a_connection_that_cannot_be_made_a_workers_own_is_closed(postgres: Place) -> None:
    def refuse(*_: object) -> None:
        raise RuntimeError("not in autocommit")

    engine = named_engine(postgres)
    event.listen(engine.sync_engine, "set_connection_execution_options", refuse)

    with pytest.raises(RuntimeError):
        await OwnConnection.open(engine)

    await until(lambda: connections(postgres), 0)


async def test_a_connection_that_does_not_answer_what_process_it_has_is_closed(fresh_postgres: Place) -> None:
    """As one does that is cut while it is looked at, but each time: the function of that name is another one."""
    for statement in (
        "CREATE SCHEMA first",
        """CREATE FUNCTION first.pg_backend_pid() RETURNS integer LANGUAGE plpgsql
           AS $$ BEGIN RAISE 'nobody knows' USING ERRCODE = 'admin_shutdown'; END $$""",
        f"ALTER DATABASE {fresh_postgres.url.database} SET search_path = first, pg_catalog, public",
    ):
        fresh_postgres.run(statement)
    broker = OutboxBroker(named_engine(fresh_postgres), outbox_table=fresh_postgres.tables, logger=None)

    @broker.subscriber("orders")
    async def handle(body: str) -> None: ...

    with pytest.raises(DatabaseUnavailable, match="nobody knows"):
        await broker.start()

    await until(lambda: connections(fresh_postgres), 0)
    gc.collect()
