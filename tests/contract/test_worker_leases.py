"""Leases under a worker: extended while it lives, taken over when it does not, and suspects on their own."""

import asyncio
import time

import pytest

from outbox_core.envelope import compose
from outbox_core.events import Event, LeaseLost
from outbox_core.message import Delivery
from outbox_core.outcome import Ack
from tests.contract.conftest import Work
from tests.contract.harness import Outbox, bodies, claim, consumer, settle, until


async def all_gone(outbox: Outbox) -> bool:
    return await outbox.pending() == []


async def stolen(outbox: Outbox) -> Delivery:
    """The one message, claimed by somebody else after its lease has ended."""
    link = await outbox.link()
    deliveries: list[Delivery] = []

    async def taken() -> bool:
        await outbox.age(60)  # again if the worker extended its lease in between
        deliveries.extend(await claim(link))
        return bool(deliveries)

    await until(taken)
    return deliveries[0]


async def test_a_handler_slower_than_its_lease_has_its_message_to_itself(outbox: Outbox, work: Work) -> None:
    started: list[str] = []
    await outbox.publish(compose("slow", "orders"))

    async def handle(delivery: Delivery) -> None:
        started.append(delivery.payload.decode())
        await asyncio.sleep(1.3)

    options = {"lease_ttl_seconds": 1.0, "max_fetch_interval": 0.05}
    await work(consumer(handle, max_workers=2, **options), name="w1")
    await until(lambda: started)
    await work(consumer(handle, max_workers=2, **options), name="w2")

    await until(lambda: all_gone(outbox))
    assert started == ["slow"]


async def test_a_worker_does_not_claim_again_what_it_held_while_its_loop_was_blocked(
    outbox: Outbox, work: Work
) -> None:
    started: list[str] = []
    await outbox.publish(*(compose(body, "orders") for body in ["blocks", "a", "b", "c", "d", "e"]))

    async def handle(delivery: Delivery) -> None:
        started.append(delivery.payload.decode())
        if delivery.payload == b"blocks":
            time.sleep(1.3)  # noqa: ASYNC251  what a careless handler does

    await work(consumer(handle, max_workers=2, lease_ttl_seconds=1.0, max_fetch_interval=0.05))

    await until(lambda: all_gone(outbox))
    assert sorted(started) == ["a", "b", "blocks", "c", "d", "e"]


async def test_a_handler_that_blocks_the_loop_for_longer_than_the_leases_loses_none_to_another_worker(
    outbox: Outbox, work: Work
) -> None:
    """The other worker is on the same loop, and as quick to claim as this one is to extend.

    What is claimed by a statement whose answer waits for the loop is nobody's yet, so its lease may be over before it begins.
    """
    started: list[str] = []
    lost: list[str] = []

    async def handle(delivery: Delivery) -> None:
        started.append(delivery.payload.decode())
        if delivery.payload == b"blocks":
            time.sleep(2.5)  # noqa: ASYNC251  what a careless handler does
        await asyncio.sleep(0.1)

    options = {"max_workers": 3, "lease_ttl_seconds": 1.0, "max_fetch_interval": 0.05}

    def observe(event: Event) -> None:
        if isinstance(event, LeaseLost) and event.delivery.payload.decode() in started:
            lost.append(event.delivery.payload.decode())

    await work(consumer(handle, **options), name="w1", observers=[observe])
    await work(consumer(handle, **options), name="w2", observers=[observe])
    await outbox.publish(*(compose(body, "orders") for body in ["a", "b", "blocks", "c", "d"]))

    await until(lambda: all_gone(outbox))
    assert sorted(started) == ["a", "b", "blocks", "c", "d"]
    assert lost == []


@pytest.mark.parametrize("outbox", ["memory"], indirect=True)
async def test_the_shortest_lease_decides_how_often_leases_are_extended(outbox: Outbox, work: Work) -> None:
    started: list[str] = []
    await outbox.publish(compose("slow", "orders"))

    async def handle(delivery: Delivery) -> None:
        started.append(delivery.payload.decode())
        await asyncio.sleep(1.3)

    worker = await work(consumer(handle, "mails", lease_ttl_seconds=3_600.0))
    await asyncio.sleep(0.3)  # the worker has looked at its leases, and knows of the long one only
    worker.add(consumer(handle, max_workers=2, lease_ttl_seconds=1.0, max_fetch_interval=0.05))

    await until(lambda: all_gone(outbox))
    assert started == ["slow"]


@pytest.mark.parametrize("outbox", ["memory"], indirect=True)
async def test_what_waits_behind_a_slow_handler_goes_to_another_worker(outbox: Outbox, work: Work) -> None:
    stuck, handled = asyncio.Event(), []
    await outbox.publish(*(compose(body, "orders") for body in [*["quick"] * 20, "slow", *["behind"] * 5]))

    async def slow(delivery: Delivery) -> None:
        if delivery.payload == b"slow":
            stuck.set()
            await asyncio.Event().wait()

    async def quick(delivery: Delivery) -> None:
        handled.append((delivery.payload, delivery.deliveries, delivery.suspect))

    await work(consumer(slow), name="w1")
    await stuck.wait()
    await work(consumer(quick), name="w2")

    await until(lambda: len(handled) == 5)
    assert set(handled) == {(b"behind", 0, False)}


