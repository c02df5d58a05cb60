"""Redriving and purging dead letters."""

from contextlib import suppress
from datetime import timedelta
from uuid import UUID

import pytest

from outbox_core.envelope import compose
from outbox_core.outcome import Ack, DeadLetter, DeadReason, Retry
from tests.contract.harness import Outbox, bodies, claim, claim_keyed, settle

ONE = UUID("0197a3c0-0000-7000-8000-000000000001")


class Abort(Exception):
    """What makes a test's transaction roll back."""


async def bury(
    outbox: Outbox, body: str, queue: str = "orders", reason: DeadReason = "rejected", **options: object
) -> int:
    """Publish a message and let it die; the id of its dead letter."""
    link = await outbox.link()
    await outbox.publish(compose(body, queue, **options))
    (delivery,) = await claim(link, queue, limit=1)
    await settle(link, delivery, DeadLetter(reason, "no"))
    return (await outbox.dead_letters())[-1].id


async def dead(outbox: Outbox) -> list[str]:
    return [letter.payload.decode() for letter in await outbox.dead_letters()]


async def test_a_redriven_message_can_be_claimed_again(outbox: Outbox) -> None:
    await bury(outbox, "a")

    assert await outbox.redrive() == 1

    assert bodies(await claim(await outbox.link())) == ["a"]
    assert await outbox.dead_letters() == []


async def test_redriving_nothing_redrives_nothing(outbox: Outbox) -> None:
    assert await outbox.redrive() == 0


async def test_a_redriven_message_is_itself_with_fresh_counters(outbox: Outbox) -> None:
    link = await outbox.link()
    await outbox.publish(
        compose(
            b"\x00body",
            "orders",
            message_id=ONE,
            key="k",
            headers={"h": "1"},
            correlation_id="c",
            timer_id="t",
        )
    )
    await settle(link, (await claim_keyed(link))[0], Retry(0))
    (delivery,) = await claim_keyed(link)
    await settle(link, delivery, DeadLetter("retry_terminal"))
    await outbox.age(60)

    await outbox.redrive()

    (again,) = await claim_keyed(link)
    assert again.message_id == ONE
    assert (again.queue, again.key, again.payload) == ("orders", "k", b"\x00body")
    assert again.headers == {"h": "1", "correlation_id": "c"}
    assert (again.attempts, again.deliveries, again.first_attempt_at) == (0, 0, None)
    assert not again.suspect
    assert again.due_at > delivery.due_at


async def test_a_redriven_message_keeps_its_priority_and_its_age(outbox: Outbox) -> None:
    link = await outbox.link()
    await outbox.publish(compose("a", "orders", priority=0, message_id=ONE))
    (before,) = await outbox.pending()
    await settle(link, (await claim(link))[0], DeadLetter("rejected"))

    await outbox.redrive()

    (after,) = await outbox.pending()
    assert (after.priority, after.created_at) == (before.priority, before.created_at)


async def test_a_redriven_timer_no_longer_holds_its_id(outbox: Outbox) -> None:
    await bury(outbox, "a", timer_id="t")
    await outbox.publish(compose("b", "orders", timer_id="t"))

    assert await outbox.redrive() == 1

    assert sorted(bodies(await outbox.pending())) == ["a", "b"]


async def test_a_queue_is_redriven_alone(outbox: Outbox) -> None:
    await bury(outbox, "a", "orders")
    await bury(outbox, "b", "mails")

    assert await outbox.redrive(queue="mails") == 1

    assert await dead(outbox) == ["a"]


async def test_a_reason_is_redriven_alone(outbox: Outbox) -> None:
    await bury(outbox, "a", reason="rejected")
    await bury(outbox, "b", reason="undecodable")

    assert await outbox.redrive(reason="rejected") == 1

    assert await dead(outbox) == ["b"]


async def test_ids_are_redriven_alone(outbox: Outbox) -> None:
    first = await bury(outbox, "a")
    await bury(outbox, "b")
    third = await bury(outbox, "c")

    assert await outbox.redrive(ids=[first, third, 999_999]) == 2
    assert await outbox.redrive(ids=[]) == 0

    assert await dead(outbox) == ["b"]


async def test_conditions_are_all_to_be_met(outbox: Outbox) -> None:
    first = await bury(outbox, "a", "orders", "rejected")
    await bury(outbox, "b", "orders", "rejected")

    assert await outbox.redrive(queue="orders", ids=[first], reason="undecodable") == 0
    assert await outbox.redrive(queue="orders", ids=[first], reason="rejected") == 1

    assert await dead(outbox) == ["b"]


