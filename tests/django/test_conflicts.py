"""Transactions that the database ends for the sake of others are run again as a whole, and nobody has failed."""

import asyncio
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import pytest
from asgiref.sync import sync_to_async
from django.db import OperationalError, connections, transaction
from sqlalchemy import URL, MetaData, create_engine

from outbox_django import ConstantRetry, NoRetry, OutboxBroker, OutboxMessage, OutboxResponse, publish, publish_batch
from outbox_django.models import DeadLetter
from outbox_django.models import OutboxMessage as Row
from outbox_sqlalchemy import make_outbox_tables
from tests.conflicts import POINTS, STATES, Point, conflict, effects, make_effects
from tests.databases import execute, with_driver
from tests.django.conftest import leading
from tests.django.running import consuming, drain, until


@pytest.fixture
def contended(database: URL) -> Iterator[URL]:
    """A database of the test's own, under the alias "contended", with the outbox and the handlers' table."""
    metadata = MetaData()
    make_outbox_tables(metadata)
    engine = create_engine(with_driver(database, "psycopg"))
    metadata.create_all(engine)
    engine.dispose()
    make_effects(database)
    with leading("contended", database):
        yield database


@pytest.fixture(params=["sync", "async"])
def handled_by(request: pytest.FixtureRequest) -> Callable[[Any], Any]:
    """A synchronous function as a handler, and as the thread's work of an asynchronous one."""

    def subscribed(call: Callable[[int, OutboxMessage], object]) -> Callable[..., object]:
        if request.param == "sync":

            def handler(body: int, message: OutboxMessage) -> object:
                return call(body, message)

            return handler

        async def ahandler(body: int, message: OutboxMessage) -> object:
            return await sync_to_async(call)(body, message)

        return ahandler

    return subscribed


def has_effect(n: int) -> None:
    with connections["contended"].cursor() as cursor:
        cursor.execute("INSERT INTO effects (n) VALUES (%s)", [n])


def queued() -> list[tuple[str, Any]]:
    return sorted((row.queue, row.body) for row in Row.objects.using("contended"))


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("point", POINTS)
def test_it_is_run_again_and_no_attempt_is_counted(contended: URL, handled_by: Any, point: Point, state: str) -> None:
    conflict(contended, point, times=2, state=state)
    broker = OutboxBroker("contended")
    runs: list[tuple[int, int]] = []

    def handle(n: int, message: OutboxMessage) -> OutboxResponse:
        runs.append((message.attempt, message.deliveries))
        publish(n, "mails", using="contended")
        has_effect(n)
        return OutboxResponse(n, queue="chosen")

    subscriber = broker.subscriber("q", transactional=True, retry_strategy=NoRetry())
    broker.publisher("replies")(subscriber(handled_by(handle)))
    publish(7, "q", using="contended", standalone=True, reply_to="answers")
    drain(broker)

    assert runs == [(1, 1)] * 3
    assert effects(contended) == [7]
    assert queued() == [("answers", 7), ("chosen", 7), ("mails", 7), ("replies", 7)]
    assert not DeadLetter.objects.using("contended").exists()


def test_a_batch_is_run_again_as_a_whole(contended: URL) -> None:
    conflict(contended, "the commit", times=1)
    broker = OutboxBroker("contended")
    batches: list[list[int]] = []

    @broker.subscriber("q", transactional=True, batch=True, retry_strategy=NoRetry())
    def handle(numbers: list[int]) -> None:
        batches.append(numbers)
        for n in numbers:
            has_effect(n)

    publish_batch(1, 2, 3, queue="q", using="contended", standalone=True)
    drain(broker)

    assert batches == [[1, 2, 3], [1, 2, 3]]
    assert effects(contended) == [1, 2, 3]


@pytest.mark.parametrize("savepoint", [True, False])
def test_one_that_the_handler_swallowed_is_its_own_and_loses_nothing(
    contended: URL, handled_by: Any, savepoint: bool
) -> None:
    """A savepoint takes it back, and the handler goes on without it; otherwise the whole transaction has failed."""
    conflict(contended, "a statement of the handler's", times=1)
    broker = OutboxBroker("contended")
    attempts: list[int] = []

    def handle(n: int, message: OutboxMessage) -> None:
        attempts.append(message.attempt)
        with suppress(OperationalError), transaction.atomic(using="contended", savepoint=savepoint):
            has_effect(n)

    retry = ConstantRetry(delay_seconds=0.01)
    broker.subscriber("q", transactional=True, retry_strategy=retry)(handled_by(handle))
    publish(7, "q", using="contended", standalone=True)

    async def run() -> None:
        async with consuming(broker):
            await until(lambda: execute(contended, "SELECT count(*) FROM outbox") == [(0,)])

    asyncio.run(run())
    assert (attempts, effects(contended)) == (([1], []) if savepoint else ([1, 2], [7]))


def test_a_file_that_somebody_else_writes_to_is_a_conflict(django_databases: Any) -> None:
    """What SQLite says after its busy timeout."""
    broker = OutboxBroker("lite")
    writer = sqlite3.connect(str(django_databases["lite"].database), isolation_level=None, check_same_thread=False)
    runs: list[int] = []

    @broker.subscriber("q", transactional=True, retry_strategy=NoRetry())
    def handle(n: int, message: OutboxMessage) -> None:
        runs.append(message.attempt)
        if len(runs) > 1:
            return
        with pytest.raises(sqlite3.OperationalError) as locked:  # the lane's own transaction has the file
            writer.execute("PRAGMA busy_timeout = 0").execute("BEGIN IMMEDIATE")
        raise OperationalError("database is locked") from locked.value

    publish(7, "q", using="lite", standalone=True)
    drain(broker)
    writer.close()

    assert runs == [1, 1]
    assert not DeadLetter.objects.using("lite").exists()


def test_serializable_workers_that_all_update_one_row_end_every_message_once(contended: URL, handled_by: Any) -> None:
    execute(contended, f'ALTER DATABASE "{contended.database}" SET default_transaction_isolation = serializable')
    execute(contended, "CREATE TABLE counter (n integer)")
    execute(contended, "INSERT INTO counter VALUES (0)")
    broker = OutboxBroker("contended", concurrency=4)
    attempts: list[int] = []

    def handle(n: int, message: OutboxMessage) -> int:
        attempts.append(message.attempt)
        with connections["contended"].cursor() as cursor:
            cursor.execute("SELECT n FROM counter")
            (before,) = cursor.fetchone()
            cursor.execute("UPDATE counter SET n = %s", [before + 1])
        has_effect(n)
        return n

    subscriber = broker.subscriber("q", transactional=True, retry_strategy=ConstantRetry(delay_seconds=0.01))
    broker.publisher("done")(subscriber(handled_by(handle)))
    publish_batch(*range(150), queue="q", using="contended", standalone=True)

    async def run() -> None:
        async with consuming(broker):
            await until(lambda: execute(contended, "SELECT count(*) FROM outbox WHERE queue = 'q'") == [(0,)])

    asyncio.run(run())
    assert len(attempts) > 150, "they do get into each other's way"
    assert set(attempts) == {1}
    assert effects(contended) == list(range(150))
    assert queued() == [("done", n) for n in range(150)]
    assert execute(contended, "SELECT n FROM counter") == [(150,)]
    assert not DeadLetter.objects.using("contended").exists()
