"""A FastStream subscriber of RabbitMQ behind an inbox, on a real server.

The server is the one that OUTBOX_TEST_RABBITMQ names, or one on this machine; without either, there is nothing to test on.
"""

import asyncio
import os
import socket
from collections.abc import AsyncIterator
from uuid import uuid4

import pytest
from faststream import AckPolicy
from faststream.rabbit import RabbitBroker, RabbitMessage, RabbitQueue
from sqlalchemy import Column, Integer, MetaData, Table, insert
from sqlalchemy.ext.asyncio import AsyncSession

from outbox_sqlalchemy import Inbox, make_inbox_table
from tests.places import Place, until

GIVEN = os.environ.get("OUTBOX_TEST_RABBITMQ")
URL = GIVEN or "amqp://guest:guest@127.0.0.1:5672/"

metadata = MetaData()
inbox = Inbox(make_inbox_table(metadata))
payments = Table("payments", metadata, Column("id", Integer, primary_key=True), Column("amount", Integer))


def is_there() -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", 5672)) == 0


@pytest.fixture
async def rabbit(fresh_either: Place) -> AsyncIterator[RabbitBroker]:
    if GIVEN is None and not is_there():
        pytest.skip("no RabbitMQ on this machine; OUTBOX_TEST_RABBITMQ may name one")
    metadata.create_all(fresh_either.sync_engine)
    async with RabbitBroker(URL, logger=None) as broker:
        yield broker


def amounts(place: Place) -> list[int]:
    return sorted(row.amount for row in place.rows(payments))


async def test_what_is_delivered_again_is_skipped_and_what_failed_is_not(
    rabbit: RabbitBroker, fresh_either: Place
) -> None:
    queue = RabbitQueue(f"payments-{uuid4().hex[:12]}", auto_delete=True, exclusive=True)
    answers: list[tuple[int, bool]] = []
    failing = {2}

    @rabbit.subscriber(queue, ack_policy=AckPolicy.NACK_ON_ERROR)
    async def pay(amount: int, message: RabbitMessage) -> None:
        async with AsyncSession(fresh_either.engine) as session, session.begin():
            new = await inbox.receive(message.message_id, "billing", session=session)
            answers.append((amount, new))
            if not new:
                return
            await session.execute(insert(payments).values(amount=amount))
            if amount in failing:
                failing.remove(amount)
                raise RuntimeError("takes the payment back; RabbitMQ delivers it again")

    await rabbit.start()
    for amount in (1, 2, 1, 2, 3):  # a producer that does not know whether it was heard says it again
        await rabbit.publish(amount, queue, message_id=f"payment-{amount}")

    await until(lambda: len(answers), 6)
    await until(lambda: amounts(fresh_either), [1, 2, 3])  # an answer is noted before its transaction is committed
    assert sorted(answers) == [(1, False), (1, True), (2, False), (2, True), (2, True), (3, True)]


async def test_two_deliveries_at_once_have_one_effect(rabbit: RabbitBroker, fresh_either: Place) -> None:
    queue = RabbitQueue(f"payments-{uuid4().hex[:12]}", auto_delete=True, exclusive=True)
    answers: list[bool] = []

    @rabbit.subscriber(queue)
    async def pay(amount: int, message: RabbitMessage) -> None:
        async with AsyncSession(fresh_either.engine) as session, session.begin():
            new = await inbox.receive(message.message_id, "billing", session=session)
            if new:
                await session.execute(insert(payments).values(amount=amount))
                await asyncio.sleep(0.05)
        answers.append(new)

    await rabbit.start()
    for _ in range(5):
        await rabbit.publish(1, queue, message_id="payment-1")

    await until(lambda: len(answers), 5)
    assert amounts(fresh_either) == [1]
    assert answers.count(True) == 1
