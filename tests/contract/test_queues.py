"""The names of the queues that have messages."""

from outbox_core.envelope import compose
from outbox_core.outcome import Ack, DeadLetter, Retry
from tests.contract.harness import Outbox, claim, settle


async def test_an_empty_outbox_has_no_queues(outbox: Outbox) -> None:
    assert await outbox.store.queues() == []


async def test_queues_come_by_name_and_once(outbox: Outbox) -> None:
    for queue in ["orders", "mails", "orders", "a", "mails", "zebras"]:
        await outbox.publish(compose("x", queue, priority=len(queue)))
        await outbox.publish(compose("x", queue))

    assert await outbox.store.queues() == ["a", "mails", "orders", "zebras"]


async def test_what_is_scheduled_or_leased_counts(outbox: Outbox) -> None:
    link = await outbox.link()
    await outbox.publish(compose("leased", "orders"), compose("retried", "mails"))
    await claim(link)
    (delivery,) = await claim(link, "mails")
    await settle(link, delivery, Retry(3_600.0))

    assert await outbox.store.queues() == ["mails", "orders"]


async def test_a_queue_without_messages_is_none(outbox: Outbox) -> None:
    link = await outbox.link()
    await outbox.store.set_paused("paused", True, None)
    await outbox.publish(compose("acked", "orders"), compose("dead", "mails"))
    (acked,) = await claim(link)
    (dead,) = await claim(link, "mails")
    await settle(link, acked, Ack())
    await settle(link, dead, DeadLetter("rejected"))

    assert await outbox.store.queues() == []


async def test_what_is_parked_does_not_count(parking_outbox: Outbox) -> None:
    link = await parking_outbox.link()
    await parking_outbox.publish(compose("parked", "mails"), compose("a", "orders"), compose("b", "zebras"))
    (delivery,) = await claim(link, "mails")
    await settle(link, delivery, DeadLetter("rejected"))

    assert await parking_outbox.store.queues() == ["orders", "zebras"]
