"""Transactions that the database ends for the sake of others are run again as a whole, and nobody has failed."""

import asyncio
import logging
import sqlite3
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from typing import Annotated, Any

import pytest
from faststream import BaseMiddleware, Depends
from sqlalchemy import Column, Integer, MetaData, Table, event, insert, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import registry

from outbox_core.completion import TRIES
from outbox_sqlalchemy import ConstantRetry, NoRetry, OutboxMessage, OutboxResponse, OutboxSession
from tests.conflicts import POINTS, STATES, Point, conflict, conflicts, effects
from tests.places import Place, running, until

EFFECTS = Table("effects", MetaData(), Column("id", Integer, primary_key=True), Column("n", Integer))
SOON = ConstantRetry(delay_seconds=0.01)


class Effect:
    """The same, mapped."""

    n: int


registry().map_imperatively(Effect, EFFECTS)


def queued(place: Place, queue: str) -> list[str]:
    return [row.payload.decode() for row in place.rows() if row.queue == queue]


def dead(place: Place) -> list[Any]:
    return list(place.rows(place.tables.dead_letters))


async def has_effect(session: AsyncSession, n: int) -> None:
    await session.execute(insert(EFFECTS).values(n=n))


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("point", POINTS)
async def test_it_is_run_again_and_no_attempt_is_counted(contended: Place, point: Point, state: str) -> None:
    conflict(contended.url, point, times=2, state=state)
    broker = contended.broker()
    runs: list[tuple[int, int]] = []

    @broker.publisher("replies")
    @broker.subscriber("orders", transactional=True, retry_strategy=NoRetry())
    async def handle(n: int, message: OutboxMessage, session: OutboxSession) -> OutboxResponse:
        runs.append((message.attempt, message.deliveries))
        await broker.publish(n, "mails")
        await has_effect(session, n)
        return OutboxResponse(n, queue="chosen")

    await broker.publish(7, "orders", reply_to="answers")
    async with running(broker):
        await broker.drained()

    assert runs == [(1, 1)] * 3
    assert effects(contended.url) == [7]
    assert dead(contended) == []
    assert {row.queue: row.payload for row in contended.rows()} == dict.fromkeys(
        ["mails", "chosen", "replies", "answers"], b"7"
    )
    assert len(contended.rows()) == 4


async def test_a_flush_that_ends_in_a_conflict_is_one_too(contended: Place) -> None:
    conflict(contended.url, "a statement of the handler's", times=2)
    broker = contended.broker()

    @broker.subscriber("orders", transactional=True, retry_strategy=NoRetry())
    async def handle(n: int, session: OutboxSession) -> None:
        effect = Effect()
        effect.n = n
        session.add(effect)  # flushed at the commit

    await broker.publish(7, "orders")
    async with running(broker):
        await broker.drained()

    assert effects(contended.url) == [7]
    assert dead(contended) == []


async def test_a_batch_is_run_again_as_a_whole(contended: Place) -> None:
    conflict(contended.url, "the commit", times=1)
    broker = contended.broker()
    batches: list[list[int]] = []

    @broker.subscriber("orders", transactional=True, batch=True, retry_strategy=NoRetry())
    async def handle(numbers: list[int], session: OutboxSession) -> None:
        batches.append(numbers)
        for n in numbers:
            await has_effect(session, n)

    await broker.publish_batch(1, 2, 3, queue="orders")
    async with running(broker):
        await broker.drained()

    assert batches == [[1, 2, 3], [1, 2, 3]]
    assert effects(contended.url) == [1, 2, 3]
    assert dead(contended) == []


async def test_what_always_conflicts_is_a_failure_in_the_end(
    contended: Place, caplog: pytest.LogCaptureFixture
) -> None:
    conflict(contended.url, "the commit", times=1_000_000, state="40P01")
    broker = contended.broker()

    @broker.subscriber("orders", transactional=True, retry_strategy=NoRetry())
    async def handle(n: int, session: OutboxSession) -> None:
        await has_effect(session, n)

    await broker.publish(7, "orders")
    with caplog.at_level(logging.WARNING, "outbox"):
        async with running(broker, patience=30.0):
            await broker.drained()

    (letter,) = dead(contended)
    assert (letter.failure_reason, letter.attempts_count, letter.deliveries_count) == ("retry_terminal", 1, 1)
    assert "deadlock detected" in letter.last_exception
    assert conflicts(contended.url) >= TRIES
    assert effects(contended.url) == []
    (message,) = caplog.messages
    assert message.startswith("the transaction of message 1 in 'orders' has conflicted with others ")


class ShopError(Exception):
    """What an application makes of errors that it does not expect."""