async def test_a_lost_lease_is_told_and_its_outcome_changes_nothing(outbox: Outbox, work: Work) -> None:
    started, finish = asyncio.Event(), asyncio.Event()
    events: list[Event] = []
    await outbox.publish(compose("a", "orders"))

    async def handle(delivery: Delivery) -> None:
        started.set()
        await finish.wait()

    await work(consumer(handle), observers=[events.append])
    await started.wait()
    taken_over = await stolen(outbox)
    finish.set()

    await until(lambda: any(isinstance(event, LeaseLost) for event in events))
    assert taken_over.suspect
    assert bodies(await outbox.pending()) == ["a"]
    assert await settle(await outbox.link(), taken_over, Ack()) == {taken_over.id}


async def test_a_handler_is_cut_when_its_lease_is_lost_if_asked_for(outbox: Outbox, work: Work) -> None:
    started, cut = asyncio.Event(), asyncio.Event()
    await outbox.publish(compose("a", "orders"))

    async def handle(delivery: Delivery) -> None:
        started.set()
        try:
            await asyncio.Event().wait()
        finally:
            assert delivery.lease_lost
            cut.set()

    await work(consumer(handle, cancel_on_lease_lost=True, lease_ttl_seconds=1.0))
    await started.wait()
    taken_over = await stolen(outbox)

    async with asyncio.timeout(5):
        await cut.wait()
    assert await settle(await outbox.link(), taken_over, Ack()) == {taken_over.id}


async def test_a_suspect_is_delivered_alone(outbox: Outbox, work: Work) -> None:
    running: set[str] = set()
    seen: list[tuple[str, frozenset[str]]] = []
    await outbox.publish(compose("suspect 1", "orders"), compose("suspect 2", "orders"))
    await claim(await outbox.link(), lease=10)
    await outbox.age(11)
    await outbox.publish(*(compose(f"normal {number}", "orders") for number in range(6)))

    async def handle(delivery: Delivery) -> None:
        body = delivery.payload.decode()
        running.add(body)
        for _ in range(10):
            await asyncio.sleep(0.001)
            seen.append((body, frozenset(running)))
        running.discard(body)

    await work(consumer(handle, max_workers=4))

    await until(lambda: all_gone(outbox))
    assert {others for body, others in seen if body == "suspect 1"} == {frozenset({"suspect 1"})}
    assert {others for body, others in seen if body == "suspect 2"} == {frozenset({"suspect 2"})}
    assert max(len(others) for _, others in seen) > 1


async def test_a_suspect_is_alone_among_all_consumers(outbox: Outbox, work: Work) -> None:
    alone: list[bool] = []
    mailing = 0
    await outbox.publish(compose("suspect", "orders"))
    await claim(await outbox.link(), lease=10)
    await outbox.age(11)
    await outbox.publish(*(compose(str(number), "mails") for number in range(50)))

    async def on_order(delivery: Delivery) -> None:
        for _ in range(10):
            await asyncio.sleep(0.001)
            alone.append(mailing == 0)

    async def on_mail(delivery: Delivery) -> None:
        nonlocal mailing
        mailing += 1
        await asyncio.sleep(0.001)
        mailing -= 1

    await work(consumer(on_mail, "mails", max_workers=3), consumer(on_order))

    await until(lambda: all_gone(outbox))
    assert alone == [True] * 10


async def test_a_suspect_is_counted_before_its_handler_starts(outbox: Outbox, work: Work) -> None:
    counted: list[list[int]] = []
    await outbox.publish(compose("a", "orders"))
    await claim(await outbox.link(), lease=10)
    await outbox.age(11)

    async def handle(delivery: Delivery) -> None:
        counted.append([message.deliveries_count for message in await outbox.pending()])

    await work(consumer(handle))

    await until(lambda: all_gone(outbox))
    assert counted == [[1]]


async def test_a_message_that_kills_its_workers_is_dead_in_the_end(outbox: Outbox, work: Work) -> None:
    link = await outbox.link()
    await outbox.publish(compose("killer", "orders"))
    await claim(link, lease=10)
    for _ in range(2):
        await outbox.age(11)
        (suspect,) = await claim(link, lease=10)
        await link.begin(suspect)
    await outbox.age(11)
    started: list[bytes] = []

    async def handle(delivery: Delivery) -> None:
        started.append(delivery.payload)

    await work(consumer(handle, max_deliveries=2))

    await until(outbox.dead_letters)
    (letter,) = await outbox.dead_letters()
    assert started == []
    assert (letter.reason, letter.attempts, letter.deliveries) == ("max_deliveries", 0, 2)


async def test_neighbours_of_a_killer_are_not_counted(outbox: Outbox, work: Work) -> None:
    link = await outbox.link()
    await outbox.publish(compose("neighbour", "orders"))
    for _ in range(5):
        await claim(link, lease=10)
        await outbox.age(11)
    handled: list[int] = []

    async def handle(delivery: Delivery) -> None:
        handled.append(delivery.deliveries)

    await work(consumer(handle, max_deliveries=1))

    await until(lambda: all_gone(outbox))
    assert handled == [0]
