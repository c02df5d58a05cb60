"""Whoever publishes and whoever consumes: the same message arrives, and goes the same way."""

from datetime import timedelta
from time import monotonic
from typing import Any

from sqlalchemy import select

from outbox_core.faststream import OutboxBroker
from outbox_django.models import DeadLetter
from tests.mixed.consumers import Consumer, Seen
from tests.mixed.place import Shared, until
from tests.mixed.publishers import BODY, MESSAGE_ID, PUBLISHERS, QUEUE, Publish

HEADERS = {"tenant": "acme", "content-type": "application/json", "correlation_id": "checkout-42"}


def seen(attempt: int) -> Seen:
    """What every handler is to see."""
    return Seen(BODY, HEADERS, QUEUE, "checkout-42", str(MESSAGE_ID), "customer-7", 3, attempt)


async def test_a_message_arrives_as_it_was_published(shared: Shared, publish: Publish, consumer: Consumer) -> None:
    async with consumer.running():
        await publish()
        await consumer.until_seen(1)

    assert consumer.seen == [seen(attempt=1)]
    assert await shared.sqlalchemy.fetch_unprocessed() == []


async def test_a_scheduled_message_waits_for_its_time(publish: Publish, consumer: Consumer) -> None:
    async with consumer.running():
        published = monotonic()
        await publish(activate_in=timedelta(seconds=0.2))
        await consumer.until_seen(1)
        waited = monotonic() - published

    assert consumer.seen == [seen(attempt=1)]
    assert waited >= 0.2


async def test_a_message_that_failed_is_tried_again(shared: Shared, publish: Publish, consumer: Consumer) -> None:
    consumer.failures = 1
    async with consumer.running():
        await publish()
        await consumer.until_seen(2)

    assert consumer.seen == [seen(attempt=1), seen(attempt=2)]
    assert await shared.sqlalchemy.fetch_unprocessed() == []


async def test_a_dead_letter_is_read_by_both(shared: Shared, publish: Publish, consumer: Consumer) -> None:
    consumer.failures = 2
    async with consumer.running():
        await publish()
        await until(lambda: dead(consumer.other), 1)

    (letter,) = await read_with_sqlalchemy(shared)
    assert letter == (await read_with_django(shared))[0]
    assert letter["message_id"] == MESSAGE_ID
    assert letter["headers"] == HEADERS
    assert (letter["queue"], letter["key"], letter["priority"]) == (QUEUE, "customer-7", 3)
    assert (letter["failure_reason"], letter["attempts_count"], letter["deliveries_count"]) == ("retry_terminal", 2, 2)
    assert "the label printer is on fire" in letter["last_exception"]


async def test_a_dead_letter_is_redriven_by_the_other_side(publish: Publish, consumer: Consumer) -> None:
    consumer.failures = 2
    async with consumer.running():
        await publish()
        await until(lambda: dead(consumer.other), 1)

        assert await consumer.other.redrive(QUEUE) == 1
        await consumer.until_seen(3)

    assert consumer.seen == [seen(attempt=1), seen(attempt=2), seen(attempt=1)]
    assert await dead(consumer.other) == 0


async def test_every_publisher_writes_the_same_row(shared: Shared) -> None:
    rows = []
    for publish in PUBLISHERS.values():
        await publish(shared)
        (row,) = await shared.sqlalchemy.fetch_unprocessed()
        rows.append((row.payload, row.headers, row.queue, row.key, row.priority, row.message_id))
        await shared.clear()

    assert rows == [rows[0]] * len(PUBLISHERS)


async def dead(broker: OutboxBroker) -> int:
    return (await broker.stats())[QUEUE].dead


async def read_with_sqlalchemy(shared: Shared) -> list[dict[str, Any]]:
    table = shared.tables.dead_letters
    assert table is not None
    async with shared.engine.connect() as connection:
        return [without_times(row._asdict()) for row in await connection.execute(select(table))]


async def read_with_django(shared: Shared) -> list[dict[str, Any]]:
    return [without_times(row) async for row in DeadLetter.objects.using(shared.alias).values()]


def without_times(row: dict[str, Any]) -> dict[str, Any]:
    """SQLAlchemy reads SQLite's times without a zone."""
    bare = {name: value for name, value in row.items() if not name.endswith("_at")}
    return {**bare, "payload": bytes(bare["payload"])}
