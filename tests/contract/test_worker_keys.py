"""Order by key in running workers: one message of a key at a time, in the order in which they were published."""

import asyncio
from collections import defaultdict
from collections.abc import Sequence
from functools import partial

from outbox_core.envelope import compose
from outbox_core.message import Delivery
from outbox_core.outcome import Nack, Reject
from outbox_core.retry import ConstantRetry
from tests.contract.conftest import Work
from tests.contract.harness import (
    Outbox,
    batch_consumer,
    bodies,
    claim_keyed,
    consumer,
    pulled,
    puller,
    until,
    vote,
)


class Line:
    """Handles in some time, and says in which order, and whether two of a key ever ran at once."""

    def __init__(self, seconds: float = 0.001) -> None:
        self.handled: dict[str | None, list[str]] = defaultdict(list)
        self.running: set[str | None] = set()
        self.together: list[str | None] = []
        self._seconds = seconds

    @property
    def count(self) -> int:
        return sum(map(len, self.handled.values()))

    async def __call__(self, delivery: Delivery) -> None:
        if delivery.key in self.running and delivery.key is not None:
            self.together.append(delivery.key)
        self.running.add(delivery.key)
        self.handled[delivery.key].append(delivery.payload.decode())
        await asyncio.sleep(self._seconds)
        self.running.discard(delivery.key)


async def publish(outbox: Outbox, *bodies: str) -> None:
    """`a1` has the key `a`, `1` has none."""
    await outbox.publish(*(compose(body, "orders", key=body[0] if body[0].isalpha() else None) for body in bodies))


async def test_workers_handle_each_key_in_order_and_one_at_a_time(outbox: Outbox, work: Work) -> None:
    published = [f"{key}{number}" for number in range(20) for key in "abcde"]
    await publish(outbox, *published)
    line = Line()

    await work(consumer(line, max_workers=4), name="w1")
    await work(consumer(line, max_workers=4), name="w2")
    await until(lambda: line.count == 100)

    assert line.together == []
    assert line.handled == {key: [f"{key}{number}" for number in range(20)] for key in "abcde"}


async def test_a_failing_message_keeps_its_key_waiting_and_nobody_else(outbox: Outbox, work: Work) -> None:
    handled: list[str] = []

    async def handle(delivery: Delivery) -> None:
        handled.append(delivery.payload.decode())
        if delivery.payload == b"a1" and delivery.attempts < 2:
            delivery.cast(Nack(0.3))

    await publish(outbox, "a1", "a2", "b1", "1")
    await work(consumer(handle, max_workers=4))
    await until(lambda: len(handled) == 6)

    assert sorted(handled[:3]) == ["1", "a1", "b1"]
    assert [body for body in handled if body[0] == "a"] == ["a1", "a1", "a1", "a2"]


async def test_a_dead_message_lets_its_key_go_on(outbox: Outbox, work: Work) -> None:
    handled: list[str] = []

    async def handle(delivery: Delivery) -> None:
        handled.append(delivery.payload.decode())
        if delivery.payload == b"a1":
            delivery.cast(Reject())

    await publish(outbox, "a1", "a2")
    await work(consumer(handle))
    await until(lambda: handled == ["a1", "a2"])

    await until(lambda: outbox.dead_letters())


async def test_a_dead_message_halts_its_key_where_that_is_asked_for(outbox: Outbox, work: Work) -> None:
    handled: list[str] = []
    broken = True

    async def handle(delivery: Delivery) -> None:
        handled.append(delivery.payload.decode())
        if delivery.payload == b"a1" and broken:
            raise ValueError("a1")

    retry = ConstantRetry(delay_seconds=0.01, max_attempts=2)
    await work(consumer(handle, on_dead_letter="halt", retry_strategy=retry))
    await publish(outbox, "a1", "a2", "b1")
    await until(lambda: "b1" in handled and handled.count("a1") == 2)
    await until(lambda: _blocked(outbox))

    assert "a2" not in handled
    broken = False
    await outbox.redrive(key="a")
    await until(lambda: handled[-2:] == ["a1", "a2"])


async def _blocked(outbox: Outbox) -> bool:
    return (await outbox.store.stats())["orders"].blocked_keys == 1


async def test_what_is_published_while_its_key_is_handled_comes_at_once(outbox: Outbox, work: Work) -> None:
    line = Line(0.05)
    await work(consumer(line, max_fetch_interval=30.0))
    await publish(outbox, "a1")
    await until(lambda: line.running == {"a"})

    await publish(outbox, "a2")

    await until(lambda: line.handled["a"] == ["a1", "a2"], within=2)