def reactions() -> dict[str, tuple[Callable[[Exception], Exception], bool]]:
    def raised_from(error: Exception) -> Exception:
        raise ShopError from error

    def raised_beside(error: Exception) -> Exception:
        raise ShopError

    def raised_from_none(error: Exception) -> Exception:
        raise ShopError from None

    return {"from": (raised_from, True), "beside": (raised_beside, True), "from None": (raised_from_none, False)}


@pytest.mark.parametrize("reaction", reactions())
async def test_an_error_that_is_made_of_it_counts_unless_it_denies_that(contended: Place, reaction: str) -> None:
    conflict(contended.url, "a statement of the handler's", times=1)
    react, is_conflict = reactions()[reaction]
    broker = contended.broker()
    attempts: list[int] = []

    @broker.subscriber("orders", transactional=True, retry_strategy=SOON)
    async def handle(n: int, message: OutboxMessage, session: OutboxSession) -> None:
        attempts.append(message.attempt)
        try:
            await has_effect(session, n)
        except DBAPIError as error:
            react(error)

    await broker.publish(7, "orders")
    async with running(broker):
        await until(lambda: queued(contended, "orders"), [])

    assert attempts == ([1, 1] if is_conflict else [1, 2])
    assert effects(contended.url) == [7]


async def test_one_that_is_swallowed_is_an_ordinary_failure_and_loses_nothing(contended: Place) -> None:
    conflict(contended.url, "a statement of the handler's", times=1)
    broker = contended.broker()
    attempts: list[int] = []

    @broker.subscriber("orders", transactional=True, retry_strategy=SOON)
    async def handle(n: int, message: OutboxMessage, session: OutboxSession) -> None:
        attempts.append(message.attempt)
        with suppress(DBAPIError):  # and the transaction is of no use any more
            await has_effect(session, n)

    await broker.publish(7, "orders")
    async with running(broker):
        await until(lambda: queued(contended, "orders"), [])

    assert attempts == [1, 2]
    assert effects(contended.url) == [7]


async def test_one_that_a_savepoint_took_back_is_the_handlers_own(contended: Place) -> None:
    conflict(contended.url, "a statement of the handler's", times=1, state="40P01")
    broker = contended.broker()
    attempts: list[int] = []

    @broker.subscriber("orders", transactional=True, retry_strategy=SOON)
    async def handle(n: int, message: OutboxMessage, session: OutboxSession) -> None:
        attempts.append(message.attempt)
        try:
            async with session.begin_nested():
                await has_effect(session, n)
        except DBAPIError:
            await has_effect(session, -n)

    await broker.publish(7, "orders")
    async with running(broker):
        await broker.drained()

    assert attempts == [1]
    assert effects(contended.url) == [-7]


@pytest.mark.parametrize("vote", ["ack", "nack", "reject"])
async def test_a_vote_of_the_run_that_is_undone_is_withdrawn(contended: Place, vote: str) -> None:
    conflict(contended.url, "a statement of the handler's", times=1)
    broker = contended.broker()
    runs: list[tuple[object, object]] = []

    @broker.subscriber("orders", transactional=True, retry_strategy=NoRetry())
    async def handle(n: int, message: OutboxMessage, session: OutboxSession) -> None:
        runs.append((message.committed, session))
        if len(runs) == 1:
            await getattr(message, vote)()
        await has_effect(session, n)

    await broker.publish(7, "orders")
    async with running(broker):
        await broker.drained()

    ((committed, session), (committed_again, session_again)) = runs
    assert (committed, committed_again) == (None, None)
    assert session is not session_again
    assert effects(contended.url) == [7]
    assert dead(contended) == queued(contended, "orders") == []


async def test_dependencies_and_middlewares_are_entered_and_left_for_each_run(contended: Place) -> None:
    conflict(contended.url, "a statement of the handler's", times=2)
    told: list[str] = []

    class Telling(BaseMiddleware):
        async def __aenter__(self) -> "Telling":
            told.append("enter")
            return self

        async def __aexit__(self, *error: object) -> bool:
            told.append("leave")
            return False

    async def dependency() -> AsyncIterator[int]:
        told.append("open")
        try:
            yield 1
        finally:
            told.append("close")

    broker = contended.broker(middlewares=[Telling])

    @broker.subscriber("orders", transactional=True, retry_strategy=NoRetry())
    async def handle(n: int, session: OutboxSession, one: Annotated[int, Depends(dependency)]) -> None:
        await has_effect(session, n)

    await broker.publish(7, "orders")
    async with running(broker):
        told.clear()  # a publish has middlewares too
        await broker.drained()

    assert told == ["enter", "open", "close", "leave"] * 3


