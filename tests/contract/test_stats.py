"""Figures of each queue at one moment."""

from datetime import timedelta

import pytest

from outbox_core.envelope import compose
from outbox_core.message import QueueStats
from outbox_core.outcome import DeadLetter
from tests.contract.harness import Outbox, claim, settle


async def test_an_empty_outbox_has_no_queues(outbox: Outbox) -> None:
    stats = await outbox.store.stats()

    assert stats.queues == {}
    assert stats["orders"] == QueueStats(queue="orders")


async def test_messages_are_counted_by_their_state(outbox: Outbox) -> None:
    link = await outbox.link()
    await outbox.publish(*(compose(str(number), "orders") for number in range(6)))
    await outbox.publish(compose("later", "orders", activate_in=timedelta(hours=1)), compose("x", "mails"))
    await settle(link, (await claim(link, limit=1))[0], DeadLetter("rejected"))
    await claim(link, limit=2)

    stats = await outbox.store.stats()

    orders = stats["orders"]
    assert (orders.ready, orders.scheduled, orders.leased, orders.dead) == (3, 1, 2, 1)
    assert (stats["mails"].ready, stats["mails"].leased) == (1, 0)
    assert list(stats.queues) == ["mails", "orders"]


async def test_a_message_whose_lease_ended_is_ready(outbox: Outbox) -> None:
    await outbox.publish(compose("a", "orders"))
    await claim(await outbox.link(), lease=10)
    await outbox.age(11)

    orders = (await outbox.store.stats())["orders"]

    assert (orders.ready, orders.leased) == (1, 0)


async def test_the_age_is_that_of_the_oldest_due_message(outbox: Outbox) -> None:
    await outbox.publish(compose("a", "orders"))
    await outbox.age(90)
    await outbox.publish(compose("b", "orders"))

    assert (await outbox.store.stats())["orders"].oldest_age == pytest.approx(90, abs=2)


async def test_the_age_counts_from_when_a_message_became_due(outbox: Outbox) -> None:
    await outbox.publish(compose("a", "orders", activate_in=timedelta(seconds=60)))
    await outbox.age(100)

    assert (await outbox.store.stats())["orders"].oldest_age == pytest.approx(40, abs=2)


async def test_leased_and_scheduled_messages_have_no_age(outbox: Outbox) -> None:
    await outbox.publish(compose("a", "orders"), compose("b", "orders", activate_in=timedelta(hours=1)))
    await claim(await outbox.link())

    assert (await outbox.store.stats())["orders"].oldest_age is None


async def test_a_queue_with_nothing_but_dead_letters_is_listed(outbox: Outbox) -> None:
    link = await outbox.link()
    await outbox.publish(compose("a", "orders"))
    await settle(link, (await claim(link))[0], DeadLetter("rejected"))

    assert (await outbox.store.stats()).queues == {"orders": QueueStats(queue="orders", dead=1)}


async def test_a_queue_with_nothing_but_a_pause_is_listed(outbox: Outbox) -> None:
    await outbox.store.set_paused("orders", True, None)

    assert (await outbox.store.stats()).queues == {"orders": QueueStats(queue="orders", paused=True)}


async def test_the_figures_can_be_gone_through(outbox: Outbox) -> None:
    await outbox.publish(compose("a", "orders"), compose("b", "mails"))
    stats = await outbox.store.stats()

    assert sorted(stats) == ["mails", "orders"]
    assert "orders" in stats
    assert "parcels" not in stats
