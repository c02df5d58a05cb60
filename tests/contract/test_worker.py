"""The engine on every store: what becomes of a message that a worker handles."""

import asyncio
from collections.abc import Sequence
from datetime import datetime

import pytest

from outbox_core.envelope import compose
from outbox_core.errors import NotStarted, OptionError, Undecodable
from outbox_core.events import Claimed, DeadLettered, Event, Handled, Settled, WorkerStarted, WorkerStopped
from outbox_core.message import Delivery
from outbox_core.outcome import Ack, DeadLetter, Nack, Reject, Retry, Snooze
from outbox_core.retry import ConstantRetry, NoRetry
from outbox_core.worker import Worker
from tests.contract.conftest import Work
from tests.contract.harness import Outbox, batch_consumer, bodies, consumer, until


async def all_gone(outbox: Outbox) -> bool:
    return await outbox.pending() == []


async def test_everything_published_is_handled_once(outbox: Outbox, work: Work) -> None:
    handled: list[str] = []
    await outbox.publish(*(compose(str(number), "orders") for number in range(200)))

    async def handle(delivery: Delivery) -> None:
        handled.append(delivery.payload.decode())

    await work(consumer(handle, max_workers=4))

    await until(lambda: all_gone(outbox))
    assert sorted(handled, key=int) == [str(number) for number in range(200)]
    assert await outbox.dead_letters() == []


async def test_one_handler_takes_messages_in_order(outbox: Outbox, work: Work) -> None:
    handled: list[str] = []
    await outbox.publish(*(compose(str(number), "orders") for number in range(50)))

    async def handle(delivery: Delivery) -> None:
        handled.append(delivery.payload.decode())

    await work(consumer(handle))

    await until(lambda: len(handled) == 50)
    assert handled == [str(number) for number in range(50)]


async def test_what_is_published_while_the_worker_runs_is_handled(outbox: Outbox, work: Work) -> None:
    handled: list[bytes] = []

    async def handle(delivery: Delivery) -> None:
        handled.append(delivery.payload)

    await work(consumer(handle))
    for body in (b"a", b"b", b"c"):
        await outbox.publish(compose(body, "orders"))
        await until(lambda body=body: body in handled)

    assert handled == [b"a", b"b", b"c"]


async def test_higher_priorities_come_first(outbox: Outbox, work: Work) -> None:
    handled: list[str] = []
    await outbox.publish(
        compose("low", "orders", priority=-5), compose("normal", "orders"), compose("high", "orders", priority=5)
    )

    async def handle(delivery: Delivery) -> None:
        handled.append(delivery.payload.decode())

    await work(consumer(handle))

    await until(lambda: len(handled) == 3)
    assert handled == ["high", "normal", "low"]


async def test_as_many_handlers_run_at_once_as_were_asked_for(outbox: Outbox, work: Work) -> None:
    everybody = asyncio.Barrier(3)
    await outbox.publish(*(compose(str(number), "orders") for number in range(3)))

    async def handle(delivery: Delivery) -> None:
        await everybody.wait()

    await work(consumer(handle, max_workers=3))

    await until(lambda: all_gone(outbox))


async def test_no_more_handlers_run_at_once_than_were_asked_for(outbox: Outbox, work: Work) -> None:
    running, most = 0, 0
    await outbox.publish(*(compose(str(number), "orders") for number in range(20)))

    async def handle(delivery: Delivery) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.001)
        running -= 1

    await work(consumer(handle, max_workers=2))

    await until(lambda: all_gone(outbox))
    assert most == 2


async def test_a_failed_message_is_retried_when_its_strategy_says(outbox: Outbox, work: Work) -> None:
    attempts: list[tuple[int, int]] = []
    times: list[datetime] = []
    await outbox.publish(compose("a", "orders"))

    async def handle(delivery: Delivery) -> None:
        attempts.append((delivery.attempts, delivery.deliveries))
        times.append(delivery.claimed_at)
        if len(attempts) < 3:
            raise ValueError("not yet")

    await work(consumer(handle, retry_strategy=ConstantRetry(delay_seconds=0.2)))

    await until(lambda: all_gone(outbox))
    assert attempts == [(0, 0), (1, 1), (2, 2)]
    assert (times[1] - times[0]).total_seconds() >= 0.2
    assert (times[2] - times[1]).total_seconds() >= 0.2


