"""Without a dead-letter table a terminal failure is parked in the outbox table with its reason, and nothing is lost."""

from datetime import timedelta
from uuid import UUID

import pytest

from outbox_core.envelope import compose
from outbox_core.errors import MissingTable
from outbox_core.outcome import Ack, DeadLetter, Release, Retry
from outbox_core.store import Settlement, Survey
from tests.contract.harness import Outbox, bodies, claim, settle

ONE = UUID("0197a3c0-0000-7000-8000-000000000001")


async def park(outbox: Outbox, body: str = "a", **options: object) -> int:
    """Publish a message and let it fail for good; its row id."""
    link = await outbox.link()
    await outbox.publish(compose(body, "orders", **options))
    (delivery,) = await claim(link, limit=1)
    assert await settle(link, delivery, DeadLetter("rejected", "no")) == {delivery.id}
    return delivery.id


async def test_a_terminal_failure_is_parked_with_its_reason(parking_outbox: Outbox) -> None:
    id = await park(parking_outbox)

    (pending,) = await parking_outbox.pending()

    assert pending.id == id
    assert pending.failure_reason == "rejected"
    assert (pending.attempts_count, pending.deliveries_count) == (1, 1)
    assert not pending.leased


async def test_a_parked_message_is_never_claimed(parking_outbox: Outbox) -> None:
    await park(parking_outbox)

    await parking_outbox.age(1_000)

    assert await claim(await parking_outbox.link()) == []


async def test_a_parked_message_is_not_surveyed(parking_outbox: Outbox) -> None:
    await park(parking_outbox)

    survey = await (await parking_outbox.link()).survey(["orders"])

    assert survey == Survey(bands=(), due_in=None, keyed=frozenset(), paused=frozenset())


async def test_a_parked_message_counts_as_dead(parking_outbox: Outbox) -> None:
    await park(parking_outbox)
    await parking_outbox.publish(compose("b", "orders"))

    orders = (await parking_outbox.store.stats())["orders"]

    assert (orders.ready, orders.scheduled, orders.leased, orders.dead) == (1, 0, 0, 1)


async def test_a_parked_message_cannot_be_settled_again(parking_outbox: Outbox) -> None:
    link = await parking_outbox.link()
    await parking_outbox.publish(compose("a", "orders"))
    (delivery,) = await claim(link)
    await settle(link, delivery, DeadLetter("rejected"))
    before = await parking_outbox.pending()

    assert await settle(link, delivery, DeadLetter("undecodable")) == set()
    assert await settle(link, delivery, Ack()) == set()

    assert await parking_outbox.pending() == before


async def test_a_stale_worker_parks_nothing(parking_outbox: Outbox) -> None:
    link = await parking_outbox.link()
    await parking_outbox.publish(compose("a", "orders"))
    (stale,) = await claim(link, lease=10)
    await parking_outbox.age(11)
    (current,) = await claim(link)

    assert await settle(link, stale, DeadLetter("rejected")) == set()
    assert await settle(link, current, Ack()) == {current.id}


async def test_a_batch_settles_and_parks_at_once(parking_outbox: Outbox) -> None:
    link = await parking_outbox.link()
    await parking_outbox.publish(*(compose(body, "orders") for body in ("ack", "dead", "release", "retry")))
    deliveries = await claim(link)

    ours = await link.settle(
        [
            Settlement(delivery, outcome)
            for delivery, outcome in zip(
                deliveries, [Ack(), DeadLetter("max_deliveries"), Release(), Retry(60)], strict=True
            )
        ],
        worker="w1",
    )

    assert ours == {delivery.id for delivery in deliveries}
    assert [
        (message.payload, message.failure_reason, message.attempts_count) for message in await parking_outbox.pending()
    ] == [(b"dead", "max_deliveries", 0), (b"release", None, 0), (b"retry", None, 1)]


async def test_a_parked_timer_frees_its_id(parking_outbox: Outbox) -> None:
    await park(parking_outbox, timer_id="t")

    (id,) = await parking_outbox.publish(compose("b", "orders", timer_id="t"))

    assert id is not None
    assert await parking_outbox.store.cancel_timer("orders", "t", None) is True
    assert bodies(await parking_outbox.pending()) == ["a"]


async def test_a_redriven_message_can_be_claimed_again_with_fresh_counters(parking_outbox: Outbox) -> None:
    id = await park(parking_outbox, message_id=ONE, timer_id="t")

    assert await parking_outbox.redrive() == 1

    (delivery,) = await claim(await parking_outbox.link())
    assert (delivery.id, delivery.message_id) == (id, ONE)
    assert (delivery.attempts, delivery.deliveries, delivery.first_attempt_at) == (0, 0, None)
    assert not delivery.suspect


async def test_a_redrive_picks_by_queue_ids_reason_and_limit(parking_outbox: Outbox) -> None:
    first, second, third = [await park(parking_outbox, body) for body in ("a", "b", "c")]

    assert await parking_outbox.redrive(queue="mails") == 0
    assert await parking_outbox.redrive(reason="undecodable") == 0
    assert await parking_outbox.redrive(dry_run=True) == 3
    assert await parking_outbox.redrive(ids=[second], reason="rejected", queue="orders") == 1
    assert await parking_outbox.redrive(limit=1) == 1

    parked = [message.id for message in await parking_outbox.pending() if message.failure_reason]
    assert parked == [third]
    assert first != third


async def test_a_redrive_takes_nothing_but_the_parked(parking_outbox: Outbox) -> None:
    await parking_outbox.publish(compose("a", "orders", activate_in=timedelta(hours=1)))

    assert await parking_outbox.redrive() == 0


async def test_a_parked_message_keeps_its_message_id(parking_outbox: Outbox) -> None:
    await park(parking_outbox, message_id=ONE)

    (again,) = await parking_outbox.publish(compose("b", "orders", message_id=ONE))

    assert again is None


async def test_purging_says_which_table_it_needs(parking_outbox: Outbox) -> None:
    with pytest.raises(MissingTable, match="purge_dead_letters needs the dead-letters table; make it with"):
        await parking_outbox.store.purge_dead_letters(timedelta(0), None, 10, None)


async def test_pausing_says_which_table_it_needs(parking_outbox: Outbox) -> None:
    with pytest.raises(MissingTable, match="pause needs the queues table; make it with"):
        await parking_outbox.store.set_paused("orders", True, None)