async def test_the_log_of_errors_has_no_conflict_that_came_to_nothing(
    contended: Place, caplog: pytest.LogCaptureFixture
) -> None:
    conflict(contended.url, "a statement of the handler's", times=2)
    broker = contended.broker(logger=logging.getLogger("shop"))

    @broker.subscriber("orders", transactional=True, retry_strategy=NoRetry())
    async def handle(n: int, session: OutboxSession) -> None:
        await has_effect(session, n)

    await broker.publish(7, "orders")
    with caplog.at_level(logging.INFO):
        async with running(broker):
            await broker.drained()

    assert effects(contended.url) == [7]
    assert [record.message for record in caplog.records if record.levelno > logging.INFO] == []


async def test_without_a_transaction_of_ours_it_is_an_ordinary_failure(contended: Place) -> None:
    conflict(contended.url, "the commit", times=1)
    broker = contended.broker()
    attempts: list[int] = []

    @broker.subscriber("orders", retry_strategy=SOON)
    async def handle(n: int, message: OutboxMessage) -> None:
        attempts.append(message.attempt)
        async with AsyncSession(contended.engine) as session, session.begin():
            await has_effect(session, n)

    await broker.publish(7, "orders")
    async with running(broker):
        await until(lambda: queued(contended, "orders"), [])

    assert attempts == [1, 2]
    assert effects(contended.url) == [7]


async def test_a_file_that_somebody_else_writes_to_is_a_conflict(place: Place) -> None:
    """What SQLite says after its busy timeout."""
    place.run("CREATE TABLE effects (id INTEGER PRIMARY KEY, n INTEGER)")
    place.engine = place.another_engine(connect_args={"timeout": 0.05})
    broker = place.broker()
    writer = sqlite3.connect(str(place.url.database), isolation_level=None)
    runs: list[int] = []

    @broker.subscriber("orders", transactional=True, retry_strategy=NoRetry())
    async def handle(n: int, message: OutboxMessage, session: OutboxSession) -> None:
        runs.append(message.attempt)
        if len(runs) == 1:
            writer.execute("BEGIN IMMEDIATE")
        try:
            await has_effect(session, n)
        finally:
            if writer.in_transaction:
                writer.rollback()

    await broker.publish(7, "orders")
    async with running(broker):
        await until(lambda: queued(place, "orders"), [])
    writer.close()

    assert runs == [1, 1]
    with place.sync_engine.connect() as connection:
        assert connection.execute(text("SELECT n FROM effects")).fetchall() == [(7,)]
    assert dead(place) == []


# The database's default isolation is serializable


async def test_serializable_workers_that_all_update_one_row_end_every_message_once(contended: Place) -> None:
    contended.run(
        f'ALTER DATABASE "{contended.url.database}" SET default_transaction_isolation = serializable',
        "CREATE TABLE counter (n integer)",
        "INSERT INTO counter VALUES (0)",
    )
    contended.engine = contended.another_engine()
    conflicting: list[object] = []
    event.listen(contended.engine.sync_engine, "handle_error", conflicting.append)
    broker = contended.broker()
    attempts: list[int] = []

    @broker.publisher("done")
    @broker.subscriber("orders", transactional=True, max_workers=4, retry_strategy=SOON)
    async def handle(n: int, message: OutboxMessage, session: OutboxSession) -> int:
        attempts.append(message.attempt)
        before = (await session.execute(text("SELECT n FROM counter"))).scalar_one()
        await session.execute(text("UPDATE counter SET n = :n"), {"n": before + 1})
        await has_effect(session, n)
        return n

    await broker.publish_batch(*range(200), queue="orders")
    async with running(broker, patience=60.0):
        await until(lambda: queued(contended, "orders"), [], patience=50.0)

    assert conflicting, "they do get into each other's way"
    assert set(attempts) == {1}
    assert effects(contended.url) == list(range(200))
    assert sorted(map(int, queued(contended, "done"))) == list(range(200))
    assert dead(contended) == []
    with contended.sync_engine.connect() as connection:
        assert connection.execute(text("SELECT n FROM counter")).scalar_one() == 200


async def test_a_conflict_does_not_outlast_the_time_that_a_handler_has(contended: Place) -> None:
    conflict(contended.url, "the commit", times=1_000_000)
    broker = contended.broker()

    @broker.subscriber("orders", transactional=True, handler_timeout=0.3, retry_strategy=NoRetry())
    async def handle(n: int, session: OutboxSession) -> None:
        await has_effect(session, n)

    await broker.publish(7, "orders")
    async with running(broker), asyncio.timeout(5):
        await broker.drained()

    (letter,) = dead(contended)
    assert letter.last_exception.startswith("TimeoutError")
