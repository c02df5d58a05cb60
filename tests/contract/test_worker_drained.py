"""A worker that is to end when nothing is left to do, and one that is to begin nothing more."""

import asyncio
from datetime import timedelta

import pytest

from outbox_core.envelope import compose
from outbox_core.errors import NotStarted
from outbox_core.message import Delivery
from outbox_core.retry import ConstantRetry
from outbox_core.worker import Worker
from tests.contract.conftest import Work
from tests.contract.harness import Outbox, bodies, claim, consumer, until

SOON = 5.0  # seconds in which everything here is done


class Log:
    """A handler that remembers."""

    def __init__(self) -> None:
        self.handled: list[str] = []

    async def __call__(self, delivery: Delivery) -> None:
        await asyncio.sleep(0)
        self.handled.append(delivery.payload.decode())


async def test_nothing_to_do_is_done_at_once(outbox: Outbox, work: Work) -> None:
    worker = await work(consumer(Log(), max_fetch_interval=60.0))

    async with asyncio.timeout(SOON):
        await worker.drained()


async def test_a_worker_without_consumers_has_drained(outbox: Outbox, work: Work) -> None:
    await outbox.publish(compose("a", "orders"))
    worker = await work()

    async with asyncio.timeout(SOON):
        await worker.drained()


async def test_everything_that_is_due_is_handled(outbox: Outbox, work: Work) -> None:
    log = Log()
    await outbox.publish(*(compose(str(number), "orders", priority=number % 3) for number in range(100)))
    worker = await work(consumer(log, max_workers=3))

    async with asyncio.timeout(SOON):
        await worker.drained()

    assert sorted(log.handled, key=int) == [str(number) for number in range(100)]
    assert await outbox.pending() == []


async def test_what_was_published_before_the_call_is_handled(outbox: Outbox, work: Work) -> None:
    log = Log()
    worker = await work(consumer(log, max_fetch_interval=60.0))

    async with asyncio.timeout(4 * SOON):
        for number in range(25):
            await outbox.publish(compose(str(number), "orders"))
            await worker.drained()
            assert log.handled == [str(each) for each in range(number + 1)]


async def test_priorities_that_are_new_are_found(outbox: Outbox, work: Work) -> None:
    log = Log()
    worker = await work(consumer(log))
    await worker.drained()

    async with asyncio.timeout(SOON):
        for priority in (7, -7, 3):
            await outbox.publish(compose(str(priority), "orders", priority=priority))
            await worker.drained()

    assert log.handled == ["7", "-7", "3"]


async def test_it_waits_for_what_is_in_hand(outbox: Outbox, work: Work) -> None:
    started, finish = asyncio.Event(), asyncio.Event()

    async def handle(delivery: Delivery) -> None:
        started.set()
        await finish.wait()

    await outbox.publish(compose("a", "orders"))
    worker = await work(consumer(handle, max_workers=2, max_fetch_interval=60.0))
    await started.wait()
    drained = asyncio.create_task(worker.drained())
    await asyncio.wait([drained], timeout=0.3)
    assert not drained.done()

    finish.set()

    async with asyncio.timeout(SOON):  # long before the next poll
        await drained
    assert await outbox.pending() == []


async def test_what_handlers_publish_meanwhile_is_handled(outbox: Outbox, work: Work) -> None:
    log = Log()

    async def forward(delivery: Delivery) -> None:
        if delivery.payload != b"0":
            await outbox.publish(
                compose(str(int(delivery.payload) - 1), "mails" if delivery.queue == "orders" else "orders")
            )
        await log(delivery)

    await outbox.publish(compose("9", "orders"))
    worker = await work(consumer(forward, ["orders", "mails"]))

    async with asyncio.timeout(SOON):
        await worker.drained()

    assert log.handled == list("9876543210")


