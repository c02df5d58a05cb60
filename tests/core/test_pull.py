"""Pulling when claims are slow, waiting ends at the wrong moment, or the database is away; on the store in memory."""

import asyncio
from collections.abc import AsyncIterator, Sequence

import pytest

from outbox_core.envelope import compose
from outbox_core.message import Delivery
from outbox_core.outcome import Ack
from outbox_core.store import CLAIM_BYTES, Band, Want
from outbox_core.worker import Worker
from tests.contract.harness import consumer, pulled, puller, until, vote
from tests.core.faults import FaultyLink, FaultyStore


class SlowStore(FaultyStore):
    """Keeps the answer of a claim that found something until it is let go."""

    def __init__(self) -> None:
        super().__init__()
        self.claimed, self.answer = asyncio.Event(), asyncio.Event()
        self.looks = 0
        self.begun, self.answer_of_begin = asyncio.Event(), asyncio.Event()
        self.answer_of_begin.set()

    async def connect(self) -> "SlowLink":
        return SlowLink(self)


class SlowLink(FaultyLink):
    def __init__(self, store: SlowStore) -> None:
        super().__init__(store)
        self._slow = store

    async def claim(
        self, wants: Sequence[Want], *, total: int, lease: float, most_bytes: int = CLAIM_BYTES
    ) -> list[Delivery]:
        self._slow.looks += 1
        deliveries = await super().claim(wants, total=total, lease=lease, most_bytes=most_bytes)
        if deliveries:
            self._slow.claimed.set()
            await self._slow.answer.wait()
        return deliveries

    async def begin(self, delivery: Delivery) -> bool:
        begun = await super().begin(delivery)
        self._slow.begun.set()
        await self._slow.answer_of_begin.wait()
        return begun


@pytest.fixture
async def store() -> SlowStore:
    return SlowStore()


@pytest.fixture
async def worker(store: SlowStore) -> AsyncIterator[Worker]:
    worker = Worker(store, name="w1")
    await worker.start()
    yield worker
    store.answer.set()
    await worker.stop(timeout=0.1)


async def publish(store: FaultyStore, *bodies: str) -> None:
    await store.insert([compose(body, "orders") for body in bodies], None)


async def do_nothing(delivery: Delivery) -> None: ...


async def is_given_back(store: FaultyStore) -> bool:
    (row,) = await store.fetch_unprocessed(None, 10, None)
    return (row.leased, row.attempts_count, row.deliveries_count) == (False, 0, 0)


async def test_what_arrives_for_a_cancelled_pull_is_given_back(store: SlowStore, worker: Worker) -> None:
    its = puller()
    worker.add(its)
    await publish(store, "a")
    cancelled = asyncio.create_task(its.pull(60.0))
    await store.claimed.wait()

    cancelled.cancel()
    await asyncio.wait([cancelled])
    store.answer.set()

    await until(lambda: is_given_back(store))
    delivery = await pulled(its)
    assert (delivery.payload, delivery.suspect) == (b"a", False)


async def test_what_arrives_after_the_timeout_goes_to_who_waits_next(store: SlowStore, worker: Worker) -> None:
    its = puller()
    worker.add(its)
    await publish(store, "a")
    assert await its.pull(0.05) is None
    await store.claimed.wait()
    following = asyncio.create_task(pulled(its))
    await until(lambda: its.attended)

    store.answer.set()

    assert (await following).payload == b"a"
    assert ("settle", ["a"]) not in store.calls


async def test_a_pull_that_is_cancelled_when_its_message_has_arrived_passes_it_on(
    store: SlowStore, worker: Worker
) -> None:
    its = puller()
    worker.add(its)
    store.answer.set()
    first, second = asyncio.create_task(its.pull(60.0)), asyncio.create_task(its.pull(60.0))
    await until(lambda: its.room() == 2)
    link = await store.connect()
    await publish(store, "a")
    (delivery,) = await link.claim([Want(Band("orders"), 1)], total=1, lease=30.0)
    worker._settler.hold([delivery], lease=30.0, since=asyncio.get_running_loop().time())

    its.add([delivery])
    first.cancel()

    assert await second is delivery
    assert first.cancelled()


