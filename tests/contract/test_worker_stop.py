"""Stopping a worker: nothing is lost, nothing is blamed, and what runs may end."""

import asyncio
from collections.abc import Awaitable, Callable

from outbox_core.envelope import compose
from outbox_core.events import Event, WorkerStopped
from outbox_core.message import Delivery
from tests.contract.conftest import Work
from tests.contract.harness import Outbox, bodies, claim, consumer, until


class Gate:
    """A handler that waits until it is let go."""

    def __init__(self) -> None:
        self.started: list[str] = []
        self.cancelled: list[str] = []
        self.open = asyncio.Event()

    async def handle(self, delivery: Delivery) -> None:
        body = delivery.payload.decode()
        self.started.append(body)
        try:
            await self.open.wait()
        except asyncio.CancelledError:
            self.cancelled.append(body)
            raise


def leased(outbox: Outbox, count: int) -> Callable[[], Awaitable[bool]]:
    async def so_many() -> bool:
        return (await outbox.store.stats())["orders"].leased == count

    return so_many


async def test_what_has_not_begun_is_given_back_as_it_was(outbox: Outbox, work: Work) -> None:
    gate = Gate()
    events: list[Event] = []
    await outbox.publish(*(compose(str(number), "orders") for number in range(5)))
    worker = await work(consumer(gate.handle, prefetch=4), observers=[events.append])
    await until(leased(outbox, 4))

    stopping = asyncio.create_task(worker.stop(timeout=10))
    await until(leased(outbox, 1))
    gate.open.set()
    await stopping

    assert gate.started == ["0"]
    assert bodies(await outbox.pending()) == ["1", "2", "3", "4"]
    given_back = await claim(await outbox.link())
    assert {(delivery.attempts, delivery.deliveries, delivery.suspect) for delivery in given_back} == {(0, 0, False)}
    assert events[-1] == WorkerStopped("w1", released=3, abandoned=0)


async def test_stopping_waits_for_handlers_and_writes_what_they_did(outbox: Outbox, work: Work) -> None:
    gate = Gate()
    await outbox.publish(compose("a", "orders"))
    worker = await work(consumer(gate.handle))
    await until(lambda: gate.started)

    stopping = asyncio.create_task(worker.stop(timeout=10))
    asyncio.get_running_loop().call_later(0.05, gate.open.set)
    await stopping

    assert gate.cancelled == []
    assert await outbox.pending() == []


async def test_a_handler_that_is_cut_at_the_deadline_has_not_failed(outbox: Outbox, work: Work) -> None:
    gate = Gate()
    events: list[Event] = []
    await outbox.publish(compose("a", "orders"), compose("b", "orders"))
    worker = await work(consumer(gate.handle, max_workers=2), observers=[events.append])
    await until(lambda: len(gate.started) == 2)

    await worker.stop(timeout=0.05)

    assert sorted(gate.cancelled) == ["a", "b"]
    given_back = await claim(await outbox.link())
    assert bodies(given_back) == ["a", "b"]
    assert {(delivery.attempts, delivery.deliveries, delivery.suspect) for delivery in given_back} == {(0, 0, False)}
    assert events[-1] == WorkerStopped("w1", released=0, abandoned=2)


async def test_without_a_timeout_handlers_are_cut_at_once(outbox: Outbox, work: Work) -> None:
    gate = Gate()
    await outbox.publish(compose("a", "orders"))
    worker = await work(consumer(gate.handle))
    await until(lambda: gate.started)

    await worker.stop(timeout=0)

    assert gate.cancelled == ["a"]
    assert bodies(await claim(await outbox.link())) == ["a"]


async def test_an_idle_worker_stops_at_once(outbox: Outbox, work: Work) -> None:
    gate = Gate()
    worker = await work(consumer(gate.handle, max_fetch_interval=60.0, min_fetch_interval=60.0))

    async with asyncio.timeout(1):
        await worker.stop(timeout=60)


async def test_stopping_while_messages_pour_in_loses_none(outbox: Outbox, work: Work) -> None:
    handled: list[str] = []
    published = [str(number) for number in range(300)]
    await outbox.publish(*(compose(body, "orders") for body in published))

    async def handle(delivery: Delivery) -> None:
        handled.append(delivery.payload.decode())
        await asyncio.sleep(0.001)

    worker = await work(consumer(handle, max_workers=4))
    await until(lambda: len(handled) >= 50)
    await worker.stop(timeout=5)

    left = await outbox.pending()
    assert sorted(handled + bodies(left), key=int) == published
    assert not any(message.leased for message in left)


async def test_removing_one_consumer_leaves_the_others_at_work(outbox: Outbox, work: Work) -> None:
    gate, handled = Gate(), []

    async def handle(delivery: Delivery) -> None:
        handled.append(delivery.payload)

    going = consumer(gate.handle, "orders", prefetch=3)
    worker = await work(going, consumer(handle, "mails"))
    await outbox.publish(compose("a", "orders"), compose("b", "orders"))
    await until(leased(outbox, 2))
    gate.open.set()
    await worker.remove(going, timeout=10)
    left = bodies(await outbox.pending())

    await outbox.publish(compose("later", "orders"), compose("x", "mails"))

    await until(lambda: handled == [b"x"])
    assert bodies(await outbox.pending("orders")) == [*left, "later"]


async def test_a_message_that_waits_for_a_suspect_is_given_back(outbox: Outbox, work: Work) -> None:
    gate = Gate()
    await outbox.publish(compose("suspect", "orders"))
    await claim(await outbox.link(), lease=10)
    await outbox.age(11)
    await outbox.publish(compose("a", "orders"), compose("b", "orders"))
    worker = await work(consumer(gate.handle, max_workers=3))
    await until(lambda: gate.started)
    await until(leased(outbox, 3))

    await worker.stop(timeout=0.05)

    assert gate.started == ["suspect"]
    given_back = await claim(await outbox.link())
    assert [(delivery.payload, delivery.deliveries, delivery.suspect) for delivery in given_back] == [
        (b"suspect", 1, False),
        (b"a", 0, False),
        (b"b", 0, False),
    ]
