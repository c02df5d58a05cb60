"""How much a consumer holds in advance, and how its slots behave; on the store in memory."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from time import perf_counter

import pytest

from outbox_core.envelope import compose
from outbox_core.memory import MemoryStore
from outbox_core.message import Delivery
from outbox_core.options import ConsumerOptions, SubscriberOptions
from outbox_core.slots import MAX_AHEAD, Consumer
from outbox_core.store import CLAIM_BYTES
from outbox_core.worker import Worker
from tests.contract.harness import until
from tests.core.deliveries import delivery


async def ignore(deliveries: Sequence[Delivery]) -> None: ...


@asynccontextmanager
async def working(store: MemoryStore, *consumers: Consumer) -> AsyncIterator[Worker]:
    worker = Worker(store)
    await worker.start()
    for consumer in consumers:
        worker.add(consumer)
    try:
        yield worker
    finally:
        await worker.stop(timeout=0)


@pytest.mark.parametrize(
    ("options", "room"),
    [
        ({}, 1),
        ({"max_workers": 7}, 7),
        ({"batch": True, "max_records": 50}, 50),
        ({"batch": True, "max_records": 50, "max_workers": 3}, 150),
        ({"prefetch": 20}, 20),
        ({"prefetch": 2, "max_workers": 5}, 2),
    ],
)
def test_a_fresh_consumer_has_room_for_its_idle_slots_or_its_prefetch(options: SubscriberOptions, room: int) -> None:
    consumer = Consumer(ConsumerOptions.of("orders", options), ignore)

    assert consumer.room() == room
    assert consumer.wants_more()
    assert consumer.in_hand == 0


def test_room_ends_with_the_bytes_of_what_has_not_begun() -> None:
    consumer = Consumer(ConsumerOptions.of("orders", {"prefetch": 1_000}), ignore)
    sixteenth = bytes(CLAIM_BYTES // 16)
    rooms = []

    for id in range(16):
        consumer.add([delivery(id, payload=sixteenth)])
        rooms.append((consumer.room(), consumer.wants_more()))

    assert rooms == [(room, room >= 8) for room in range(15, -1, -1)]


def test_what_waits_behind_its_key_has_a_part_in_the_bytes() -> None:
    consumer = Consumer(ConsumerOptions.of("orders", {"prefetch": 1_000}), ignore)
    large = [delivery(id, key="a", payload=bytes(CLAIM_BYTES // 16)) for id in range(2, 18)]

    consumer.add([delivery(1, key="a"), *large])

    assert consumer.room() == 0


def test_room_for_small_messages_is_as_large_as_ever() -> None:
    consumer = Consumer(ConsumerOptions.of("orders", {"prefetch": 1_000}), ignore)

    consumer.add([delivery(id, payload=bytes(1_000)) for id in range(400)])

    assert consumer.room() == 600
    assert consumer.wants_more()


def test_small_messages_soon_have_the_room_again_of_large_ones_that_have_gone() -> None:
    consumer = Consumer(ConsumerOptions.of("orders", {"prefetch": 1_000}), ignore)

    def comes_and_goes(payload: bytes) -> int:
        consumer.add([one := delivery(payload=payload)])
        consumer.lost(one)
        return consumer.room()

    assert comes_and_goes(bytes(1_000_000)) == 17
    assert [comes_and_goes(b"small") for _ in range(7)] == [34, 68, 135, 269, 537, 1_000, 1_000]


async def test_fast_handlers_are_given_many_in_advance() -> None:
    store = MemoryStore()
    consumer = Consumer(ConsumerOptions.of("orders", {"max_workers": 2}), ignore)
    await store.insert([compose("", "orders") for _ in range(50)], None)

    async with working(store, consumer):
        await until(lambda: consumer.completed == 50)

        assert consumer.room() == MAX_AHEAD + 2


async def test_slow_handlers_are_given_hardly_more_than_they_can_start() -> None:
    store = MemoryStore()

    async def handle(deliveries: Sequence[Delivery]) -> None:
        await asyncio.sleep(0.06)

    consumer = Consumer(ConsumerOptions.of("orders", {"max_workers": 1}), handle)
    await store.insert([compose("", "orders") for _ in range(2)], None)

    async with working(store, consumer):
        await until(lambda: consumer.completed == 2)

        assert 1 <= consumer.room() <= 2


async def test_stuck_slots_are_given_nothing_in_advance() -> None:
    store = MemoryStore()

    async def handle(deliveries: Sequence[Delivery]) -> None:
        if deliveries[0].payload == b"slow":
            await asyncio.Event().wait()

    consumer = Consumer(ConsumerOptions.of("orders", {}), handle)
    await store.insert([compose(body, "orders") for body in ["", "", "slow"]], None)

    async with working(store, consumer):
        await until(lambda: consumer.room() == 0)

        assert not consumer.wants_more()


async def test_a_stopping_consumer_has_no_room() -> None:
    store = MemoryStore()
    consumer = Consumer(ConsumerOptions.of("orders", {"max_workers": 3}), ignore)

    async with working(store, consumer):
        assert consumer.room() == 3
        consumer.halt()

        assert consumer.room() == 0
        assert not consumer.wants_more()


async def test_a_handler_that_never_waits_lets_others_have_the_loop() -> None:
    store = MemoryStore()
    turns = 0

    async def busy(deliveries: Sequence[Delivery]) -> None:
        end = perf_counter() + 0.001
        while perf_counter() < end:
            pass

    consumer = Consumer(ConsumerOptions.of("orders", {"prefetch": 200}), busy)
    await store.insert([compose("", "orders") for _ in range(100)], None)
    async with working(store, consumer):
        while consumer.completed < 100:
            await asyncio.sleep(0)
            turns += consumer.completed > 0

    assert turns >= 10


class Lanes:
    """One lane, for any number of consumers."""

    def __init__(self) -> None:
        self._free = asyncio.Lock()
        self.entered = 0

    @asynccontextmanager
    async def __call__(self) -> AsyncIterator[None]:
        async with self._free:
            self.entered += 1
            yield


async def test_each_delivery_is_handled_in_a_lane() -> None:
    store, lanes = MemoryStore(), Lanes()
    consumer = Consumer(ConsumerOptions.of("orders", {}), ignore, lane=lanes)
    await store.insert([compose("", "orders") for _ in range(3)], None)

    async with working(store, consumer):
        await until(lambda: consumer.completed == 3)

    assert lanes.entered == 3


async def test_consumers_that_share_a_lane_take_turns() -> None:
    store, lanes = MemoryStore(), Lanes()
    running = most = 0

    async def handle(deliveries: Sequence[Delivery]) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.001)
        running -= 1

    consumers = [Consumer(ConsumerOptions.of(queue, {"max_workers": 3}), handle, lane=lanes) for queue in ("a", "b")]
    await store.insert([compose("", queue) for queue in ("a", "b") for _ in range(10)], None)

    async with working(store, *consumers):
        await until(lambda: [consumer.completed for consumer in consumers] == [10, 10])

    assert most == 1


async def test_what_waits_for_a_lane_is_given_back_at_a_stop() -> None:
    store, lanes = MemoryStore(), Lanes()
    started = asyncio.Event()

    async def handle(deliveries: Sequence[Delivery]) -> None:
        started.set()
        await asyncio.Event().wait()

    consumer = Consumer(ConsumerOptions.of("orders", {"max_workers": 2}), handle, lane=lanes)
    await store.insert([compose(body, "orders") for body in ("running", "waiting")], None)
    async with working(store, consumer):
        await started.wait()
        await until(lambda: consumer.in_hand == 2)

    waiting = [message for message in await store.fetch_unprocessed(None, 10, None) if message.payload == b"waiting"]
    assert [(message.leased, message.deliveries_count) for message in waiting] == [(False, 0)]


async def test_a_lane_that_fails_is_entered_again_and_loses_nothing(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("outbox_core.slots.LANE_PAUSE", 0.01)
    store, entered = MemoryStore(), []

    @asynccontextmanager
    async def lane() -> AsyncIterator[None]:
        entered.append(len(entered))
        if len(entered) < 3:
            raise RuntimeError("can't start new thread")
        yield

    consumer = Consumer(ConsumerOptions.of("orders", {}), ignore, lane=lane)
    await store.insert([compose("", "orders")], None)

    async with working(store, consumer):
        await until(lambda: consumer.completed == 1)

    assert len(entered) >= 3
    assert "a lane for ('orders',) failed" in caplog.text
    assert await store.fetch_unprocessed(None, 10, None) == []