async def test_nobody_waits_for_a_vote_that_a_stop_could_not_write(store: SlowStore, worker: Worker) -> None:
    its = puller()
    worker.add(its)
    store.answer.set()
    await publish(store, "a")
    delivery = await pulled(its)
    store.before = _refuse
    voting = asyncio.create_task(vote(its, delivery, Ack()))
    await until(lambda: ("settle", ["a"]) in store.calls)

    await worker.stop(timeout=0)

    async with asyncio.timeout(1):
        await voting
    assert delivery.lease_lost


def _refuse(call: str, bodies: list[str]) -> None:
    if call == "settle":
        raise RuntimeError("refused by the database")


async def test_a_vote_whose_caller_is_cancelled_is_written_nevertheless(store: SlowStore, worker: Worker) -> None:
    its = puller()
    worker.add(its)
    store.answer.set()
    store.latency = 0.1
    await publish(store, "a")
    voting = asyncio.create_task(vote(its, await pulled(its), Ack()))
    await until(lambda: ("settle", ["a"]) in store.calls)

    voting.cancel()
    await asyncio.wait([voting])

    await until(lambda: store._rows == {})


async def test_a_suspect_whose_lease_is_lost_in_the_queue_makes_room_for_another_message(
    store: SlowStore, worker: Worker
) -> None:
    store.answer.set()
    await publish(store, "first", "second")
    link = await store.connect()
    await link.claim([Want(Band("orders"), 2)], total=2, lease=0.0)
    its = puller(min_fetch_interval=60.0, max_fetch_interval=60.0)
    worker.add(its)
    worker.add(consumer(do_nothing, "mails", min_fetch_interval=60.0, max_fetch_interval=60.0))
    await pulled(its)
    waiting = asyncio.create_task(pulled(its))
    await until(lambda: len(its._suspects) == 1 and worker._claimer._armed == "armed")
    await publish(store, "third")

    store.give_to_another_worker("second")
    (second,) = its._suspects
    worker._settler.forget(second)

    async with asyncio.timeout(5):
        assert (await waiting).payload == b"third"


async def test_who_asks_while_a_message_is_being_given_back_does_not_sleep_past_it(
    store: SlowStore, worker: Worker
) -> None:
    its = puller(min_fetch_interval=60.0, max_fetch_interval=60.0)
    worker.add(its)
    store.latency = 0.2
    await publish(store, "a")
    assert await its.pull(0.05) is None
    store.answer.set()
    await until(lambda: ("settle", ["a"]) in store.calls)

    async with asyncio.timeout(5):
        assert (await pulled(its)).payload == b"a"


async def test_publishes_for_whom_nobody_waits_do_not_wake_the_others(store: SlowStore, worker: Worker) -> None:
    its = puller(min_fetch_interval=60.0, max_fetch_interval=60.0)
    worker.add(its)
    worker.add(consumer(do_nothing, "mails", min_fetch_interval=60.0, max_fetch_interval=60.0))
    await until(lambda: worker._claimer._armed == "armed" and store.looks == 2)

    for _ in range(5):
        await publish(store, "a")
        await asyncio.sleep(0.02)

    assert store.looks == 2


@pytest.mark.parametrize("left_when", ["waiting for its turn", "being counted"])
async def test_a_suspect_whose_puller_has_gone_is_still_a_suspect(
    store: SlowStore, worker: Worker, left_when: str
) -> None:
    store.answer.set()
    store.answer_of_begin.clear()
    await publish(store, "a")
    link = await store.connect()
    await link.claim([Want(Band("orders"), 1)], total=1, lease=0.0)
    its = puller()
    worker.add(its)
    waiting = asyncio.create_task(its.pull(60.0))
    counted = left_when == "being counted"
    async with worker._isolation.turn():
        await until(lambda: len(its._suspects) == 1)
        if not counted:
            waiting.cancel()
            await asyncio.wait([waiting])
    if counted:
        await store.begun.wait()
        waiting.cancel()
        await asyncio.wait([waiting])
    store.answer_of_begin.set()
    await until(lambda: ("settle", ["a"]) in store.calls)

    assert (await pulled(its)).suspect
    assert [body for call, body in store.calls if call == "begin"] == [["a"]] * (1 + counted)


async def test_a_message_whose_lease_was_over_when_its_claim_came_back_is_not_handed_out(
    store: SlowStore, worker: Worker
) -> None:
    its = puller(lease_ttl_seconds=1.0)
    worker.add(its)
    await publish(store, "a")
    waiting = asyncio.create_task(pulled(its))
    await store.claimed.wait()
    await asyncio.sleep(1.1)

    store.answer.set()

    assert (await waiting).suspect  # claimed once more
