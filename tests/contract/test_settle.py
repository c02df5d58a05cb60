"""Settling: each outcome, counted once, by whoever holds the lease."""

from datetime import timedelta

import pytest

from outbox_core.envelope import compose
from outbox_core.message import Delivery
from outbox_core.outcome import Ack, DeadLetter, Outcome, Release, Retry
from outbox_core.store import Link, Settlement
from tests.contract.harness import Outbox, bodies, claim, claim_keyed, settle

OUTCOMES = [Ack(), Retry(5.0), Retry(5.0, failed=False), Release(), DeadLetter("rejected", "no")]
NAMES = ["ack", "retry", "snooze", "release", "dead"]


async def one_delivery(outbox: Outbox, link: Link, **options: object) -> Delivery:
    await outbox.publish(compose("a", "orders", **options))
    (delivery,) = await claim(link, lease=10)
    return delivery


async def test_an_acked_message_is_deleted(outbox: Outbox) -> None:
    link = await outbox.link()
    delivery = await one_delivery(outbox, link)

    assert await settle(link, delivery, Ack()) == {delivery.id}
    assert await outbox.pending() == []
    assert await outbox.dead_letters() == []


async def test_a_retried_message_comes_back_after_its_delay(outbox: Outbox) -> None:
    link = await outbox.link()
    delivery = await one_delivery(outbox, link)

    assert await settle(link, delivery, Retry(60)) == {delivery.id}

    assert await claim(link) == []
    await outbox.age(59)
    assert await claim(link) == []
    await outbox.age(2)
    (again,) = await claim(link)
    assert again.id == delivery.id
    assert not again.suspect


async def test_a_retry_counts_an_attempt_and_a_delivery(outbox: Outbox) -> None:
    link = await outbox.link()
    await outbox.publish(compose("a", "orders"))

    counted = []
    for _ in range(3):
        (delivery,) = await claim(link)
        counted.append((delivery.attempts, delivery.deliveries))
        await settle(link, delivery, Retry(0))

    assert counted == [(0, 0), (1, 1), (2, 2)]


async def test_a_retry_without_delay_is_due_at_once(outbox: Outbox) -> None:
    link = await outbox.link()
    delivery = await one_delivery(outbox, link)

    await settle(link, delivery, Retry(0))

    assert bodies(await claim(link)) == ["a"]


@pytest.mark.parametrize("delay", [0.0, 1e-7, 0.25, 86_400.0, 100 * 365 * 86_400.0])
async def test_a_delay_of_any_size_can_be_written(outbox: Outbox, delay: float) -> None:
    link = await outbox.link()
    delivery = await one_delivery(outbox, link)

    assert await settle(link, delivery, Retry(delay)) == {delivery.id}

    (pending,) = await outbox.pending()
    assert pending.next_attempt_at - pending.created_at == pytest.approx(
        timedelta(seconds=delay), abs=timedelta(seconds=1)
    )


async def test_the_first_failure_is_remembered(outbox: Outbox) -> None:
    link = await outbox.link()
    delivery = await one_delivery(outbox, link)
    await settle(link, delivery, Retry(0))
    (second,) = await claim(link)
    await settle(link, second, Retry(0))

    (third,) = await claim(link)

    assert delivery.first_attempt_at is None
    assert second.first_attempt_at is not None
    assert third.first_attempt_at == second.first_attempt_at


async def test_a_snooze_counts_neither_as_an_attempt_nor_as_a_delivery(outbox: Outbox) -> None:
    link = await outbox.link()
    delivery = await one_delivery(outbox, link)

    assert await settle(link, delivery, Retry(60, failed=False)) == {delivery.id}

    assert await claim(link) == []
    await outbox.age(61)
    (again,) = await claim(link)
    assert (again.attempts, again.deliveries) == (0, 0)
    assert again.first_attempt_at is None


async def test_a_released_message_is_as_it_was(outbox: Outbox) -> None:
    link = await outbox.link()
    delivery = await one_delivery(outbox, link)

    assert await settle(link, delivery, Release()) == {delivery.id}

    (again,) = await claim(link)
    assert again.id == delivery.id
    assert again.due_at == delivery.due_at
    assert (again.attempts, again.deliveries) == (0, 0)
    assert again.first_attempt_at is None
    assert not again.suspect