async def test_a_message_is_dead_once_its_strategy_gives_up(outbox: Outbox, work: Work) -> None:
    await outbox.publish(compose("a", "orders"))

    async def handle(delivery: Delivery) -> None:
        raise ValueError("never")

    await work(consumer(handle, retry_strategy=ConstantRetry(delay_seconds=0.01, max_attempts=3)))

    await until(outbox.dead_letters)
    (letter,) = await outbox.dead_letters()
    assert (letter.reason, letter.error) == ("retry_terminal", "ValueError: never")
    assert (letter.attempts, letter.deliveries) == (3, 3)
    assert letter.worker == "w1"
    assert await outbox.pending() == []


async def test_a_message_is_dead_after_too_many_deliveries(outbox: Outbox, work: Work) -> None:
    started = 0
    await outbox.publish(compose("a", "orders"))

    async def handle(delivery: Delivery) -> None:
        nonlocal started
        started += 1
        raise ValueError("never")

    await work(consumer(handle, retry_strategy=ConstantRetry(delay_seconds=0.01), max_deliveries=3))

    await until(outbox.dead_letters)
    (letter,) = await outbox.dead_letters()
    assert started == 3
    assert letter.reason == "max_deliveries"
    assert (letter.attempts, letter.deliveries) == (3, 3)


async def test_a_rejected_message_is_dead_at_once(outbox: Outbox, work: Work) -> None:
    await outbox.publish(compose("a", "orders"))

    async def handle(delivery: Delivery) -> None:
        delivery.cast(Reject())

    await work(consumer(handle))

    await until(outbox.dead_letters)
    (letter,) = await outbox.dead_letters()
    assert (letter.reason, letter.error, letter.attempts) == ("rejected", None, 1)


async def test_an_undecodable_message_is_dead_at_once(outbox: Outbox, work: Work) -> None:
    await outbox.publish(compose("a", "orders"))

    async def handle(delivery: Delivery) -> None:
        raise Undecodable("no JSON")

    await work(consumer(handle))

    await until(outbox.dead_letters)
    (letter,) = await outbox.dead_letters()
    assert (letter.reason, letter.error) == ("undecodable", "Undecodable: no JSON")


async def test_a_snoozed_message_comes_back_without_an_attempt(outbox: Outbox, work: Work) -> None:
    attempts: list[int] = []
    await outbox.publish(compose("a", "orders"))

    async def handle(delivery: Delivery) -> None:
        attempts.append(delivery.attempts)
        if len(attempts) == 1:
            delivery.cast(Snooze(0.05))

    await work(consumer(handle, retry_strategy=NoRetry()))

    await until(lambda: all_gone(outbox))
    assert attempts == [0, 0]


async def test_a_nacked_message_comes_back_after_the_chosen_delay(outbox: Outbox, work: Work) -> None:
    attempts: list[int] = []
    await outbox.publish(compose("a", "orders"))

    async def handle(delivery: Delivery) -> None:
        attempts.append(delivery.attempts)
        if len(attempts) == 1:
            delivery.cast(Nack(0.05))

    await work(consumer(handle, retry_strategy=ConstantRetry(delay_seconds=3_600)))

    await until(lambda: all_gone(outbox))
    assert attempts == [0, 1]


async def test_an_explicit_ack_is_an_ack_when_silence_is_not(outbox: Outbox, work: Work) -> None:
    handled: list[tuple[bytes, int]] = []
    await outbox.publish(compose("voted", "orders"), compose("silent", "orders"))

    async def handle(delivery: Delivery) -> None:
        handled.append((delivery.payload, delivery.attempts))
        if delivery.payload == b"voted" or delivery.attempts:
            delivery.cast(Ack())

    await work(consumer(handle, silence="retry", retry_strategy=ConstantRetry(delay_seconds=0.01)))

    await until(lambda: all_gone(outbox))
    assert handled == [(b"voted", 0), (b"silent", 0), (b"silent", 1)]


async def test_a_failure_does_not_hold_up_the_messages_behind_it(outbox: Outbox, work: Work) -> None:
    await outbox.publish(compose("bad", "orders"), compose("good 1", "orders"), compose("good 2", "orders"))

    async def handle(delivery: Delivery) -> None:
        if delivery.payload == b"bad":
            raise ValueError("never")

    await work(consumer(handle, retry_strategy=ConstantRetry(delay_seconds=3_600)))

    await until(lambda: only(outbox, "bad"))
    (pending,) = await outbox.pending()
    assert (pending.attempts_count, pending.leased) == (1, False)


async def only(outbox: Outbox, body: str) -> bool:
    return bodies(await outbox.pending()) == [body]


async def test_a_handler_that_takes_too_long_has_failed(outbox: Outbox, work: Work) -> None:
    await outbox.publish(compose("a", "orders"))

    async def handle(delivery: Delivery) -> None:
        await asyncio.Event().wait()

    await work(consumer(handle, handler_timeout=0.05, retry_strategy=NoRetry()))

    await until(outbox.dead_letters)
    (letter,) = await outbox.dead_letters()
    assert (letter.reason, letter.error) == ("retry_terminal", "TimeoutError: ")