async def test_the_oldest_are_redriven_first(outbox: Outbox) -> None:
    for body in ("a", "b", "c"):
        await bury(outbox, body)

    assert await outbox.redrive(limit=2) == 2

    assert await dead(outbox) == ["c"]
    assert bodies(await claim(await outbox.link())) == ["a", "b"]


async def test_a_dry_run_counts_and_changes_nothing(outbox: Outbox) -> None:
    for body in ("a", "b", "c"):
        await bury(outbox, body)

    assert await outbox.redrive(dry_run=True) == 3
    assert await outbox.redrive(dry_run=True, limit=2) == 2
    assert await outbox.redrive(dry_run=True, queue="mails") == 0

    assert await dead(outbox) == ["a", "b", "c"]
    assert await outbox.pending() == []


async def test_a_redrive_is_part_of_its_transaction(outbox: Outbox) -> None:
    await bury(outbox, "a")

    with suppress(Abort):
        async with outbox.transaction() as session:
            assert await outbox.redrive(session=session) == 1
            raise Abort

    assert await dead(outbox) == ["a"]
    assert await outbox.pending() == []


async def test_a_dead_letter_stays_while_its_message_id_is_live(outbox: Outbox) -> None:
    await bury(outbox, "a", message_id=ONE)
    await bury(outbox, "b")
    await outbox.publish(compose("a again", "orders", message_id=ONE))

    assert await outbox.redrive(dry_run=True) == 1
    assert await outbox.redrive() == 1

    assert sorted(bodies(await outbox.pending())) == ["a again", "b"]
    assert await dead(outbox) == ["a"]


async def test_of_two_dead_letters_with_one_message_id_one_is_redriven_at_a_time(outbox: Outbox) -> None:
    link = await outbox.link()
    await bury(outbox, "first death", message_id=ONE)
    await bury(outbox, "second death", message_id=ONE)

    assert await outbox.redrive(dry_run=True) == 1
    assert await outbox.redrive() == 1
    assert await dead(outbox) == ["second death"]
    assert await outbox.redrive() == 0

    await settle(link, (await claim(link))[0], Ack())
    assert await outbox.redrive() == 1
    assert await dead(outbox) == []


async def test_a_redriven_message_can_die_again(outbox: Outbox) -> None:
    link = await outbox.link()
    await bury(outbox, "a", message_id=ONE)
    await outbox.redrive()
    await settle(link, (await claim(link))[0], DeadLetter("undecodable"))

    (letter,) = await outbox.dead_letters()

    assert (letter.message_id, letter.reason, letter.attempts) == (ONE, "undecodable", 1)


async def test_dead_letters_older_than_an_age_are_purged(outbox: Outbox) -> None:
    await bury(outbox, "old")
    await outbox.age(100)
    await bury(outbox, "new")

    assert await outbox.store.purge_dead_letters(timedelta(seconds=60), None, 100, None) == 1

    assert await dead(outbox) == ["new"]


async def test_a_purge_takes_one_queue_and_so_many(outbox: Outbox) -> None:
    await bury(outbox, "x", "mails")
    for body in ("a", "b", "c"):
        await outbox.age(10)
        await bury(outbox, body)
    await outbox.age(10)

    assert await outbox.store.purge_dead_letters(timedelta(0), "orders", 2, None) == 2

    assert await dead(outbox) == ["x", "c"]


@pytest.mark.parametrize("queue", [None, "orders"])
async def test_purging_nothing_purges_nothing(outbox: Outbox, queue: str | None) -> None:
    assert await outbox.store.purge_dead_letters(timedelta(0), queue, 10, None) == 0


async def test_a_purge_leaves_live_messages_alone(outbox: Outbox) -> None:
    await outbox.publish(compose("a", "orders"))
    await outbox.age(1_000)

    assert await outbox.store.purge_dead_letters(timedelta(0), None, 10, None) == 0
    assert bodies(await outbox.pending()) == ["a"]


async def test_a_purge_is_part_of_its_transaction(outbox: Outbox) -> None:
    await bury(outbox, "a")
    await outbox.age(10)

    with suppress(Abort):
        async with outbox.transaction() as session:
            assert await outbox.store.purge_dead_letters(timedelta(0), None, 10, session) == 1
            raise Abort

    assert await dead(outbox) == ["a"]