async def test_a_released_message_keeps_its_history(outbox: Outbox) -> None:
    link = await outbox.link()
    await settle(link, await one_delivery(outbox, link), Retry(0))
    (second,) = await claim(link)

    await settle(link, second, Release())

    (third,) = await claim(link)
    assert (third.attempts, third.deliveries) == (1, 1)
    assert third.first_attempt_at == second.first_attempt_at
    assert third.due_at == second.due_at


async def test_a_dead_message_goes_to_the_dead_letters_with_its_history(outbox: Outbox) -> None:
    link = await outbox.link()
    await outbox.publish(compose("a", "orders", key="k", timer_id="t"))
    await settle(link, (await claim_keyed(link))[0], Retry(0))
    (delivery,) = await claim_keyed(link)

    assert await settle(link, delivery, DeadLetter("retry_terminal", 'ValueError: it\'s "über" 5\n:x%s')) == {
        delivery.id
    }

    (letter,) = await outbox.dead_letters()
    assert letter.message_id == delivery.message_id
    assert (letter.queue, letter.key, letter.payload, letter.timer_id) == ("orders", "k", b"a", "t")
    assert (letter.reason, letter.error) == ("retry_terminal", 'ValueError: it\'s "über" 5\n:x%s')
    assert (letter.attempts, letter.deliveries) == (2, 2)
    assert letter.created_at == delivery.created_at
    assert letter.first_attempt_at == delivery.first_attempt_at
    assert letter.last_attempt_at is not None
    assert letter.worker == "w1"
    assert await outbox.pending() == []


async def test_a_message_that_dies_at_the_first_try_has_a_first_attempt(outbox: Outbox) -> None:
    link = await outbox.link()

    await settle(link, await one_delivery(outbox, link), DeadLetter("rejected"))

    (letter,) = await outbox.dead_letters()
    assert (letter.attempts, letter.deliveries) == (1, 1)
    assert letter.error is None
    assert letter.first_attempt_at is not None


async def test_a_message_that_is_not_started_again_has_no_further_attempt(outbox: Outbox) -> None:
    link = await outbox.link()
    await settle(link, await one_delivery(outbox, link), Retry(0))
    (delivery,) = await claim(link)

    await settle(link, delivery, DeadLetter("max_deliveries"))

    (letter,) = await outbox.dead_letters()
    assert (letter.attempts, letter.deliveries) == (1, 1)


async def test_beginning_counts_the_delivery_before_its_handler_starts(outbox: Outbox) -> None:
    link = await outbox.link()
    delivery = await one_delivery(outbox, link)

    assert await link.begin(delivery) is True

    (pending,) = await outbox.pending()
    assert (pending.attempts_count, pending.deliveries_count) == (0, 1)
    await outbox.age(11)
    (suspect,) = await claim(link)
    assert suspect.deliveries == 1


@pytest.mark.parametrize("outcome", [Retry(0), Retry(0, failed=False), Release()], ids=["retry", "snooze", "release"])
async def test_a_delivery_that_was_begun_is_counted_once(outbox: Outbox, outcome: Outcome) -> None:
    link = await outbox.link()
    delivery = await one_delivery(outbox, link)
    delivery.begun = await link.begin(delivery)

    await settle(link, delivery, outcome)

    (again,) = await claim(link)
    assert again.deliveries == 1


async def test_a_dead_delivery_that_was_begun_is_counted_once(outbox: Outbox) -> None:
    link = await outbox.link()
    delivery = await one_delivery(outbox, link)
    delivery.begun = await link.begin(delivery)

    await settle(link, delivery, DeadLetter("rejected"))

    (letter,) = await outbox.dead_letters()
    assert (letter.attempts, letter.deliveries) == (1, 1)


async def test_a_stale_worker_cannot_begin(outbox: Outbox) -> None:
    link = await outbox.link()
    stale = await one_delivery(outbox, link)
    await outbox.age(11)
    await claim(link)

    assert await link.begin(stale) is False
    assert [message.deliveries_count for message in await outbox.pending()] == [0]


