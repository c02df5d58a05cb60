"""Leases extended from another thread: what the loop and the rows make of it, on the store in memory."""

import asyncio
import threading
import time
from collections.abc import AsyncIterator
from contextlib import suppress

import pytest

from outbox_core.envelope import compose
from outbox_core.events import ConnectionLost, ConnectionRestored, Event, LeaseLost
from outbox_core.message import Delivery
from outbox_core.worker import Worker
from tests.contract.harness import consumer, until
from tests.core.faults import FaultyStore


@pytest.fixture
async def store() -> FaultyStore:
    return FaultyStore()


@pytest.fixture
async def events() -> list[Event]:
    return []


@pytest.fixture
async def worker(store: FaultyStore, events: list[Event]) -> AsyncIterator[Worker]:
    worker = Worker(store, name="w1", observers=[events.append])
    await worker.start()
    yield worker
    await worker.stop(timeout=0.1)


def threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name == "outbox-heartbeat"]


async def test_a_worker_has_one_thread_as_long_as_it_runs(store: FaultyStore) -> None:
    before = threads()
    worker = Worker(store)

    for _ in range(2):
        await worker.start()
        assert len(threads()) == len(before) + 1
        await worker.stop(timeout=0)
        assert threads() == before


async def test_the_thread_ends_with_its_loop_though_nobody_stops_the_worker(
    store: FaultyStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("outbox_core.threads.HOME_INTERVAL", 0.01)
    before = threads()
    worker = Worker(store)

    def forgetful() -> None:
        loop = asyncio.new_event_loop()
        loop.run_until_complete(worker.start())
        for task in asyncio.all_tasks(loop):
            task.cancel()
        with suppress(asyncio.CancelledError):
            loop.run_until_complete(asyncio.gather(*asyncio.all_tasks(loop), return_exceptions=True))
        loop.close()

    await asyncio.to_thread(forgetful)

    await until(lambda: threads() == before)


async def test_an_idle_worker_has_no_connection_for_leases(store: FaultyStore, worker: Worker) -> None:
    worker.add(consumer(_ignore))
    await asyncio.sleep(0.5)  # twice as long as it takes to look

    assert store.connections == 2  # one that claims, one that settles


async def test_a_connection_for_leases_is_there_before_the_first_runs_down_and_is_given_back(
    store: FaultyStore, worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("outbox_core.heartbeat.IDLE", 0.3)
    gate = asyncio.Event()
    worker.add(consumer(lambda _: gate.wait()))
    await store.insert([compose("a", "orders")], None)

    await until(lambda: store.connections == 3)
    assert not any(call == "extend" for call, _ in store.calls)
    gate.set()

    await until(lambda: worker._heartbeat._keeper._link is None)


async def test_leases_are_extended_while_the_loop_is_blocked(store: FaultyStore, worker: Worker) -> None:
    extended_meanwhile: list[int] = []

    async def handle(delivery: Delivery) -> None:
        before = len(store.calls)
        time.sleep(1.2)  # noqa: ASYNC251  what a careless handler does
        extended_meanwhile.append(sum(call == "extend" for call, _ in store.calls[before:]))
        assert time.monotonic() < delivery.lease_ends

    worker.add(consumer(handle, lease_ttl_seconds=1.0))
    await store.insert([compose("a", "orders")], None)

    await until(lambda: extended_meanwhile)
    assert extended_meanwhile[0] >= 2


async def test_what_is_settled_while_an_extension_is_on_its_way_is_not_lost(
    store: FaultyStore, worker: Worker, events: list[Event]
) -> None:
    """The row is gone when the extension arrives, and the loop is told so before it knows of the settlement."""
    settled, looked = threading.Event(), threading.Event()

    def before(call: str, bodies: list[str]) -> None:
        if call == "extend":
            settled.wait(5)

    def after(call: str, bodies: list[str]) -> None:
        if call == "settle":
            settled.set()
            looked.wait(5)  # the loop is blocked with the answer in its hands
        if call == "ours":
            looked.set()

    store.before, store.after = before, after
    worker.add(consumer(lambda _: asyncio.sleep(0.6), lease_ttl_seconds=1.0))
    await store.insert([compose("a", "orders")], None)

    await until(lambda: looked.is_set() and worker._settler.idle)
    await asyncio.sleep(0)
    assert not any(isinstance(event, LeaseLost) for event in events)


async def test_a_lease_that_went_to_another_worker_is_told_on_the_loop(
    store: FaultyStore, worker: Worker, events: list[Event]
) -> None:
    told: list[str] = []
    worker.watch(lambda event: told.append(threading.current_thread().name) if isinstance(event, LeaseLost) else None)
    worker.add(consumer(lambda _: asyncio.Event().wait(), lease_ttl_seconds=1.0))
    await store.insert([compose("a", "orders")], None)
    await until(lambda: not worker._settler.idle)

    store.give_to_another_worker("a")

    await until(lambda: told)
    assert told == [threading.current_thread().name]
    assert worker._settler.idle


async def test_an_outage_shorter_than_the_lease_costs_nothing(
    store: FaultyStore, worker: Worker, events: list[Event]
) -> None:
    gate, started = asyncio.Event(), []

    async def handle(delivery: Delivery) -> None:
        started.append(delivery)
        await gate.wait()

    worker.add(consumer(handle, lease_ttl_seconds=2.0))
    await store.insert([compose("a", "orders")], None)
    await until(lambda: started)
    store.down = True
    await until(lambda: ConnectionLost in [type(event) for event in events if _of_heartbeat(event)])
    store.down = False
    await until(lambda: ConnectionRestored in [type(event) for event in events if _of_heartbeat(event)])
    await asyncio.sleep(max(0.0, started[0].lease_ends - time.monotonic() - 1.0))
    gate.set()

    await until(lambda: worker._settler.idle)
    assert len(started) == 1
    assert not any(isinstance(event, LeaseLost) for event in events)


def _of_heartbeat(event: Event) -> bool:
    return isinstance(event, ConnectionLost | ConnectionRestored) and event.role == "heartbeat"


async def test_nothing_starts_on_a_lease_that_is_over(store: FaultyStore, worker: Worker) -> None:
    """Both threads stood still, and another worker has what lay in the buffer."""
    started: list[str] = []
    await store.insert([compose(body, "orders") for body in ("first", "taken", "kept")], None)

    async def handle(delivery: Delivery) -> None:
        started.append(delivery.payload.decode())
        if delivery.payload == b"first":
            store.give_to_another_worker("taken")
            for one in worker._settler.leases():
                one.lease_ends = 0.0
            worker._settler.watched = 0.0

    worker.add(consumer(handle, prefetch=3))

    await until(lambda: "kept" in started)
    assert started == ["first", "kept"]


async def _ignore(delivery: Delivery) -> None:
    pass