async def test_a_handler_whose_own_task_was_cancelled_has_failed(outbox: Outbox, work: Work) -> None:
    await outbox.publish(compose("a", "orders"))

    async def handle(delivery: Delivery) -> None:
        raise asyncio.CancelledError

    await work(consumer(handle, retry_strategy=ConstantRetry(delay_seconds=3_600)))

    await until(lambda: attempted(outbox))


async def attempted(outbox: Outbox) -> bool:
    return [message.attempts_count for message in await outbox.pending()] == [1]


async def test_a_strategy_that_fails_itself_loses_neither_message_nor_worker(outbox: Outbox, work: Work) -> None:
    class Broken:
        def get_next_attempt_delay(self, **_: object) -> float | None:
            raise ZeroDivisionError

    handled: list[bytes] = []
    await outbox.publish(compose("bad", "orders"), compose("good", "orders"))

    async def handle(delivery: Delivery) -> None:
        handled.append(delivery.payload)
        if delivery.payload == b"bad":
            raise ValueError("never")

    await work(consumer(handle, retry_strategy=Broken()))

    await until(lambda: only(outbox, "bad"))
    await until(lambda: attempted(outbox))
    assert handled == [b"bad", b"good"]


@pytest.mark.parametrize("answer", ["soon", float("nan")], ids=["str", "nan"])
async def test_a_strategy_that_answers_nonsense_loses_no_message(outbox: Outbox, work: Work, answer: object) -> None:
    class Nonsense:
        def get_next_attempt_delay(self, **_: object) -> object:
            return answer

    await outbox.publish(compose("a", "orders"))

    async def handle(delivery: Delivery) -> None:
        raise ValueError("never")

    await work(consumer(handle, retry_strategy=Nonsense()))

    await until(lambda: attempted(outbox))


@pytest.mark.parametrize("answer", [-5, float("inf"), 1e300])
async def test_a_strategy_may_answer_out_of_bounds(outbox: Outbox, work: Work, answer: float) -> None:
    class Unbounded:
        def get_next_attempt_delay(self, **_: object) -> float:
            return answer

    await outbox.publish(compose("a", "orders"))
    failed = 0

    async def handle(delivery: Delivery) -> None:
        nonlocal failed
        if not delivery.attempts:
            failed += 1
            raise ValueError("once")

    await work(consumer(handle, retry_strategy=Unbounded()))

    await until(lambda: failed == 1)
    await until(lambda: all_gone(outbox) if answer < 0 else attempted(outbox))


async def test_an_ack_first_message_is_gone_before_its_handler_runs(outbox: Outbox, work: Work) -> None:
    seen: list[list[str]] = []
    await outbox.publish(compose("a", "orders"))

    async def handle(delivery: Delivery) -> None:
        seen.append(bodies(await outbox.pending()))
        raise ValueError("too late")

    await work(consumer(handle, ack_first=True))

    await until(lambda: seen)
    assert seen == [[]]
    assert await outbox.dead_letters() == []


async def test_a_batch_handler_takes_what_is_there_up_to_its_limit(outbox: Outbox, work: Work) -> None:
    batches: list[list[str]] = []
    await outbox.publish(*(compose(str(number), "orders") for number in range(25)))

    async def handle(deliveries: Sequence[Delivery]) -> None:
        batches.append(bodies(deliveries))

    await work(batch_consumer(handle, max_records=10))

    await until(lambda: all_gone(outbox))
    assert [body for batch in batches for body in batch] == [str(number) for number in range(25)]
    assert [len(batch) for batch in batches] == [10, 10, 5]


async def test_a_failed_batch_is_retried(outbox: Outbox, work: Work) -> None:
    batches: list[list[tuple[str, int]]] = []
    await outbox.publish(compose("a", "orders"), compose("b", "orders"))

    async def handle(deliveries: Sequence[Delivery]) -> None:
        batches.append([(delivery.payload.decode(), delivery.attempts) for delivery in deliveries])
        if len(batches) == 1:
            raise ValueError("once")

    await work(batch_consumer(handle, retry_strategy=ConstantRetry(delay_seconds=0.05)))

    await until(lambda: all_gone(outbox))
    assert batches[0] == [("a", 0), ("b", 0)]
    assert sorted(entry for batch in batches[1:] for entry in batch) == [("a", 1), ("b", 1)]


