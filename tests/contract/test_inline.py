"""The engine without its loops, on every store."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta

from outbox_core.completion import in_transaction
from outbox_core.envelope import compose
from outbox_core.events import Handled
from outbox_core.inline import drain
from outbox_core.message import Delivery
from outbox_core.options import ConsumerOptions
from outbox_core.outcome import Ack, DeadLetter, Reject, Retry, Snooze
from outbox_core.retry import ConstantRetry, NoRetry
from outbox_core.slots import Consumer
from tests.contract.harness import Outbox, batch_consumer, bodies, claim, consumer


async def drained(outbox: Outbox, *consumers: Consumer) -> list[Handled]:
    """What was handled, in order."""
    return [handled async for handled in drain(await outbox.link(), consumers)]


async def nothing(delivery: Delivery) -> None:
    pass


async def fail(delivery: Delivery) -> None:
    raise ValueError("no")


async def test_an_empty_outbox_is_drained_at_once(outbox: Outbox) -> None:
    assert await drained(outbox, consumer(nothing)) == []


async def test_everything_due_is_handled_and_gone(outbox: Outbox) -> None:
    await outbox.publish(*(compose(str(number), "orders") for number in range(20)))

    handled = await drained(outbox, consumer(nothing))

    assert bodies([one.delivery for one in handled]) == [str(number) for number in range(20)]
    assert {(one.outcome, one.error) for one in handled} == {(Ack(), None)}
    assert await outbox.pending() == []


async def test_each_run_is_told_once_it_is_settled(outbox: Outbox) -> None:
    await outbox.publish(compose("a", "orders"), compose("b", "orders"))

    left = [bodies(await outbox.pending()) async for _ in drain(await outbox.link(), [consumer(nothing)])]

    assert left == [["b"], []]


async def test_the_highest_priority_goes_first_whatever_its_queue(outbox: Outbox) -> None:
    for body, queue, priority in [
        ("low", "orders", -1),
        ("mail", "mails", 5),
        ("high", "orders", 7),
        ("0", "orders", 0),
    ]:
        await outbox.publish(compose(body, queue, priority=priority))

    handled = await drained(outbox, consumer(nothing, ["orders", "mails"]))

    assert bodies([one.delivery for one in handled]) == ["high", "mail", "0", "low"]


async def test_each_consumer_has_its_own_queues(outbox: Outbox) -> None:
    orders: list[str] = []
    mails: list[str] = []

    async def order(delivery: Delivery) -> None:
        orders.append(delivery.payload.decode())

    async def mail(delivery: Delivery) -> None:
        mails.append(delivery.payload.decode())

    await outbox.publish(compose("a", "orders"), compose("b", "mails"), compose("c", "nobody"))
    await drained(outbox, consumer(order), consumer(mail, "mails"))

    assert (orders, mails) == (["a"], ["b"])
    assert bodies(await outbox.pending()) == ["c"]


async def test_what_a_handler_publishes_is_handled_too(outbox: Outbox) -> None:
    async def forward(delivery: Delivery) -> None:
        if delivery.queue == "orders":
            await outbox.publish(compose(delivery.payload, "mails"))

    await outbox.publish(compose("a", "orders"), compose("b", "orders"))
    handled = await drained(outbox, consumer(forward, ["orders", "mails"]))

    assert sorted(one.delivery.queue for one in handled) == ["mails", "mails", "orders", "orders"]
    assert await outbox.pending() == []


async def test_a_batch_has_as_many_as_the_consumer_takes(outbox: Outbox) -> None:
    batches: list[list[str]] = []

    async def handle(batch: Sequence[Delivery]) -> None:
        batches.append(bodies(batch))

    await outbox.publish(*(compose(str(number), "orders") for number in range(5)))
    handled = await drained(outbox, batch_consumer(handle, max_records=3))

    assert batches == [["0", "1", "2"], ["3", "4"]]
    assert len(handled) == 5


async def test_a_failed_message_comes_back_when_its_retry_is_due(outbox: Outbox) -> None:
    await outbox.publish(compose("a", "orders"))
    failing = consumer(fail, retry_strategy=ConstantRetry(delay_seconds=60))

    (handled,) = await drained(outbox, failing)
    assert handled.outcome == Retry(60)
    assert repr(handled.error) == "ValueError('no')"
    assert await drained(outbox, failing) == []

    await outbox.age(61)
    (handled,) = await drained(outbox, failing)
    assert handled.delivery.attempts == 1
    (pending,) = await outbox.pending()
    assert (pending.attempts_count, pending.deliveries_count) == (2, 2)


async def test_a_vote_is_heeded(outbox: Outbox) -> None:
    async def reject(delivery: Delivery) -> None:
        delivery.cast(Reject())

    await outbox.publish(compose("a", "orders"))
    (handled,) = await drained(outbox, consumer(reject))

    assert handled.outcome == DeadLetter("rejected")
    assert [letter.worker for letter in await outbox.dead_letters()] == ["inline"]


async def test_a_message_that_was_delivered_too_often_is_refused(outbox: Outbox) -> None:
    await outbox.publish(compose("a", "orders"))
    failing = consumer(fail, max_deliveries=1, retry_strategy=ConstantRetry(delay_seconds=1))
    await drained(outbox, failing)
    await outbox.age(2)
    ran: list[Delivery] = []

    async def handle(delivery: Delivery) -> None:
        ran.append(delivery)

    (handled,) = await drained(outbox, consumer(handle, max_deliveries=1))

    assert ran == []
    assert isinstance(handled.outcome, DeadLetter)
    assert [letter.reason for letter in await outbox.dead_letters()] == ["max_deliveries"]


async def test_one_of_a_batch_may_be_refused(outbox: Outbox) -> None:
    await outbox.publish(compose("often", "orders"))
    await drained(outbox, consumer(fail, retry_strategy=ConstantRetry(delay_seconds=1)))
    await outbox.age(2)
    await outbox.publish(compose("fresh", "orders"))
    batches: list[list[str]] = []

    async def handle(batch: Sequence[Delivery]) -> None:
        batches.append(bodies(batch))

    await drained(outbox, batch_consumer(handle, max_deliveries=1))

    assert batches == [["fresh"]]
    assert await outbox.pending() == []
    assert [letter.payload for letter in await outbox.dead_letters()] == [b"often"]


async def test_a_suspect_is_counted_before_its_handler_starts(outbox: Outbox) -> None:
    await outbox.publish(compose("a", "orders"))
    await claim(await outbox.link())
    await outbox.age(60)
    counted: list[int] = []

    async def look(delivery: Delivery) -> None:
        (pending,) = await outbox.pending()
        counted.append(pending.deliveries_count)
        delivery.cast(Snooze(60))

    await drained(outbox, consumer(look))

    assert counted == [1]
    (pending,) = await outbox.pending()
    assert (pending.deliveries_count, pending.attempts_count, pending.leased) == (1, 0, False)


async def test_paused_queues_are_left_alone(outbox: Outbox) -> None:
    await outbox.publish(compose("a", "orders", priority=9), compose("b", "mails"))
    await outbox.store.set_paused("orders", True, None)

    handled = await drained(outbox, consumer(nothing, ["orders", "mails"]))

    assert bodies([one.delivery for one in handled]) == ["b"]
    assert bodies(await outbox.pending()) == ["a"]


async def test_what_is_leased_or_scheduled_is_left_alone(outbox: Outbox) -> None:
    await outbox.publish(compose("leased", "orders"))
    await claim(await outbox.link())
    await outbox.publish(
        compose("later", "orders", priority=9, activate_in=timedelta(hours=1)), compose("due", "orders", priority=-3)
    )

    handled = await drained(outbox, consumer(nothing))

    assert bodies([one.delivery for one in handled]) == ["due"]
    assert bodies(await outbox.pending()) == ["leased", "later"]


async def test_ack_first_completes_before_the_handler_runs(outbox: Outbox) -> None:
    left: list[object] = []

    async def handle(delivery: Delivery) -> None:
        left.append(await outbox.pending())
        raise ValueError("too late")

    await outbox.publish(compose("a", "orders"))
    (handled,) = await drained(outbox, consumer(handle, ack_first=True))

    assert left == [[]]
    assert isinstance(handled.error, ValueError)
    assert await outbox.pending() == []
    assert await outbox.dead_letters() == []


async def test_each_run_is_in_the_consumers_lane(outbox: Outbox) -> None:
    told: list[str] = []

    @asynccontextmanager
    async def lane() -> AsyncIterator[None]:
        told.append("entered")
        try:
            yield
        finally:
            told.append("left")

    async def handle(batch: Sequence[Delivery]) -> None:
        told.extend(bodies(batch))
        if batch[0].payload == b"b":
            raise ValueError("no")

    await outbox.publish(compose("a", "orders"), compose("b", "orders"))
    await drained(outbox, Consumer(ConsumerOptions.of("orders", {}), handle, lane=lane))

    assert told == ["entered", "a", "left", "entered", "b", "left"]


async def test_what_a_transaction_has_completed_is_not_settled_again(outbox: Outbox) -> None:
    async def handle(batch: Sequence[Delivery]) -> None:
        for delivery in batch:
            await outbox.store.insert([compose(delivery.payload, "mails")], delivery.session)
            delivery.cast(Ack() if delivery.payload == b"good" else Reject())

    async def handle_in_transaction(batch: Sequence[Delivery]) -> None:
        await in_transaction(outbox.store, batch, handle)

    await outbox.publish(compose("good", "orders"), compose("bad", "orders"))
    handled = await drained(outbox, Consumer(ConsumerOptions.of("orders", {}), handle_in_transaction))

    assert [one.outcome for one in handled] == [Ack(), DeadLetter("rejected")]
    assert [(one.queue, one.payload) for one in await outbox.pending()] == [("mails", b"good")]
    assert [letter.payload for letter in await outbox.dead_letters()] == [b"bad"]


async def test_a_handler_is_cut_at_its_timeout(outbox: Outbox) -> None:
    await outbox.publish(compose("a", "orders"))

    async def wait(delivery: Delivery) -> None:
        await asyncio.Event().wait()

    (handled,) = await drained(outbox, consumer(wait, handler_timeout=0.01, retry_strategy=NoRetry()))

    assert isinstance(handled.error, TimeoutError)
    assert isinstance(handled.outcome, DeadLetter)
