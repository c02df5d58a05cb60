"""The engine when a database refuses, falls silent or forgets, and when handlers do not behave."""

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from time import monotonic

import pytest

from outbox_core import worker as worker_module
from outbox_core.envelope import compose
from outbox_core.events import Claimed, Event, LeaseLost, Settled
from outbox_core.links import LinkDown, LinkKeeper
from outbox_core.message import Delivery
from outbox_core.store import Band, Listener, Want
from outbox_core.worker import Worker
from tests.contract.harness import batch_consumer, consumer, until
from tests.core.faults import FaultyStore


@pytest.fixture
async def store() -> FaultyStore:
    return FaultyStore()


@pytest.fixture
async def worker(store: FaultyStore) -> AsyncIterator[Worker]:
    worker = Worker(store, name="w1")
    await worker.start()
    yield worker
    await worker.stop(timeout=0.1)


async def publish(store: FaultyStore, *bodies: str, queue: str = "orders") -> None:
    await store.insert([compose(body, queue) for body in bodies], None)


async def become_suspects(store: FaultyStore, *bodies: str) -> None:
    """Publish messages that a worker claimed and took with it when it died."""
    await publish(store, *bodies)
    link = await store.connect()
    await link.claim([Want(Band("orders"), len(bodies))], total=len(bodies), lease=0.0)


async def is_empty(store: FaultyStore) -> bool:
    return await store.fetch_unprocessed(None, 10, None) == []


async def do_nothing(delivery: Delivery) -> None:
    pass


# Suspects


async def test_a_suspect_is_settled_before_the_next_one_begins(store: FaultyStore, worker: Worker) -> None:
    await become_suspects(store, "a", "b", "c")

    worker.add(consumer(do_nothing, max_workers=3))
    await until(lambda: is_empty(store))

    assert [call for call in store.calls if call[0] != "extend"] == [
        (call, [body]) for body in ("a", "b", "c") for call in ("begin", "settle")
    ]


async def run_a_suspect_beside(body: str, store: FaultyStore, worker: Worker) -> tuple[asyncio.Event, list[bytes]]:
    """A suspect whose handler waits for the event, and one that is held and waits for it; the bodies that have begun."""
    gate, started = asyncio.Event(), list[bytes]()
    await become_suspects(store, "suspect")
    await publish(store, body)

    async def handle(delivery: Delivery) -> None:
        started.append(delivery.payload)
        await gate.wait()

    worker.add(consumer(handle, max_workers=2, lease_ttl_seconds=1.0))
    await until(lambda: started and len(worker._settler._held) == 2)
    return gate, started


async def test_a_message_that_lost_its_lease_while_it_waited_for_a_suspect_is_not_started(
    store: FaultyStore, worker: Worker
) -> None:
    gate, started = await run_a_suspect_beside("normal", store, worker)
    store.give_to_another_worker("normal")
    await until(lambda: len(worker._settler._held) == 1)
    gate.set()
    await until(lambda: left(store) == ["normal"])

    assert started == [b"suspect"]


async def test_a_message_whose_lease_ran_out_while_it_waited_for_a_suspect_is_not_started(
    store: FaultyStore, worker: Worker
) -> None:
    gate, started = await run_a_suspect_beside("normal", store, worker)
    store.before = lambda call, bodies: _refuse(call == "extend")
    (normal,) = [delivery for delivery in worker._settler.leases() if not delivery.suspect]
    store.give_to_another_worker("normal")
    await until(lambda: monotonic() > normal.lease_ends)  # the suspect, whose lease ends too, may be claimed again here
    gate.set()
    await until(lambda: not worker._settler.leases())

    assert b"normal" not in started


async def test_what_follows_a_lost_message_of_its_key_in_a_batch_is_not_started(
    store: FaultyStore, worker: Worker
) -> None:
    gate = asyncio.Event()
    handled: list[list[bytes]] = []
    await become_suspects(store, "suspect")

    async def handle(batch: Sequence[Delivery]) -> None:
        handled.append([delivery.payload for delivery in batch])
        await gate.wait()

    worker.add(batch_consumer(handle, max_workers=2, lease_ttl_seconds=1.0))
    await until(lambda: handled)
    await store.insert([compose(body, "orders", key="a") for body in ("a1", "a2")], None)
    await until(lambda: len(worker._settler.leases()) == 3)
    store.give_to_another_worker("a1")
    await until(lambda: len(worker._settler.leases()) == 2)
    gate.set()
    await until(lambda: not worker._settler.leases())

    assert handled == [[b"suspect"]]


