"""When a worker looks, and at which queues: schedules, pauses, fairness."""

import asyncio
from collections.abc import Awaitable, Callable
from datetime import timedelta
from time import monotonic

import pytest

from outbox_core.envelope import compose
from outbox_core.events import Claimed, Event
from outbox_core.message import Delivery
from outbox_core.retry import ConstantRetry
from outbox_core.worker import Worker
from tests.contract.conftest import Work
from tests.contract.harness import Outbox, bodies, consumer, until

NEVER = {"min_fetch_interval": 60.0, "max_fetch_interval": 60.0}


class Log:
    """A handler that remembers what it was given, and when."""

    def __init__(self, seconds: float = 0.0) -> None:
        self.bodies: list[str] = []
        self.times: list[float] = []
        self._seconds = seconds

    async def handle(self, delivery: Delivery) -> None:
        self.bodies.append(delivery.payload.decode())
        self.times.append(monotonic())
        await asyncio.sleep(self._seconds)


async def test_a_scheduled_message_is_not_late_by_a_polling_interval(outbox: Outbox, work: Work) -> None:
    log = Log()
    await outbox.publish(compose("a", "orders", activate_in=timedelta(seconds=0.4)))

    await work(consumer(log.handle, **NEVER))

    await until(lambda: log.bodies, within=3)


async def test_a_scheduled_message_is_not_early(outbox: Outbox, work: Work) -> None:
    early: list[float] = []
    await outbox.publish(compose("a", "orders", activate_in=timedelta(seconds=0.2)))

    async def handle(delivery: Delivery) -> None:
        early.append((delivery.due_at - delivery.claimed_at).total_seconds())

    await work(consumer(handle))

    await until(lambda: early)
    assert early[0] <= 0


async def test_a_retry_is_not_late_by_a_polling_interval(outbox: Outbox, work: Work) -> None:
    attempts: list[int] = []
    await outbox.publish(compose("a", "orders"))

    async def handle(delivery: Delivery) -> None:
        attempts.append(delivery.attempts)
        await asyncio.sleep(0.2)  # longer than a worker that finds nothing stays awake
        if not delivery.attempts:
            raise ValueError("once")

    await work(consumer(handle, max_workers=3, retry_strategy=ConstantRetry(delay_seconds=0.2), **NEVER))

    await until(lambda: attempts == [0, 1], within=3)


async def test_a_sleeping_worker_is_woken_by_a_publish(waking_outbox: Outbox) -> None:
    log = Log()
    worker = Worker(waking_outbox.store)
    await worker.start()
    worker.add(consumer(log.handle, **NEVER))

    for body in ("a", "b", "c"):
        await waking_outbox.publish(compose(body, "orders"))
        await until(lambda body=body: body in log.bodies, within=3)
        await asyncio.sleep(0.05)  # it goes to sleep again

    await worker.stop(timeout=1)


async def test_a_worker_with_idle_slots_takes_a_message_soon_after_a_burst(outbox: Outbox, work: Work) -> None:
    log = Log(seconds=0.03)
    await work(consumer(log.handle, min_fetch_interval=0.01, max_fetch_interval=0.02))
    waits: list[float] = []

    for burst in range(6):
        published = monotonic()
        await outbox.publish(compose(f"{burst}a", "orders"), compose(f"{burst}b", "orders"))
        await until(lambda burst=burst: f"{burst}b" in log.bodies)
        waits.append(log.times[-2] - published)

    assert max(waits) < 0.5


async def test_a_hot_queue_does_not_starve_a_quiet_one(outbox: Outbox, work: Work) -> None:
    log = Log(seconds=0.002)
    await outbox.publish(*(compose(f"hot {number}", "hot") for number in range(200)))
    await work(consumer(log.handle, ["hot", "quiet"], prefetch=5))
    await until(lambda: len(log.bodies) >= 20)

    await outbox.publish(compose("quiet", "quiet"))

    await until(lambda: "quiet" in log.bodies)
    assert len(log.bodies) < 100


async def test_two_hot_queues_take_turns(outbox: Outbox, work: Work) -> None:
    log = Log(seconds=0.002)
    await outbox.publish(*(compose("one", "one") for _ in range(60)))
    await outbox.publish(*(compose("two", "two") for _ in range(60)))

    await work(consumer(log.handle, ["one", "two"], prefetch=6))

    await until(lambda: len(log.bodies) >= 60)
    assert 15 <= log.bodies[:60].count("one") <= 45


async def test_a_slow_queue_does_not_hold_up_another_consumers(outbox: Outbox, work: Work) -> None:
    log, never = Log(), asyncio.Event()
    await outbox.publish(*(compose(str(number), "slow") for number in range(10)))

    async def stuck(delivery: Delivery) -> None:
        await never.wait()

    await work(consumer(stuck, "slow"), consumer(log.handle, "orders"))
    await outbox.publish(*(compose(str(number), "orders") for number in range(10)))

    await until(lambda: len(log.bodies) == 10)


async def test_a_paused_queue_is_left_alone_until_it_is_resumed(outbox: Outbox, work: Work) -> None:
    log = Log()
    await outbox.store.set_paused("orders", True, None)
    await outbox.publish(compose("a", "orders"), compose("x", "mails"))

    await work(consumer(log.handle, ["orders", "mails"]))

    await until(lambda: log.bodies == ["x"])
    assert bodies(await outbox.pending("orders")) == ["a"]
    await outbox.store.set_paused("orders", False, None)
    await until(lambda: log.bodies == ["x", "a"])


@pytest.mark.parametrize("outbox", ["sqlite", "asyncpg"], indirect=True)
async def test_a_running_worker_obeys_a_pause(outbox: Outbox, work: Work) -> None:
    log = Log(seconds=0.01)
    await outbox.publish(*(compose(str(number), "orders") for number in range(1_000)))
    await work(consumer(log.handle))
    await until(lambda: log.bodies)

    await outbox.store.set_paused("orders", True, None)

    await until(at_rest(outbox), within=5)
    assert len(log.bodies) < 1_000


def at_rest(outbox: Outbox) -> Callable[[], Awaitable[bool]]:
    async def nothing_leased() -> bool:
        return (await outbox.store.stats())["orders"].leased == 0

    return nothing_leased


async def test_a_new_priority_is_found_while_the_worker_runs(outbox: Outbox, work: Work) -> None:
    log = Log()
    await work(consumer(log.handle))

    await outbox.publish(compose("a", "orders", priority=7))
    await outbox.publish(compose("b", "orders", priority=-7))

    await until(lambda: sorted(log.bodies) == ["a", "b"])


async def test_one_message_behind_ten_thousand_of_another_queue_is_handled_within_two_claims(
    outbox: Outbox, work: Work
) -> None:
    claims: list[Event] = []
    claims_before: list[int] = []

    async def handle(delivery: Delivery) -> None:
        if delivery.queue == "quiet":
            claims_before.append(len(claims))

    def count(event: Event) -> None:
        if isinstance(event, Claimed):
            claims.append(event)

    await outbox.publish(*(compose(str(number), "hot") for number in range(10_000)))
    await outbox.publish(compose("one", "quiet"))
    await work(consumer(handle, queues=("hot", "quiet")), observers=[count])
    await until(lambda: claims_before)

    assert claims_before[0] <= 2