async def test_what_is_scheduled_leased_or_paused_stays(outbox: Outbox, work: Work) -> None:
    log = Log()
    await outbox.publish(compose("leased", "orders"))
    await claim(await outbox.link())
    await outbox.store.set_paused("mails", True, None)
    await outbox.publish(
        compose("due", "orders"),
        compose("later", "orders", activate_in=timedelta(hours=1)),
        compose("paused", "mails"),
        compose("nobody's", "other"),
    )
    worker = await work(consumer(log), consumer(log, "mails"))

    async with asyncio.timeout(SOON):
        await worker.drained()

    assert log.handled == ["due"]
    assert bodies(await outbox.pending()) == ["leased", "later", "paused", "nobody's"]


async def test_a_retry_that_is_due_later_stays(outbox: Outbox, work: Work) -> None:
    async def fail(delivery: Delivery) -> None:
        raise ValueError("no")

    await outbox.publish(compose("a", "orders"))
    worker = await work(consumer(fail, retry_strategy=ConstantRetry(delay_seconds=3_600)))

    async with asyncio.timeout(SOON):
        await worker.drained()

    (pending,) = await outbox.pending()
    assert (pending.attempts_count, pending.leased) == (1, False)


async def test_several_may_wait(outbox: Outbox, work: Work) -> None:
    log = Log()
    await outbox.publish(compose("a", "orders"))
    worker = await work(consumer(log))

    async with asyncio.timeout(SOON):
        await asyncio.gather(*(worker.drained() for _ in range(3)))

    assert log.handled == ["a"]


async def test_a_stop_ends_the_wait(outbox: Outbox, work: Work) -> None:
    async def handle(delivery: Delivery) -> None:
        await asyncio.Event().wait()

    await outbox.publish(compose("a", "orders"))
    worker = await work(consumer(handle))
    drained = asyncio.create_task(worker.drained())
    await asyncio.sleep(0)

    await worker.stop(timeout=0)

    async with asyncio.timeout(SOON):
        await drained


async def test_a_worker_that_does_not_run_drains_nothing(outbox: Outbox) -> None:
    with pytest.raises(NotStarted, match="the worker is not running, so it drains nothing; start it first"):
        await Worker(outbox.store).drained()


# Halting


async def test_a_halted_worker_begins_nothing_more(outbox: Outbox, work: Work) -> None:
    log = Log()
    worker = await work(consumer(log, max_fetch_interval=0.05), consumer(log, "mails", max_fetch_interval=0.05))

    worker.halt()
    await outbox.publish(compose("a", "orders"), compose("b", "mails"))
    await others_take_turns(outbox, work)

    assert log.handled == []
    assert [message.leased for message in await outbox.pending()] == [False, False]


async def others_take_turns(outbox: Outbox, work: Work) -> None:
    """Return when another worker, which looks no more often, has found something several times."""
    await work(consumer(Log(), "letters", max_fetch_interval=0.05), name="other")
    for number in range(3):
        await outbox.publish(compose(str(number), "letters"))
        await until(lambda: no_letters(outbox))


async def no_letters(outbox: Outbox) -> bool:
    return await outbox.pending("letters") == []


async def test_what_has_not_begun_is_given_back_and_what_runs_goes_on(outbox: Outbox, work: Work) -> None:
    started, finish = asyncio.Event(), asyncio.Event()
    handled: list[str] = []

    async def handle(delivery: Delivery) -> None:
        started.set()
        await finish.wait()
        handled.append(delivery.payload.decode())

    await outbox.publish(*(compose(str(number), "orders") for number in range(4)))
    worker = await work(consumer(handle, prefetch=10))
    await started.wait()
    await until(lambda: leased(outbox, [True] * 4))

    worker.halt()

    await until(lambda: leased(outbox, [True, False, False, False]))
    finish.set()
    await until(lambda: leased(outbox, [False] * 3))
    await worker.stop(timeout=1)
    assert handled == ["0"]
    assert [message.deliveries_count for message in await outbox.pending()] == [0, 0, 0]


async def leased(outbox: Outbox, expected: list[bool]) -> bool:
    return [message.leased for message in await outbox.pending()] == expected


async def test_halting_twice_or_with_nothing_to_do_changes_nothing(outbox: Outbox, work: Work) -> None:
    worker = await work(consumer(Log()))

    worker.halt()
    worker.halt()

    await worker.stop(timeout=1)
    assert not worker.running