async def test_a_suspect_whose_outcome_is_refused_does_not_keep_its_slot(
    store: FaultyStore, worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("outbox_core.slots.BLAME_PATIENCE", 0.1)
    store.before = lambda call, bodies: _refuse(call == "settle" and "bad" in bodies)
    await become_suspects(store, "bad", "good")

    worker.add(consumer(do_nothing))

    await until(lambda: left(store) == ["bad"])
    store.before = lambda call, bodies: None


# Settling


def _refuse(refused: bool) -> None:
    if refused:
        raise RuntimeError("refused by the database")


async def test_a_settlement_that_the_database_refuses_holds_up_no_other(store: FaultyStore, worker: Worker) -> None:
    store.before = lambda call, bodies: _refuse(call == "settle" and "bad" in bodies)
    await publish(store, "bad", *(str(number) for number in range(20)))

    worker.add(consumer(do_nothing, max_workers=4))

    await until(lambda: left(store) == ["bad"])
    store.before = lambda call, bodies: None


def left(store: FaultyStore) -> list[str]:
    return [row.message.payload.decode() for row in store._rows.values()]


async def test_a_settlement_that_is_always_refused_is_given_up_once_others_are_not(
    store: FaultyStore, worker: Worker, caplog: pytest.LogCaptureFixture
) -> None:
    store.before = lambda call, bodies: _refuse(call == "settle" and "bad" in bodies)
    handled: list[bytes] = []

    async def handle(delivery: Delivery) -> None:
        handled.append(delivery.payload)

    worker.add(consumer(handle, max_workers=4, lease_ttl_seconds=1.0))
    await publish(store, "bad")

    async def redelivered() -> bool:
        await publish(store, "good")
        await asyncio.sleep(0.1)
        return handled.count(b"bad") > 1

    await until(redelivered, within=20)
    store.before = lambda call, bodies: None
    assert "cannot settle message" in caplog.text


async def test_nothing_is_given_up_while_nothing_can_be_written(store: FaultyStore, worker: Worker) -> None:
    handled: list[bytes] = []
    refused = 0

    def refuse(call: str, bodies: list[str]) -> None:
        nonlocal refused
        if call == "settle" and refused < 8:
            refused += 1
            raise RuntimeError("refused by the database")

    async def handle(delivery: Delivery) -> None:
        handled.append(delivery.payload)

    store.before = refuse
    await publish(store, "a")
    worker.add(consumer(handle, lease_ttl_seconds=1.0))

    await until(lambda: is_empty(store), within=15)
    assert handled == [b"a"]


async def test_a_worker_that_cannot_settle_is_unhealthy(
    store: FaultyStore, worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("outbox_core.settler.STUCK_AFTER", 0.2)
    store.before = lambda call, bodies: _refuse(call == "settle")
    await publish(store, "a")
    worker.add(consumer(do_nothing))
    assert await worker.ping()

    async def unhealthy() -> bool:
        return not await worker.ping()

    await until(unhealthy)
    store.before = lambda call, bodies: None
    await until(worker.ping)


async def test_outcomes_whose_answer_was_lost_are_not_called_lost_leases(store: FaultyStore) -> None:
    events: list[Event] = []
    worker = Worker(store, observers=[events.append])
    answers_lost = 0

    def lose_the_answer(call: str, bodies: list[str]) -> None:
        nonlocal answers_lost
        if call == "settle" and len(bodies) > 1 and not answers_lost:
            answers_lost += 1
            raise ConnectionError("cut before the answer")

    store.after = lose_the_answer
    await worker.start()
    worker.add(consumer(do_nothing, max_workers=8, lease_ttl_seconds=1.0))
    await publish(store, *(str(number) for number in range(8)))
    await until(lambda: answers_lost == 1 and not worker._settler._held)
    await worker.stop(timeout=1)

    assert not any(isinstance(event, LeaseLost) for event in events)


async def test_an_extension_between_a_lost_answer_and_its_repetition_loses_nothing(store: FaultyStore) -> None:
    events: list[Event] = []
    worker = Worker(store, observers=[events.append])

    def lose_every_answer(call: str, bodies: list[str]) -> None:
        if call == "settle" and ("extend", ["a"]) not in store.calls:
            raise ConnectionError("cut before the answer")

    store.after = lose_every_answer
    await worker.start()
    # Long enough for the longest pause between two tries, a second, after the extension that comes when a third is gone.
    worker.add(consumer(do_nothing, lease_ttl_seconds=3.0))
    await publish(store, "a")
    await until(lambda: ("extend", ["a"]) in store.calls)
    await worker.stop(timeout=1)

    assert not any(isinstance(event, LeaseLost) for event in events)


# Leases


async def test_a_batch_whose_leases_are_lost_one_after_the_other_is_cut_once(
    store: FaultyStore, worker: Worker
) -> None:
    cut, cleaned_up = asyncio.Event(), asyncio.Event()
    handled: list[list[bytes]] = []

    async def handle(batch: Sequence[Delivery]) -> None:
        handled.append([delivery.payload for delivery in batch])
        if len(handled) == 1:
            try:
                await asyncio.Event().wait()
            finally:
                cut.set()
                await cleaned_up.wait()

    await publish(store, "a", "b")
    worker.add(batch_consumer(handle, cancel_on_lease_lost=True))
    await until(lambda: handled == [[b"a", b"b"]])
    first, second = list(worker._settler._held)
    worker._settler.forget(first)
    await cut.wait()
    worker._settler.forget(second)
    cleaned_up.set()
    await publish(store, "c")

    await until(lambda: handled[1:] == [[b"c"]])
    assert await worker.ping()


async def test_a_worker_that_claims_its_own_message_again_gives_up_the_older_delivery(
    store: FaultyStore, worker: Worker
) -> None:
    runs: list[Delivery] = []

    async def handle(delivery: Delivery) -> None:
        runs.append(delivery)
        if len(runs) == 1:
            await asyncio.Event().wait()

    store.before = lambda call, bodies: _refuse(call == "extend")
    await publish(store, "a")
    worker.add(consumer(handle, max_workers=2, lease_ttl_seconds=1.0, cancel_on_lease_lost=True))
    await until(lambda: runs)
    (first,) = runs
    await until(lambda: all(row.token != first.token for row in store._rows.values()))
    store.before = lambda call, bodies: None

    await until(lambda: is_empty(store))
    assert first.lease_lost
    assert [run.suspect for run in runs] == [False, True]


async def test_a_draining_consumer_keeps_its_short_leases(store: FaultyStore, worker: Worker) -> None:
    gate = asyncio.Event()
    started: list[bytes] = []

    async def handle(delivery: Delivery) -> None:
        started.append(delivery.payload)
        await gate.wait()

    leaving = consumer(handle, lease_ttl_seconds=1.0)
    worker.add(leaving)
    worker.add(consumer(do_nothing, "mails", lease_ttl_seconds=30.0))
    await publish(store, "a")
    await until(lambda: started)
    removing = asyncio.create_task(worker.remove(leaving, timeout=10))
    await asyncio.sleep(1.5)

    stolen = await (await store.connect()).claim([Want(Band("orders"), 1)], total=1, lease=60.0)
    gate.set()
    await removing

    assert stolen == []
    assert await is_empty(store)


# Stopping


async def test_a_stop_waits_for_a_consumer_that_is_being_drained(store: FaultyStore, worker: Worker) -> None:
    gate = asyncio.Event()
    started: list[bytes] = []

    async def handle(delivery: Delivery) -> None:
        started.append(delivery.payload)
        await gate.wait()

    leaving = consumer(handle)
    worker.add(leaving)
    await publish(store, "a")
    await until(lambda: started)
    removing = asyncio.create_task(worker.remove(leaving, timeout=10))
    await asyncio.sleep(0)
    stopping = asyncio.create_task(worker.stop(timeout=10))
    asyncio.get_running_loop().call_later(0.1, gate.set)
    await asyncio.gather(removing, stopping)

    assert await is_empty(store)


async def test_a_consumer_is_drained_while_others_never_rest(
    store: FaultyStore, worker: Worker, caplog: pytest.LogCaptureFixture
) -> None:
    store.latency = 0.01
    leaving = consumer(do_nothing)
    worker.add(leaving)
    worker.add(consumer(do_nothing, "mails", max_workers=4))
    flooding = asyncio.create_task(flood(store))
    await publish(store, "a")
    await until(lambda: any("a" in bodies for _, bodies in store.calls))

    async with asyncio.timeout(2):
        await worker.remove(leaving, timeout=1)
    flooding.cancel()

    assert "could not be written" not in caplog.text


async def test_a_slow_database_is_not_given_more_bytes_than_wait_for_it(
    store: FaultyStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("outbox_core.settler.MAX_UNSETTLED_BYTES", 20_000)
    monkeypatch.setattr("outbox_core.claimer.SURVEY_EVERY", 0.05)
    store.latency = 0.1
    held = most = 0

    def observe(event: Event) -> None:
        nonlocal held, most
        if isinstance(event, Claimed | Settled):
            held += event.count if isinstance(event, Claimed) else -event.count
            most = max(most, held)

    await publish(store, *["x" * 1_000] * 100)
    worker = Worker(store, name="w1", observers=[observe])
    await worker.start()
    worker.add(consumer(do_nothing, prefetch=5))
    await until(lambda: is_empty(store))
    await worker.stop(timeout=1)

    assert 20 < most <= 20 + 1 + 5


async def flood(store: FaultyStore) -> None:
    while True:
        await publish(store, *(str(number) for number in range(20)), queue="mails")
        await asyncio.sleep(0.001)


async def test_a_handler_that_ignores_its_cancellation_does_not_hold_up_the_stop(
    store: FaultyStore, worker: Worker, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("outbox_core.slots.CUT_TIMEOUT", 0.1)
    at_last = asyncio.Event()
    stubborn: list[asyncio.Task[object] | None] = []

    async def handle(delivery: Delivery) -> None:
        stubborn.append(asyncio.current_task())
        while not at_last.is_set():
            try:
                await at_last.wait()
            except asyncio.CancelledError:
                continue

    worker.add(consumer(handle))
    await publish(store, "a")
    await until(lambda: stubborn)

    async with asyncio.timeout(2):
        await worker.stop(timeout=0.05)

    assert "goes on after its cancellation" in caplog.text
    at_last.set()
    await asyncio.gather(*(task for task in stubborn if task is not None), return_exceptions=True)


async def test_a_closed_keeper_connects_no_more(store: FaultyStore) -> None:
    keeper = LinkKeeper("claim", store, lambda event: None)
    await keeper.connect()
    await keeper.close()

    with pytest.raises(LinkDown, match="stopped"):
        await keeper.call(lambda link: link.ping())
    assert store.connections == 1


# Waking


class DeafStore(FaultyStore):
    async def listen(self, heard: object) -> None:  # type: ignore[override]  # a store without wake-ups
        return None


async def test_a_slot_that_becomes_free_asks_for_what_came_meanwhile() -> None:
    store = DeafStore()
    worker = Worker(store)
    await worker.start()
    begun: dict[bytes, float] = {}
    ended: dict[bytes, float] = {}

    async def handle(delivery: Delivery) -> None:
        begun[delivery.payload] = monotonic()
        await asyncio.sleep(0.5 if delivery.payload == b"slow" else 0.02)
        ended[delivery.payload] = monotonic()

    worker.add(consumer(handle, max_fetch_interval=5.0))
    await publish(store, *(str(number) for number in range(10)))
    await until(lambda: len(ended) == 10)
    await publish(store, "slow")
    await until(lambda: b"slow" in begun)
    await asyncio.sleep(0.3)
    await publish(store, "next")
    await until(lambda: b"next" in begun)
    await worker.stop(timeout=1)

    assert begun[b"next"] - ended[b"slow"] < 0.2


class FlakyListening(FaultyStore):
    """Listening fails while the store is down, and what listens ends when it goes down."""

    def __init__(self) -> None:
        super().__init__()
        self.heard_again = 0
        self.cut = asyncio.Event()

    async def listen(self, heard: object) -> Listener:  # type: ignore[override]
        if self.down:
            raise ConnectionError("the database is down")
        self.heard_again += 1
        listener = await super().listen(heard)  # type: ignore[arg-type]
        listener.closed = self.cut.wait  # type: ignore[method-assign,assignment]
        return listener

    def go_down(self) -> None:
        self.down = True
        self.cut.set()

    def come_back(self) -> None:
        self.cut = asyncio.Event()
        self.down = False


async def test_a_worker_listens_again_soon_after_an_outage(caplog: pytest.LogCaptureFixture) -> None:
    store = FlakyListening()
    worker = Worker(store)
    await worker.start()
    worker.add(consumer(do_nothing))
    store.go_down()
    await until(lambda: "no wake-ups" in caplog.text)
    await asyncio.sleep(0.5)

    store.come_back()

    await until(lambda: store.heard_again == 2, within=5)
    await worker.stop(timeout=1)
    assert [record.levelno for record in caplog.records if "no wake-ups" in record.message] == [logging.WARNING]


async def test_a_listener_that_falls_silent_is_noticed(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(worker_module, "PROOF_AGAIN", 0.05)
    monkeypatch.setattr(worker_module, "PROOF_TIMEOUT", 0.05)
    store = FaultyStore()
    worker = Worker(store)
    await worker.start()

    store._listeners.clear()

    await until(lambda: "a notification to itself did not arrive" in caplog.text)
    await until(lambda: len(store._listeners) == 1)
    await worker.stop(timeout=1)