async def test_a_message_that_is_gone_cannot_begin(outbox: Outbox) -> None:
    link = await outbox.link()
    delivery = await one_delivery(outbox, link)
    await settle(link, delivery, Ack())

    assert await link.begin(delivery) is False


@pytest.mark.parametrize("outcome", OUTCOMES, ids=NAMES)
async def test_a_stale_settlement_changes_nothing(outbox: Outbox, outcome: Outcome) -> None:
    link = await outbox.link()
    stale = await one_delivery(outbox, link)
    await outbox.age(11)
    (current,) = await claim(link)
    before = await outbox.pending()

    assert await settle(link, stale, outcome) == set()

    assert await outbox.pending() == before
    assert await outbox.dead_letters() == []
    assert await settle(link, current, Ack()) == {current.id}


@pytest.mark.parametrize("outcome", OUTCOMES, ids=NAMES)
async def test_a_lease_that_ended_unclaimed_can_still_be_settled(outbox: Outbox, outcome: Outcome) -> None:
    link = await outbox.link()
    delivery = await one_delivery(outbox, link)
    await outbox.age(11)

    assert await settle(link, delivery, outcome) == {delivery.id}


@pytest.mark.parametrize("outcome", OUTCOMES, ids=NAMES)
async def test_repeating_a_settlement_is_safe(outbox: Outbox, outcome: Outcome) -> None:
    link, another = await outbox.link(), await outbox.link()
    delivery = await one_delivery(outbox, link)
    await settle(link, delivery, outcome)
    rows, dead = await outbox.pending(), await outbox.dead_letters()

    assert await settle(another, delivery, outcome) == set()

    assert await outbox.pending() == rows
    assert await outbox.dead_letters() == dead


async def test_a_batch_settles_every_kind_at_once(outbox: Outbox) -> None:
    link = await outbox.link()
    await outbox.publish(*(compose(name, "orders") for name in ["stale", *NAMES, "ack 2", "dead 2"]))
    (stale,) = await claim(link, limit=1, lease=10)
    await outbox.age(11)
    (taken_over,) = await claim(link, limit=1)
    deliveries = {delivery.payload.decode(): delivery for delivery in await claim(link)}

    ours = await link.settle(
        [
            Settlement(deliveries["dead 2"], DeadLetter("undecodable", None)),
            Settlement(deliveries["ack"], Ack()),
            Settlement(stale, DeadLetter("rejected")),
            Settlement(deliveries["release"], Release()),
            Settlement(deliveries["retry"], Retry(60)),
            Settlement(deliveries["dead"], DeadLetter("rejected", "no")),
            Settlement(deliveries["ack 2"], Ack()),
            Settlement(deliveries["snooze"], Retry(0, failed=False)),
        ],
        worker="w1",
    )

    assert ours == {delivery.id for delivery in deliveries.values()}
    rows = {message.payload.decode(): message for message in await outbox.pending()}
    assert {body: (row.attempts_count, row.deliveries_count, row.leased) for body, row in rows.items()} == {
        "stale": (0, 0, True),
        "retry": (1, 1, False),
        "snooze": (0, 0, False),
        "release": (0, 0, False),
    }
    assert {(letter.payload, letter.reason, letter.error) for letter in await outbox.dead_letters()} == {
        (b"dead", "rejected", "no"),
        (b"dead 2", "undecodable", None),
    }
    assert await settle(link, taken_over, Ack()) == {stale.id}


async def test_settling_nothing_does_nothing(outbox: Outbox) -> None:
    link = await outbox.link()

    assert await link.settle([], worker="w1") == set()


async def test_a_thousand_messages_are_settled_in_one_batch(outbox: Outbox) -> None:
    link = await outbox.link()
    await outbox.publish(*(compose(str(number), "orders") for number in range(1_000)))
    deliveries = await claim(link, limit=1_000)

    ours = await link.settle(
        [
            Settlement(delivery, DeadLetter("rejected", "e" * 100) if number % 10 == 0 else Ack())
            for number, delivery in enumerate(deliveries)
        ],
        worker="w1",
    )

    assert len(ours) == 1_000
    assert await outbox.pending() == []
    assert len(await outbox.dead_letters()) == 100
