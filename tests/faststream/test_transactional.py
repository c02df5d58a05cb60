"""Handlers whose writes, messages and own end are one transaction."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Annotated
from uuid import uuid4

import pytest
from faststream import AckPolicy
from faststream.exceptions import AckMessage, NackMessage, RejectMessage
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from outbox_core.errors import OptionError
from outbox_core.faststream.annotations import Context
from outbox_core.retry import ConstantRetry, NoRetry
from outbox_sqlalchemy import OutboxBroker, OutboxMessage, OutboxResponse
from tests.places import Place, running, until


def mails(place: Place) -> list[str]:
    return [row.payload.decode() for row in place.rows() if row.queue == "mails"]


def orders(place: Place) -> int:
    return sum(row.queue == "orders" for row in place.rows())


async def test_what_is_published_is_committed_with_the_end_of_the_message(both: Place) -> None:
    broker = both.broker()

    @broker.subscriber("orders", transactional=True)
    async def handle(body: int, message: OutboxMessage) -> None:
        await broker.publish(f"mail {body}", "mails", session=message.session)

    await broker.publish_batch(1, 2, 3, queue="orders")
    async with running(broker):
        await broker.drained()

    assert mails(both) == ["mail 1", "mail 2", "mail 3"]
    assert orders(both) == 0


async def test_a_handlers_own_writes_are_committed_with_the_end_of_the_message(both: Place) -> None:
    both.run("CREATE TABLE IF NOT EXISTS written (body integer)", "DELETE FROM written")
    broker = both.broker()

    @broker.subscriber("orders", transactional=True, retry_strategy=ConstantRetry(delay_seconds=0.01))
    async def handle(body: int, message: OutboxMessage) -> None:
        await message.session.execute(text("INSERT INTO written VALUES (:body)"), {"body": body})
        if message.attempt < 3:
            raise ValueError("not yet")

    await broker.publish(7, "orders")
    async with running(broker):
        await until(both.rows, [])

    with both.sync_engine.connect() as connection:
        assert connection.execute(text("SELECT body FROM written")).fetchall() == [(7,)]
    both.run("DROP TABLE written")


async def test_what_is_published_without_a_session_is_in_the_transaction_too(both: Place) -> None:
    broker = both.broker(require_transaction="error")
    mailer = broker.publisher("mails")

    @broker.publisher("mails")
    @broker.subscriber("orders", transactional=True, retry_strategy=ConstantRetry(delay_seconds=0.01))
    async def handle(body: int, message: OutboxMessage) -> OutboxResponse:
        await broker.publish(f"by the broker {message.attempt}", "mails")
        await broker.publish_batch(f"by a batch {message.attempt}", queue="mails")
        await mailer.publish(f"by a publisher {message.attempt}")
        if message.attempt == 1:
            raise ValueError("not yet")
        return OutboxResponse(f"replied {message.attempt}", queue="mails")

    await broker.publish(7, "orders", standalone=True)
    async with running(broker):
        await until(lambda: orders(both), 0)

    assert mails(both) == ["by the broker 2", "by a batch 2", "by a publisher 2", "replied 2", "replied 2"]


async def test_a_reply_is_taken_back_if_the_lease_was_lost(both: Place) -> None:
    broker = both.broker()
    handled = asyncio.Event()

    @broker.publisher("mails")
    @broker.subscriber("orders", transactional=True)
    async def handle(body: int) -> str:
        both.run(f"UPDATE outbox SET acquired_token = '{uuid4().hex}'")  # another worker's
        handled.set()
        return "nobody reads this"

    await broker.publish(7, "orders")
    async with running(broker):
        await handled.wait()
        await broker.drained()

    assert (mails(both), orders(both)) == ([], 1)


async def test_the_session_is_an_argument_if_the_handler_asks_for_it(place: Place) -> None:
    broker = place.broker()

    @broker.subscriber("orders", transactional=True)
    async def handle(body: int, session: Annotated[AsyncSession, Context("message.session")]) -> None:
        await broker.publish(type(session).__name__, "mails", session=session)

    await broker.publish(7, "orders")
    async with running(broker):
        await broker.drained()

    assert mails(place) == ["AsyncSession"]


async def test_a_task_that_outlives_its_handler_publishes_in_a_transaction_of_its_own(place: Place) -> None:
    broker = place.broker()
    ended = asyncio.Event()
    tasks: list[asyncio.Task[None]] = []

    async def later() -> None:
        await ended.wait()
        await broker.publish("afterwards", "mails")

    @broker.subscriber("orders", transactional=True)
    async def handle(body: int) -> None:
        tasks.append(asyncio.create_task(later()))

    await broker.publish(7, "orders")
    async with running(broker):
        await broker.drained()
        ended.set()
        await tasks[0]

    assert mails(place) == ["afterwards"]


async def test_another_brokers_publish_is_not_in_the_transaction(place: Place) -> None:
    broker, other = place.broker(), place.broker()

    @broker.subscriber("orders", transactional=True, retry_strategy=NoRetry())
    async def handle(body: int) -> None:
        await other.publish("stays", "mails")
        raise ValueError("takes back what is this broker's")

    await broker.publish(7, "orders")
    async with running(broker):
        await broker.drained()

    assert mails(place) == ["stays"]


async def test_a_failure_takes_back_what_was_published_and_is_retried(both: Place) -> None:
    broker = both.broker()
    attempts: list[int] = []

    @broker.subscriber("orders", transactional=True, retry_strategy=ConstantRetry(delay_seconds=0.01))
    async def handle(body: int, message: OutboxMessage) -> None:
        attempts.append(message.attempt)
        await broker.publish(message.attempt, "mails", session=message.session)
        if message.attempt < 3:
            raise ValueError("not yet")

    await broker.publish(7, "orders")
    async with running(broker):
        await until(lambda: orders(both), 0)

    assert attempts == [1, 2, 3]
    assert mails(both) == ["3"]


def votes() -> list[tuple[str, Callable[[OutboxMessage], Awaitable[None]], bool]]:
    async def nack(message: OutboxMessage) -> None:
        await message.nack(delay=3_600)

    async def reject(message: OutboxMessage) -> None:
        await message.reject()

    async def ack(message: OutboxMessage) -> None:
        await message.ack()

    async def raised_nack(message: OutboxMessage) -> None:
        raise NackMessage(delay=3_600)

    async def raised_reject(message: OutboxMessage) -> None:
        raise RejectMessage

    async def raised_ack(message: OutboxMessage) -> None:
        raise AckMessage

    cases = [
        (nack, False),
        (reject, False),
        (ack, True),
        (raised_nack, False),
        (raised_reject, False),
        (raised_ack, True),
    ]
    return [(vote.__name__, vote, commits) for vote, commits in cases]


@pytest.mark.parametrize(("name", "vote", "commits"), votes())
async def test_only_an_ack_commits(
    place: Place, name: str, vote: Callable[[OutboxMessage], Awaitable[None]], commits: bool
) -> None:
    broker = place.broker()

    @broker.subscriber("orders", transactional=True)
    async def handle(body: int, message: OutboxMessage) -> None:
        await broker.publish(name, "mails", session=message.session)
        await vote(message)

    await broker.publish(7, "orders")
    async with running(broker):
        await broker.drained()

    assert mails(place) == ([name] if commits else [])
    assert orders(place) == (1 if "nack" in name else 0)
    assert len(place.rows(place.tables.dead_letters)) == (1 if "reject" in name else 0)


async def test_manual_without_a_vote_rolls_back_and_is_retried(place: Place) -> None:
    broker = place.broker()

    @broker.subscriber(
        "orders",
        transactional=True,
        ack_policy=AckPolicy.MANUAL,
        retry_strategy=ConstantRetry(delay_seconds=0.01),
    )
    async def handle(body: int, message: OutboxMessage) -> None:
        await broker.publish(message.attempt, "mails", session=message.session)
        if message.attempt == 3:
            await message.ack()

    await broker.publish(7, "orders")
    async with running(broker):
        await until(lambda: orders(place), 0)

    assert mails(place) == ["3"]


async def test_a_batch_is_one_transaction(both: Place) -> None:
    broker = both.broker()
    sizes: list[int] = []

    @broker.subscriber("orders", transactional=True, batch=True, retry_strategy=ConstantRetry(delay_seconds=0.01))
    async def handle(bodies: list[int], message: OutboxMessage) -> None:
        sizes.append(len(bodies))
        for delivery in message.deliveries_in_hand:
            await broker.publish(delivery.payload.decode(), "mails", session=delivery.session)
        if message.attempt == 1:
            raise ValueError("not yet")

    await broker.publish_batch(1, 2, 3, queue="orders")
    async with running(broker):
        await until(lambda: orders(both), 0)

    assert sizes[0] == 3
    assert sorted(mails(both)) == ["1", "2", "3"]


async def test_ack_first_cannot_be_transactional(place: Place) -> None:
    broker = place.broker()

    @broker.subscriber("orders", transactional=True, ack_policy=AckPolicy.ACK_FIRST)
    async def handle(body: int) -> None: ...

    async with broker:
        with pytest.raises(
            OptionError, match=r"subscriber of orders cannot be transactional with AckPolicy\.ACK_FIRST"
        ):
            await broker.start()
        assert not broker.running


async def test_ack_first_of_the_broker_cannot_be_transactional_either(place: Place) -> None:
    broker: OutboxBroker = place.broker(ack_policy=AckPolicy.ACK_FIRST)

    @broker.subscriber("orders", transactional=True)
    async def handle(body: int) -> None: ...

    async with broker:
        with pytest.raises(OptionError, match="choose one"):
            await broker.start()


async def test_beside_a_transactional_subscriber_others_have_no_transaction(place: Place) -> None:
    broker = place.broker()
    sessions: list[bool] = []

    @broker.subscriber("orders")
    async def handle(body: int, message: OutboxMessage) -> None:
        sessions.append(message.session is not None)

    @broker.subscriber("mails", transactional=True)
    async def mail(body: int, message: OutboxMessage) -> None:
        sessions.append(message.session is not None)

    async with running(broker):
        await broker.publish(1, "orders")
        await broker.drained()
        await broker.publish(1, "mails")
        await broker.drained()

    assert sessions == [False, True]
