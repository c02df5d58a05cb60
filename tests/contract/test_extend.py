"""Extending leases: from now on, for those that are still ours."""

from outbox_core.envelope import compose
from outbox_core.outcome import Ack, Release
from tests.contract.harness import Outbox, bodies, claim, settle


async def test_an_extended_lease_ends_later(outbox: Outbox) -> None:
    link = await outbox.link()
    await outbox.publish(compose("a", "orders"))
    (delivery,) = await claim(link, lease=10)
    await outbox.age(8)

    assert await link.extend([delivery], 10) == {delivery.id}

    await outbox.age(8)
    assert await claim(link) == []
    await outbox.age(3)
    assert bodies(await claim(link)) == ["a"]


async def test_a_lease_is_extended_from_now_and_not_from_its_end(outbox: Outbox) -> None:
    link = await outbox.link()
    await outbox.publish(compose("a", "orders"))
    (delivery,) = await claim(link, lease=100)

    await link.extend([delivery], 10)

    await outbox.age(11)
    assert bodies(await claim(link)) == ["a"]


async def test_a_lease_that_ended_unclaimed_can_still_be_extended(outbox: Outbox) -> None:
    link = await outbox.link()
    await outbox.publish(compose("a", "orders"))
    (delivery,) = await claim(link, lease=10)
    await outbox.age(11)

    assert await link.extend([delivery], 10) == {delivery.id}
    assert await claim(link) == []


async def test_only_what_is_still_ours_is_extended(outbox: Outbox) -> None:
    link = await outbox.link()
    await outbox.publish(*(compose(body, "orders") for body in ("stale", "kept", "acked", "released")))
    (stale,) = await claim(link, limit=1, lease=10)
    await outbox.age(11)
    (current,) = await claim(link, limit=1, lease=10)
    kept, acked, released = await claim(link, lease=10)
    await settle(link, acked, Ack())
    await settle(link, released, Release())

    assert await link.extend([stale, released, kept, acked], 30) == {kept.id}

    await outbox.age(11)
    assert bodies(await claim(link)) == ["stale", "released"]
    assert await settle(link, kept, Ack()) == {kept.id}
    assert await settle(link, current, Ack()) == set()


async def test_an_extended_lease_settles_with_the_same_token(outbox: Outbox) -> None:
    link = await outbox.link()
    await outbox.publish(compose("a", "orders"))
    (delivery,) = await claim(link, lease=10)
    await link.extend([delivery], 30)

    assert await settle(link, delivery, Ack()) == {delivery.id}


async def test_extending_counts_nothing(outbox: Outbox) -> None:
    link = await outbox.link()
    await outbox.publish(compose("a", "orders"))
    (delivery,) = await claim(link)

    await link.extend([delivery], 30)

    (pending,) = await outbox.pending()
    assert (pending.attempts_count, pending.deliveries_count) == (0, 0)
    assert pending.next_attempt_at == delivery.due_at


async def test_extending_nothing_does_nothing(outbox: Outbox) -> None:
    assert await (await outbox.link()).extend([], 30) == set()


async def test_what_was_given_back_as_a_suspect_is_not_leased_again_by_an_extension_that_comes_late(
    outbox: Outbox,
) -> None:
    """A suspect keeps its token, so that the next worker knows."""
    link = await outbox.link()
    await outbox.publish(compose("a", "orders"))
    await claim(link, lease=10)
    await outbox.age(11)
    (suspect,) = await claim(link, lease=10)
    await settle(link, suspect, Release())

    assert await link.extend([suspect], 30) == set()
    assert await link.ours([suspect]) == set()
    assert [delivery.suspect for delivery in await claim(link)] == [True]


async def test_a_look_says_what_is_still_ours_and_changes_nothing(outbox: Outbox) -> None:
    link = await outbox.link()
    await outbox.publish(*(compose(body, "orders") for body in ("stale", "kept", "acked", "released")))
    (stale,) = await claim(link, limit=1, lease=10)
    await outbox.age(11)
    await claim(link, limit=1, lease=10)
    kept, acked, released = await claim(link, lease=10)
    await settle(link, acked, Ack())
    await settle(link, released, Release())

    assert await link.ours([stale, released, kept, acked]) == {kept.id}
    assert await link.ours([]) == set()

    await outbox.age(11)
    assert await link.ours([kept]) == {kept.id}
    assert len(await claim(link)) == 3
    assert await link.ours([kept]) == set()
