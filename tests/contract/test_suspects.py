"""Suspects, whose last owner went away: counted once, and suspects until a handler has begun and come to an end."""

import pytest

from outbox_core.envelope import compose
from outbox_core.message import Delivery
from outbox_core.outcome import Ack, DeadLetter, Outcome, Release, Retry
from outbox_core.store import Link
from tests.contract.harness import Outbox, claim, settle


async def one_suspect(outbox: Outbox, link: Link) -> Delivery:
    await outbox.publish(compose("a", "orders"))
    await claim(link, lease=10)
    await outbox.age(11)
    (suspect,) = await claim(link, lease=10)
    return suspect


async def test_a_suspect_that_is_given_back_unstarted_is_still_one(outbox: Outbox) -> None:
    link = await outbox.link()

    await settle(link, await one_suspect(outbox, link), Release())

    (again,) = await claim(link)
    assert again.suspect
    assert again.deliveries == 0


async def test_a_suspect_that_is_given_back_is_not_leased(outbox: Outbox) -> None:
    link = await outbox.link()

    await settle(link, await one_suspect(outbox, link), Release())

    assert [message.leased for message in await outbox.pending()] == [False]


@pytest.mark.parametrize("outcome", [Ack(), Retry(5.0), Release(), DeadLetter("rejected")])
async def test_who_has_given_a_suspect_back_has_no_say_in_it_any_more(outbox: Outbox, outcome: Outcome) -> None:
    """It keeps its token, so that the next worker knows."""
    link = await outbox.link()
    suspect = await one_suspect(outbox, link)
    await settle(link, suspect, Release())
    before = await outbox.pending()

    assert await link.begin(suspect) is False
    assert await settle(link, suspect, outcome) == set()
    async with outbox.store.transaction() as session:
        assert await outbox.store.complete([suspect], session) == set()

    assert await outbox.pending() == before
    assert [delivery.suspect for delivery in await claim(link)] == [True]


async def test_a_suspect_whose_handler_was_cut_is_none_any_more(outbox: Outbox) -> None:
    link = await outbox.link()
    suspect = await one_suspect(outbox, link)
    suspect.begun = await link.begin(suspect)

    await settle(link, suspect, Release())

    (again,) = await claim(link)
    assert not again.suspect


async def test_a_suspect_that_failed_is_none_any_more(outbox: Outbox) -> None:
    link = await outbox.link()
    suspect = await one_suspect(outbox, link)
    suspect.begun = await link.begin(suspect)

    await settle(link, suspect, Retry(0))

    (again,) = await claim(link)
    assert not again.suspect


async def test_a_start_is_counted_once_however_often_it_is_told(outbox: Outbox) -> None:
    link = await outbox.link()
    suspect = await one_suspect(outbox, link)

    assert await link.begin(suspect)
    assert await link.begin(suspect)

    assert [message.deliveries_count for message in await outbox.pending()] == [1]
