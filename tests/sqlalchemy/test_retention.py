"""Redriving keeps to the dead-letter retention that inboxes have been told."""

from datetime import timedelta
from uuid import UUID

import pytest
from sqlalchemy import MetaData, insert
from sqlalchemy.ext.asyncio import AsyncSession

from outbox_core.errors import OptionError, PastRetention
from outbox_sqlalchemy import Inbox, OutboxBroker, make_inbox_table
from tests.places import Place

ONE, TWO = (UUID(f"0197a3c0-0000-7000-8000-00000000000{number}") for number in (1, 2))
DAY = timedelta(days=1)


def ago(place: Place, days: int) -> str:
    """That moment, as SQL."""
    if place.is_postgresql:
        return f"now() - interval '{days} days 1 minute'"
    return f"strftime('%Y-%m-%d %H:%M:%f000', 'now', '-{days} days', '-1 minute')"


def quoted(place: Place, message_id: UUID) -> str:
    return f"'{message_id}'" if place.is_postgresql else f"'{message_id.hex}'"


def bury(place: Place, message_id: UUID, days: int, queue: str = "orders") -> None:
    place.run(
        "INSERT INTO outbox_dlq (queue, message_id, payload, failure_reason, failed_at) "
        f"VALUES ('{queue}', {quoted(place, message_id)}, 'x', 'rejected', {ago(place, days)})"
    )


def strict(place: Place, **options: object) -> OutboxBroker:
    return place.broker(dead_letter_retention=14 * DAY, **options)


async def dead(broker: OutboxBroker) -> int:
    return sum(queue.dead for queue in (await broker.stats()).queues.values())


async def test_what_is_older_is_refused_by_name_and_nothing_is_put_back(both: Place) -> None:
    broker = strict(both)
    bury(both, ONE, 31)
    bury(both, TWO, 13)

    for dry_run in (True, False):
        with pytest.raises(PastRetention) as refused:
            await broker.redrive("orders", dry_run=dry_run)

    assert str(refused.value).startswith(f"dead letter {refused.value.id} ({ONE}) in 'orders' failed 31 days, 0:01:0")
    assert "dead letters are kept for 14 days only" in str(refused.value)
    assert (refused.value.message_id, refused.value.queue, refused.value.retention) == (ONE, "orders", 14 * DAY)
    assert await dead(broker) == 2

    assert await broker.purge_dead_letters(14 * DAY) == 1
    assert await broker.redrive("orders") == 1


async def test_others_may_be_chosen(both: Place) -> None:
    broker = strict(both)
    bury(both, ONE, 31, "mails")
    bury(both, TWO, 13)

    assert await broker.redrive("orders") == 1
    with pytest.raises(PastRetention):
        await broker.redrive(reason="rejected")


async def test_one_that_halts_its_key_is_refused_and_can_be_released(both: Place) -> None:
    broker = strict(both)
    both.run(
        "INSERT INTO outbox (queue, key, held_key, message_id, payload, failure_reason, last_attempt_at) "
        f"VALUES ('orders', 'k', 'k', {quoted(both, ONE)}, 'x', 'rejected', {ago(both, 31)})"
    )

    with pytest.raises(PastRetention, match="release the key first"):
        await broker.redrive(queue="orders", key="k")

    assert await broker.release_key("orders", "k")
    assert await broker.purge_dead_letters(14 * DAY) == 1


async def test_in_a_session_its_transaction_goes_on(both: Place) -> None:
    broker = strict(both)
    bury(both, ONE, 31)

    async with AsyncSession(both.engine) as session, session.begin():
        with pytest.raises(PastRetention):
            await broker.redrive(session=session)
        await broker.publish("x", "orders", session=session)

    assert len(both.rows()) == 1


async def test_without_a_retention_everything_comes_back(both: Place) -> None:
    bury(both, ONE, 3_000)

    assert await both.broker().redrive() == 1


async def test_one_whose_message_is_live_again_is_in_nobodys_way(both: Place) -> None:
    broker = strict(both)
    bury(both, ONE, 31)
    await broker.publish("x", "orders", message_id=ONE)
    bury(both, TWO, 1)

    assert await broker.redrive() == 1


async def test_what_an_inbox_has_forgotten_cannot_come_back(place: Place) -> None:
    """Received, dead, never purged, and forgotten by an inbox that keeps to what it was told."""
    received = make_inbox_table(MetaData())
    inbox = Inbox(received, retention=30 * DAY, dead_letter_retention=14 * DAY)
    async with place.engine.begin() as connection:
        await connection.run_sync(received.create)
        await connection.execute(insert(received).values(consumer="billing", message_id=str(ONE)))
    try:
        place.run(f"UPDATE outbox_inbox SET received_at = {ago(place, 31)}")
        bury(place, ONE, 31)
        assert await inbox.purge(place.engine) == 1

        with pytest.raises(PastRetention):
            await strict(place).redrive()
    finally:
        async with place.engine.begin() as connection:
            await connection.run_sync(received.drop)


@pytest.mark.parametrize("value", [-DAY, 14])
def test_what_is_no_span_of_time_is_refused(place: Place, value: object) -> None:
    with pytest.raises((OptionError, TypeError), match="dead_letter_retention must"):
        place.broker(dead_letter_retention=value)
