"""What an operator does: look, redrive, purge, pause, and ask whether a worker is alive."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from time import monotonic
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import insert
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine

from outbox_core.errors import MissingTable, OutboxError
from outbox_core.message import PendingMessage
from outbox_core.retry import NoRetry
from outbox_sqlalchemy import OutboxBroker, OutboxMessage, make_dlq_table
from tests.databases import execute
from tests.places import Place, until

FIRST = UUID("0190163d-8694-739b-aea5-966c26f8ad91")
SECOND = UUID("0190163d-8694-739b-aea5-966c26f8ad92")
THIRD = UUID("0190163d-8694-739b-aea5-966c26f8ad93")


def bury(place: Place, *letters: tuple[UUID, str, str], age: timedelta = timedelta(0)) -> None:
    """Dead letters of message id, queue and reason."""
    table = place.tables.dead_letters
    assert table is not None
    failed_at = datetime.now(UTC) - age
    with place.sync_engine.begin() as connection:
        for message_id, queue, reason in letters:
            connection.execute(
                insert(table).values(
                    message_id=message_id,
                    queue=queue,
                    key="k",
                    payload=b'{"id":7}',
                    headers={"tenant": "acme"},
                    priority=3,
                    timer_id="t",
                    deliveries_count=4,
                    attempts_count=3,
                    failed_at=failed_at if place.is_postgresql else failed_at.replace(tzinfo=None),
                    failure_reason=reason,
                    last_exception="ValueError: seven",
                )
            )


def graves(place: Place) -> Sequence[Any]:
    return place.rows(place.tables.dead_letters)


# Timers


async def test_a_cancelled_timer_is_gone_and_says_so_once(place: Place) -> None:
    broker = place.broker()
    await broker.publish(1, "orders", timer_id="reminder", activate_in=timedelta(hours=1))

    first = await broker.cancel_timer(queue="orders", timer_id="reminder")
    again = await broker.cancel_timer(queue="orders", timer_id="reminder")

    assert (first, again) == (True, False)
    assert place.rows() == []


async def test_cancelling_leaves_other_queues_and_other_timers_alone(place: Place) -> None:
    broker = place.broker()
    await broker.publish(1, "orders", timer_id="a", activate_in=timedelta(hours=1))
    await broker.publish(2, "orders", timer_id="b", activate_in=timedelta(hours=1))
    await broker.publish(3, "letters", timer_id="a", activate_in=timedelta(hours=1))

    assert await broker.cancel_timer(queue="orders", timer_id="a")

    assert [row.payload for row in place.rows()] == [b"2", b"3"]


async def test_a_rolled_back_cancellation_keeps_the_timer(place: Place) -> None:
    broker = place.broker()
    await broker.publish(1, "orders", timer_id="reminder", activate_in=timedelta(hours=1))
    async with AsyncSession(place.engine) as session:
        assert await broker.cancel_timer(queue="orders", timer_id="reminder", session=session)
        await session.rollback()

    assert len(place.rows()) == 1


async def test_a_timer_whose_handler_runs_cannot_be_cancelled(place: Place) -> None:
    broker = place.broker()
    started, release = asyncio.Event(), asyncio.Event()

    @broker.subscriber("orders")
    async def handle(body: int) -> None:
        started.set()
        await release.wait()

    async with broker, asyncio.timeout(5):
        await broker.start()
        await broker.publish(1, "orders", timer_id="reminder")
        await started.wait()
        cancelled = await broker.cancel_timer(queue="orders", timer_id="reminder")
        release.set()

    assert cancelled is False


# Looking


async def test_a_look_shows_the_oldest_rows_without_leasing_them(place: Place) -> None:
    broker = place.broker()
    await broker.publish({"id": 1}, "orders", key="k", priority=2, message_id=FIRST, headers={"tenant": "acme"})
    await broker.publish({"id": 2}, "letters", timer_id="t", activate_in=timedelta(hours=1), message_id=SECOND)
    await broker.publish({"id": 3}, "orders", message_id=THIRD)

    first, second = await broker.fetch_unprocessed(limit=2)

    assert isinstance(first, PendingMessage)
    assert (first.message_id, first.queue, first.key, first.payload, first.priority) == (
        FIRST,
        "orders",
        "k",
        b'{"id":1}',
        2,
    )
    assert first.headers["tenant"] == "acme"
    assert (first.attempts_count, first.deliveries_count, first.leased, first.failure_reason) == (0, 0, False, None)
    assert (second.message_id, second.timer_id) == (SECOND, "t")
    assert second.next_attempt_at - second.created_at > timedelta(minutes=59)
    assert first.created_at.tzinfo is not None
    assert [row.leased_until for row in place.rows()] == [None, None, None]


async def test_a_look_can_be_at_one_queue(place: Place) -> None:
    broker = place.broker()
    await broker.publish(1, "orders")
    await broker.publish(2, "letters")

    assert [one.payload for one in await broker.fetch_unprocessed(queue="letters")] == [b"2"]
    assert await broker.fetch_unprocessed(queue="nothing") == []


async def test_a_look_on_a_session_sees_what_it_has_published(place: Place) -> None:
    broker = place.broker()
    async with AsyncSession(place.engine) as session:
        await broker.publish(1, "orders", session=session)

        within = await broker.fetch_unprocessed(session)

        assert (len(within), len(place.rows())) == (1, 0)


async def test_a_leased_row_shows_as_leased(place: Place) -> None:
    broker = place.broker()
    started, release = asyncio.Event(), asyncio.Event()

    @broker.subscriber("orders")
    async def handle(body: int) -> None:
        started.set()
        await release.wait()

    async with broker, asyncio.timeout(5):
        await broker.start()
        await broker.publish(1, "orders")
        await started.wait()
        (seen,) = await broker.fetch_unprocessed()
        stats = await broker.stats()
        release.set()

    assert seen.leased
    assert (stats["orders"].leased, stats["orders"].ready) == (1, 0)


# Dead letters


async def test_a_redriven_dead_letter_is_a_new_row_of_the_same_message(place: Place) -> None:
    bury(place, (FIRST, "orders", "rejected"))

    count = await place.broker().redrive()

    assert count == 1
    assert graves(place) == []
    (row,) = place.rows()
    assert (row.message_id, row.queue, row.key, row.payload, row.priority) == (
        FIRST,
        "orders",
        "k",
        b'{"id":7}',
        3,
    )
    assert (row.headers, row.timer_id) == ({"tenant": "acme"}, None)
    assert (row.attempts_count, row.deliveries_count, row.failure_reason) == (0, 0, None)


@pytest.mark.parametrize(
    ("filters", "redriven"),
    [
        ({}, [FIRST, SECOND, THIRD]),
        ({"queue": "orders"}, [FIRST, SECOND]),
        ({"reason": "rejected"}, [FIRST, THIRD]),
        ({"queue": "orders", "reason": "rejected"}, [FIRST]),
        ({"limit": 2}, [FIRST, SECOND]),
        ({"ids": []}, []),
        ({"queue": "nothing"}, []),
    ],
)
async def test_redriving_can_be_limited(place: Place, filters: dict[str, Any], redriven: list[UUID]) -> None:
    bury(place, (FIRST, "orders", "rejected"), (SECOND, "orders", "undecodable"), (THIRD, "letters", "rejected"))
    broker = place.broker()

    would = await broker.redrive(**filters, dry_run=True)
    before = len(place.rows())
    count = await broker.redrive(**filters)

    assert (would, before, count) == (len(redriven), 0, len(redriven))
    assert [row.message_id for row in place.rows()] == redriven
    assert len(graves(place)) == 3 - len(redriven)


async def test_redriving_by_id_takes_the_dead_letters_ids(place: Place) -> None:
    bury(place, (FIRST, "orders", "rejected"), (SECOND, "orders", "rejected"))
    second = graves(place)[1].id

    assert await place.broker().redrive(ids=[second, 999]) == 1

    assert [row.message_id for row in place.rows()] == [SECOND]


async def test_redriving_on_a_session_goes_with_it(place: Place) -> None:
    bury(place, (FIRST, "orders", "rejected"))
    async with AsyncSession(place.engine) as session:
        assert await place.broker().redrive(session=session) == 1
        await session.rollback()

    assert (len(place.rows()), len(graves(place))) == (0, 1)


async def test_a_redriven_message_is_handled(place: Place) -> None:
    bury(place, (FIRST, "orders", "rejected"))
    broker = place.broker()
    handled: asyncio.Queue[tuple[object, str, int]] = asyncio.Queue()

    @broker.subscriber("orders")
    async def handle(body: object, message: OutboxMessage) -> None:
        handled.put_nowait((body, message.message_id, message.attempt))

    async with broker, asyncio.timeout(5):
        await broker.start()
        await broker.redrive()
        assert await handled.get() == ({"id": 7}, str(FIRST), 1)


async def test_purging_deletes_only_what_is_old_enough(place: Place) -> None:
    bury(place, (FIRST, "orders", "rejected"), age=timedelta(days=40))
    bury(place, (SECOND, "letters", "rejected"), age=timedelta(days=40))
    bury(place, (THIRD, "orders", "rejected"), age=timedelta(days=2))
    broker = place.broker()

    assert await broker.purge_dead_letters(timedelta(days=30), queue="orders") == 1
    assert await broker.purge_dead_letters(timedelta(days=30)) == 1
    assert await broker.purge_dead_letters(timedelta(days=30)) == 0

    assert [row.message_id for row in graves(place)] == [THIRD]


async def test_purging_stops_at_its_limit(place: Place) -> None:
    bury(place, (FIRST, "orders", "rejected"), (SECOND, "orders", "rejected"), age=timedelta(days=1))

    assert await place.broker().purge_dead_letters(timedelta(0), limit=1) == 1

    assert [row.message_id for row in graves(place)] == [SECOND]


async def test_a_failed_message_is_buried_with_its_whole_history(place: Place) -> None:
    broker = place.broker(worker_name="worker-1")

    @broker.subscriber("orders", retry_strategy=NoRetry())
    async def handle(body: int) -> None:
        raise ValueError("seven")

    async with broker:
        await broker.start()
        await broker.publish(7, "orders", message_id=FIRST, key="k", priority=2, headers={"tenant": "acme"})
        await until(lambda: len(graves(place)), 1)

    (grave,) = graves(place)
    assert place.rows() == []
    assert (grave.message_id, grave.queue, grave.key, grave.payload, grave.priority) == (FIRST, "orders", "k", b"7", 2)
    assert grave.headers["tenant"] == "acme"
    assert (grave.attempts_count, grave.deliveries_count, grave.worker) == (1, 1, "worker-1")
    assert (grave.failure_reason, grave.last_exception) == ("retry_terminal", "ValueError: seven")
    assert grave.created_at <= grave.first_attempt_at <= grave.last_attempt_at
    assert abs(grave.failed_at - grave.last_attempt_at) < timedelta(seconds=1)


# Without a dead-letter table


async def test_without_a_dead_letter_table_a_dead_message_is_parked(place: Place) -> None:
    broker = place.broker(outbox_table=place.tables.outbox)
    handled = 0

    @broker.subscriber("orders", retry_strategy=NoRetry())
    async def handle(body: int) -> None:
        nonlocal handled
        handled += 1
        raise ValueError("seven")

    async with broker:
        await broker.start()
        await broker.publish(7, "orders")
        await until(lambda: [row.failure_reason for row in place.rows()], ["retry_terminal"])
        await broker.publish(8, "letters")
        stats = await broker.stats()
        (parked, _) = await broker.fetch_unprocessed()

    (row, _) = place.rows()
    assert handled == 1
    assert (row.last_exception, row.attempts_count, row.acquired_token) == ("ValueError: seven", 1, None)
    assert (parked.failure_reason, parked.leased) == ("retry_terminal", False)
    assert (stats["orders"].dead, stats["orders"].ready, stats["letters"].ready) == (1, 0, 1)


async def test_a_parked_message_is_redriven_in_place(place: Place) -> None:
    broker = place.broker(outbox_table=place.tables.outbox)
    fail = True
    handled: list[int] = []

    @broker.subscriber("orders", retry_strategy=NoRetry())
    async def handle(body: int) -> None:
        if fail:
            raise ValueError("seven")
        handled.append(body)

    async with broker:
        await broker.start()
        await broker.publish(7, "orders")
        await until(lambda: [row.failure_reason for row in place.rows()], ["retry_terminal"])
        fail = False

        assert await broker.redrive(dry_run=True) == 1
        assert await broker.redrive(queue="letters") == 0
        assert await broker.redrive(queue="orders", reason="retry_terminal") == 1

        await until(lambda: (handled, place.rows()), ([7], []))


@pytest.mark.parametrize("table", ["pause", "resume", "purge"])
async def test_a_feature_without_its_table_says_how_to_make_it(either: Place, table: str) -> None:
    broker = either.broker(outbox_table=either.tables.outbox)
    use: Callable[[], Any] = {
        "pause": lambda: broker.pause("orders"),
        "resume": lambda: broker.resume("orders"),
        "purge": lambda: broker.purge_dead_letters(timedelta(1)),
    }[table]

    with pytest.raises(MissingTable) as caught:
        await use()

    feature, name = ("purge_dead_letters", "dead-letters") if table == "purge" else ("pause", "queues")
    assert isinstance(caught.value, LookupError)
    assert isinstance(caught.value, OutboxError)
    assert str(caught.value) == (
        f"{feature} needs the {name} table; make it with make_outbox_tables(metadata), "
        "or with make_dlq_table(metadata) for dead letters alone"
    )


async def test_stats_without_the_other_tables_leave_them_out(either: Place) -> None:
    bury(either, (FIRST, "orders", "rejected"))
    broker = either.broker(outbox_table=either.tables.outbox)
    await broker.publish(1, "orders")

    stats = await broker.stats()

    assert (stats["orders"].ready, stats["orders"].dead, stats["orders"].paused) == (1, 0, False)


# Statistics


async def test_stats_count_each_queue(place: Place) -> None:
    broker = place.broker()
    await broker.publish_batch(1, 2, 3, queue="orders")
    await broker.publish(4, "orders", activate_in=timedelta(hours=1))
    await broker.publish(5, "letters", activate_in=timedelta(hours=1))
    bury(place, (FIRST, "letters", "rejected"), (SECOND, "parcels", "rejected"))
    await broker.pause("parcels")

    stats = await broker.stats()

    assert list(stats.queues) == ["letters", "orders", "parcels"]
    orders, letters, parcels = stats["orders"], stats["letters"], stats["parcels"]
    assert (orders.ready, orders.scheduled, orders.leased, orders.dead, orders.paused) == (3, 1, 0, 0, False)
    assert (letters.ready, letters.scheduled, letters.dead, letters.oldest_age) == (0, 1, 1, None)
    assert (parcels.ready, parcels.dead, parcels.paused) == (0, 1, True)
    assert orders.oldest_age is not None
    assert 0 <= orders.oldest_age < 5


async def test_a_queue_that_has_nothing_has_zeros(either: Place) -> None:
    stats = await either.broker().stats()

    assert stats.queues == {}
    assert (stats["orders"].queue, stats["orders"].ready, stats["orders"].oldest_age) == ("orders", 0, None)


# Pausing


async def test_a_paused_queue_is_not_handled_until_it_is_resumed(place: Place) -> None:
    broker = place.broker()
    handled: list[int] = []

    @broker.subscriber(["orders", "letters"])
    async def handle(body: int) -> None:
        handled.append(body)

    await broker.pause("orders")
    async with broker:
        await broker.start()
        await broker.publish(1, "orders")
        await broker.publish(2, "letters")
        await until(lambda: (handled, [row.payload for row in place.rows()]), ([2], [b"1"]))

        await broker.resume("orders")
        await until(lambda: handled, [2, 1])


async def test_a_running_worker_obeys_a_pause(place: Place) -> None:
    broker = place.broker()
    handled: list[int] = []
    marks: list[str] = []

    @broker.subscriber("orders")
    async def handle(body: int) -> None:
        handled.append(body)

    @broker.subscriber("marks")
    async def mark(body: str) -> None:
        marks.append(body)

    async def is_left_alone(number: int) -> bool:
        """A mark that is published later and handled proves that a claim has passed over the order."""
        await broker.publish(number, "orders")
        before = len(marks)
        await broker.publish("mark", "marks")
        await until(lambda: (len(marks), rows_of("marks")), (before + 1, []))
        return rows_of("orders") == [(str(number).encode(), None)]

    def rows_of(queue: str) -> list[tuple[bytes, datetime | None]]:
        return [(row.payload, row.leased_until) for row in place.rows() if row.queue == queue]

    async with broker, asyncio.timeout(5):
        await broker.start()
        await broker.publish(0, "orders")
        await until(lambda: handled, [0])
        await broker.pause("orders")
        number = 1
        while not await is_left_alone(number):
            await until(place.rows, [])
            number += 1

        await broker.publish(101, "orders")
        await broker.publish("mark", "marks")
        await until(lambda: rows_of("marks"), [])

        assert handled == list(range(number))
        assert [payload for payload, _ in rows_of("orders")] == [str(number).encode(), b"101"]


async def test_pausing_twice_and_resuming_twice_change_nothing_more(place: Place) -> None:
    broker = place.broker()
    await broker.pause("orders")
    (first,) = place.rows(place.tables.queues)
    await broker.pause("orders")
    (second,) = place.rows(place.tables.queues)
    await broker.resume("orders")
    await broker.resume("orders")
    (third,) = place.rows(place.tables.queues)

    assert first.paused_at is not None
    assert second.paused_at == first.paused_at
    assert third.paused_at is None


async def test_a_pause_goes_with_its_session(place: Place) -> None:
    broker = place.broker()
    async with AsyncSession(place.engine) as session:
        await broker.pause("orders", session)
        await session.rollback()

    assert (await broker.stats())["orders"].paused is False


# Health


def consuming(place: Place, engine: AsyncEngine | None = None) -> OutboxBroker:
    broker = OutboxBroker(engine or place.engine, outbox_table=place.tables, logger=None)

    @broker.subscriber("orders")
    async def handle(body: object) -> None: ...

    return broker


async def test_ping_is_true_exactly_while_the_worker_runs(place: Place) -> None:
    broker = consuming(place)
    async with broker:
        connected = await broker.ping(1)
        await broker.start()
        running = [await broker.ping(timeout) for timeout in (1, 5.0, None)]
    stopped = await broker.ping(1)

    assert (connected, running, stopped) == (False, [True, True, True], False)


async def test_ping_of_a_broker_that_only_publishes_asks_the_database(place: Place) -> None:
    broker = place.broker()
    before = await broker.ping(1)
    async with broker:
        await broker.start()
        running = await broker.ping(1)

    assert (before, running) == (False, True)


async def test_ping_of_a_broker_without_a_database_is_false(either: Place) -> None:
    assert await OutboxBroker(outbox_table=either.tables).ping(1) is False


async def test_ping_is_false_while_the_database_is_gone_and_true_when_it_is_back(
    fresh_postgres: Place, recwarn: pytest.WarningsRecorder
) -> None:
    place = fresh_postgres
    name = place.url.database
    server = place.url.set(database="postgres")
    broker = consuming(place)
    async with broker:
        await broker.start()
        assert await broker.ping(5)
        place.sync_engine.dispose()
        execute(server, f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS false')
        execute(server, "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", name)
        gone = [await broker.ping(2), await broker.ping(2)]

        execute(server, f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS true')
        await until(lambda: broker.ping(2), True)

    assert gone == [False, False]
    assert recwarn.list == []


class Wire:
    """A TCP wire to the server that can be cut without either side being told."""

    def __init__(self) -> None:
        self._flows = asyncio.Event()
        self._flows.set()
        self._tasks: set[asyncio.Task[None]] = set()

    def stall(self) -> None:
        self._flows.clear()

    @asynccontextmanager
    async def to(self, place: Place) -> AsyncIterator[AsyncEngine]:
        async def connect(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            try:
                there, back = await self._connect(place)
                await asyncio.gather(self._copy(reader, back), self._copy(there, writer))
            finally:
                writer.close()
                back.close()

        def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.create_task(connect(reader, writer))
            self._tasks.add(task)

        server = await asyncio.start_server(accept, "127.0.0.1", 0)
        url = place.async_url.set(host="127.0.0.1", port=server.sockets[0].getsockname()[1], query={})
        engine = create_async_engine(url)
        async with server:
            yield engine
            await engine.dispose()
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _connect(self, place: Place) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        port = place.url.port or 5432
        if folder := place.url.query.get("host"):
            return await asyncio.open_unix_connection(f"{folder}/.s.PGSQL.{port}")
        return await asyncio.open_connection(place.url.host, port)

    async def _copy(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65_536):
            await self._flows.wait()
            writer.write(data)
        writer.close()


@pytest.mark.parametrize("timeout", [0.1, 0.5])
async def test_ping_keeps_to_its_timeout_when_the_database_says_nothing(postgres: Place, timeout: float) -> None:
    wire = Wire()
    async with wire.to(postgres) as engine:
        broker = consuming(postgres, engine)
        await broker.start()
        assert await broker.ping(5)
        wire.stall()

        started = monotonic()
        answers = [await broker.ping(timeout), await broker.ping(timeout)]
        seconds = monotonic() - started

        wire._flows.set()
        await broker.stop()

    assert answers == [False, False]
    assert seconds < 2 * timeout + 0.5


async def test_ping_of_a_publisher_keeps_to_its_timeout_when_the_database_says_nothing(postgres: Place) -> None:
    wire = Wire()
    async with wire.to(postgres) as engine:
        broker = OutboxBroker(engine, outbox_table=postgres.tables)
        await broker.start()
        assert await broker.ping(5)
        wire.stall()

        started = monotonic()
        answer = await broker.ping(0.3)
        seconds = monotonic() - started

        wire._flows.set()
        await broker.stop()

    assert answer is False
    assert seconds < 0.8


# The schema


async def test_validate_schema_looks_at_every_table_of_the_broker(fresh_either: Place) -> None:
    await fresh_either.broker().validate_schema()
    fresh_either.run("DROP TABLE outbox_queues")

    await fresh_either.broker(outbox_table=fresh_either.tables.outbox).validate_schema()
    await fresh_either.broker(
        outbox_table=fresh_either.tables.outbox, dlq_table=fresh_either.tables.dead_letters
    ).validate_schema()
    with pytest.raises(LookupError, match=r"^outbox_queues does not fit this version: table outbox_queues does not"):
        await fresh_either.broker().validate_schema()


async def test_a_dead_letter_table_can_have_any_name(fresh_either: Place) -> None:
    graves = make_dlq_table(fresh_either.metadata, "graveyard")
    fresh_either.metadata.create_all(fresh_either.sync_engine)
    broker = fresh_either.broker(outbox_table=fresh_either.tables.outbox, dlq_table=graves)

    @broker.subscriber("orders", retry_strategy=NoRetry())
    async def handle(body: int) -> None:
        raise ValueError(body)

    async with broker:
        await broker.start()
        await broker.publish(7, "orders")
        await until(lambda: [row.last_exception for row in fresh_either.rows(graves)], ["ValueError: 7"])


async def test_stats_are_plain_data(either: Place) -> None:
    await either.broker().publish(1, "orders")

    stats = await either.broker().stats()

    figures = {queue: one.ready for queue, one in stats.queues.items()}
    assert json.dumps(figures) == '{"orders": 1}'