async def test_a_retry_of_a_key_is_not_late(outbox: Outbox, work: Work) -> None:
    handled: list[float] = []

    async def handle(delivery: Delivery) -> None:
        handled.append(asyncio.get_running_loop().time())
        if len(handled) == 1:
            delivery.cast(Nack(0.3))

    await publish(outbox, "a1")
    await work(consumer(handle, max_fetch_interval=30.0))
    await until(lambda: len(handled) == 2, within=5)

    assert 0.29 < handled[1] - handled[0] < 1.5


async def test_a_batch_takes_the_messages_of_a_key_in_order(outbox: Outbox, work: Work) -> None:
    batches: list[list[str]] = []

    async def handle(batch: Sequence[Delivery]) -> None:
        batches.append(bodies(batch))
        await asyncio.sleep(0.01)

    await publish(outbox, *(f"a{number}" for number in range(9)))
    await work(batch_consumer(handle, max_records=4, max_workers=3))
    await until(lambda: sum(map(len, batches)) == 9)

    assert [body for batch in batches for body in batch] == [f"a{number}" for number in range(9)]
    assert len(batches) >= 3


async def test_a_failed_batch_comes_again_in_order(outbox: Outbox, work: Work) -> None:
    batches: list[list[str]] = []

    async def handle(batch: Sequence[Delivery]) -> None:
        batches.append(bodies(batch))
        if len(batches) == 1:
            raise ValueError("the first")

    await publish(outbox, "a1", "a2", "a3")
    retry = ConstantRetry(delay_seconds=0.01, jitter_factor=0.5)
    await work(batch_consumer(handle, max_records=2, retry_strategy=retry))
    await until(lambda: bool(batches) and batches[-1][-1] == "a3")

    handled = [body for batch in batches[1:] for body in batch]
    assert handled == ["a1", "a2", "a3"]


async def test_a_puller_gets_the_next_of_a_key_after_its_vote(outbox: Outbox, work: Work) -> None:
    await publish(outbox, "a1", "a2")
    its = puller()
    await work(its)
    first = await pulled(its)

    assert first.payload == b"a1"
    assert await its.pull(0.3) is None
    await vote(its, first, Nack(0.0))
    assert (await pulled(its)).payload == b"a1"


async def test_a_stopping_worker_gives_a_key_back_in_order(outbox: Outbox, work: Work) -> None:
    gate = asyncio.Event()
    begun: list[str] = []

    async def handle(delivery: Delivery) -> None:
        begun.append(delivery.payload.decode())
        await gate.wait()

    await publish(outbox, "a1", "a2", "a3")
    worker = await work(consumer(handle, max_workers=2, prefetch=10))
    await until(lambda: begun == ["a1"])

    worker.halt()
    gate.set()
    await worker.stop(timeout=5)

    assert begun == ["a1"]
    link = await outbox.link()
    assert bodies(await claim_keyed(link)) == ["a2", "a3"]


async def test_messages_without_a_key_are_not_held_up_by_those_with_one(outbox: Outbox, work: Work) -> None:
    gate = asyncio.Event()
    handled: list[str] = []

    async def handle(delivery: Delivery) -> None:
        if delivery.key is not None:
            await gate.wait()
        handled.append(delivery.payload.decode())

    await publish(outbox, *(f"a{number}" for number in range(50)))
    await work(consumer(handle, max_workers=2))
    await publish(outbox, *(str(number) for number in range(20)))

    await until(lambda: len(handled) == 20)
    gate.set()
    await until(lambda: len(handled) == 70)
    assert handled[20:] == [f"a{number}" for number in range(50)]


async def test_what_was_published_late_waits_for_a_handler_that_a_stopping_worker_waits_for(
    waking_outbox: Outbox, work_waking: Work
) -> None:
    outbox, other = waking_outbox, await waking_outbox.link()
    started, go_on = asyncio.Event(), asyncio.Event()

    async def handle(delivery: Delivery) -> None:
        started.set()
        await go_on.wait()

    async def leased(count: int) -> bool:
        return (await outbox.store.stats())["orders"].leased == count

    async with outbox.transaction() as late:
        await outbox.store.insert([compose("a1", "orders", key="a")], late)
        await publish(outbox, "a2", "a3", "a4", "a5")
        worker = await work_waking(consumer(handle, prefetch=4))
        await until(started.is_set)
        await until(partial(leased, 4))
    stopping = asyncio.create_task(worker.stop(timeout=10))
    await until(partial(leased, 2))

    assert await claim_keyed(other) == []
    go_on.set()
    await stopping
    assert bodies(await claim_keyed(other)) == ["a1", "a3", "a4", "a5"]