async def test_each_message_of_a_batch_has_its_own_vote(outbox: Outbox, work: Work) -> None:
    await outbox.publish(*(compose(body, "orders") for body in ("ack", "reject", "snooze", "silent")))
    votes = {b"ack": Ack(), b"reject": Reject(), b"snooze": Snooze(3_600.0)}

    async def handle(deliveries: Sequence[Delivery]) -> None:
        for delivery in deliveries:
            if delivery.payload in votes:
                delivery.cast(votes[delivery.payload])

    await work(batch_consumer(handle))

    await until(lambda: only(outbox, "snooze"))
    assert [(letter.payload, letter.reason) for letter in await outbox.dead_letters()] == [(b"reject", "rejected")]


async def test_two_workers_share_a_queue_without_handling_anything_twice(outbox: Outbox, work: Work) -> None:
    handled: list[tuple[str, str]] = []
    await outbox.publish(*(compose(str(number), "orders") for number in range(60)))

    def by(name: str) -> object:
        async def handle(delivery: Delivery) -> None:
            handled.append((name, delivery.payload.decode()))
            await asyncio.sleep(0.002)

        return consumer(handle)

    await work(by("w1"), name="w1")
    await work(by("w2"), name="w2")

    await until(lambda: all_gone(outbox))
    assert sorted((body for _, body in handled), key=int) == [str(number) for number in range(60)]


async def test_several_consumers_have_queues_of_their_own(outbox: Outbox, work: Work) -> None:
    handled: list[tuple[str, str]] = []
    await outbox.publish(compose("a", "orders"), compose("b", "mails"), compose("c", "others"))

    async def on_orders(delivery: Delivery) -> None:
        handled.append(("orders", delivery.payload.decode()))

    async def on_rest(delivery: Delivery) -> None:
        handled.append(("rest", delivery.payload.decode()))

    await work(consumer(on_orders), consumer(on_rest, ["mails", "others"]))

    await until(lambda: len(handled) == 3)
    assert sorted(handled) == [("orders", "a"), ("rest", "b"), ("rest", "c")]


async def test_a_queue_cannot_have_two_subscribers(outbox: Outbox, work: Work) -> None:
    async def handle(delivery: Delivery) -> None: ...

    worker = await work(consumer(handle, ["orders", "mails"]))

    with pytest.raises(OptionError, match="queue 'mails' has two subscribers"):
        worker.add(consumer(handle, "mails"))


async def test_a_worker_that_is_not_running_takes_no_consumers(outbox: Outbox) -> None:
    async def handle(delivery: Delivery) -> None: ...

    with pytest.raises(NotStarted, match="start it before adding consumers"):
        Worker(outbox.store).add(consumer(handle))


async def test_starting_and_stopping_twice_do_no_harm(outbox: Outbox, work: Work) -> None:
    worker = await work()
    await worker.start()
    assert await worker.ping(1)

    await worker.stop(timeout=1)
    await worker.stop(timeout=1)
    assert not await worker.ping(1)


async def test_a_stopped_worker_can_start_again(outbox: Outbox, work: Work) -> None:
    handled: list[bytes] = []

    async def handle(delivery: Delivery) -> None:
        handled.append(delivery.payload)

    worker = await work(consumer(handle))
    await outbox.publish(compose("a", "orders"))
    await until(lambda: all_gone(outbox))
    await worker.stop(timeout=1)
    await outbox.publish(compose("b", "orders"))

    await worker.start()
    worker.add(consumer(handle))

    await until(lambda: all_gone(outbox))
    assert handled == [b"a", b"b"]


async def test_observers_hear_what_happened(outbox: Outbox, work: Work) -> None:
    events: list[Event] = []

    def broken(event: Event) -> None:
        raise ZeroDivisionError

    async def handle(delivery: Delivery) -> None:
        raise ValueError(delivery.payload.decode())

    worker = await work(
        consumer(handle, retry_strategy=ConstantRetry(delay_seconds=0.01, max_attempts=2)),
        observers=[broken, events.append],
    )
    await outbox.publish(compose("a", "orders"))
    await until(outbox.dead_letters)
    await until(lambda: any(isinstance(event, DeadLettered) for event in events))
    await worker.stop(timeout=1)

    assert isinstance(events[0], WorkerStarted)
    assert events[-1] == WorkerStopped("w1", released=0, abandoned=0)
    assert [event.count for event in events if isinstance(event, Claimed)] == [1, 1]
    assert [event.outcome for event in events if isinstance(event, Handled)] == [
        Retry(0.01),
        DeadLetter("retry_terminal", "ValueError: a"),
    ]
    assert [event for event in events if isinstance(event, Settled)] == [Settled(1, ()), Settled(1, ())]
    assert [event.reason for event in events if isinstance(event, DeadLettered)] == ["retry_terminal"]
