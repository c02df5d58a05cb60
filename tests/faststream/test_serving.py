"""Which queues a process serves, with how many handlers at once, and what its handlers are to everybody else."""

import asyncio

import pytest

from outbox_core.errors import NotStarted, OptionError, WrongType
from outbox_core.events import Event, WorkerStarted
from outbox_sqlalchemy import OutboxBroker, OutboxRouter
from tests.places import Place, running, until


def three_queues(place: Place, got: list[tuple[str, int]], **options: object) -> OutboxBroker:
    """A broker with subscribers of orders and letters, and of mails."""
    broker = place.broker(**options)

    @broker.subscriber(["orders", "letters"])
    async def handle(body: int) -> None:
        got.append(("orders or letters", body))

    @broker.subscriber("mails")
    async def mail(body: int) -> None:
        got.append(("mails", body))

    return broker


async def publish_to_each(broker: OutboxBroker) -> None:
    for number, queue in enumerate(["orders", "letters", "mails"]):
        await broker.publish(number, queue)


async def test_a_broker_serves_all_its_queues(both: Place) -> None:
    got: list[tuple[str, int]] = []
    broker = three_queues(both, got)

    async with running(broker):
        await publish_to_each(broker)
        await broker.drained()

    assert sorted(got) == [("mails", 2), ("orders or letters", 0), ("orders or letters", 1)]


async def test_the_queues_that_are_named_are_served(both: Place) -> None:
    got: list[tuple[str, int]] = []
    events: list[Event] = []
    broker = three_queues(both, got, observers=[events.append])
    broker.serve(["orders"])

    async with running(broker):
        await publish_to_each(broker)
        await broker.drained()
        assert await broker.ping()

    assert got == [("orders or letters", 0)]
    assert sorted(row.queue for row in both.rows()) == ["letters", "mails"]
    assert [event.queues for event in events if isinstance(event, WorkerStarted)] == [("orders",)]


async def test_a_queue_can_be_excluded(place: Place) -> None:
    got: list[tuple[str, int]] = []
    broker = three_queues(place, got)
    broker.serve(exclude=["orders", "mails"])

    async with running(broker):
        await publish_to_each(broker)
        await broker.drained()

    assert got == [("orders or letters", 1)]


async def test_excluding_wins(place: Place) -> None:
    got: list[tuple[str, int]] = []
    broker = three_queues(place, got)
    broker.serve(["orders", "mails"], exclude=["mails"])

    assert broker.served_queues == ["orders"]
    assert broker.subscribed_queues == ["letters", "mails", "orders"]


async def test_what_is_served_may_change_from_start_to_start(place: Place) -> None:
    got: list[tuple[str, int]] = []
    broker = three_queues(place, got)
    broker.serve(["mails"])
    async with running(broker):
        await publish_to_each(broker)
        await broker.drained()
    assert got == [("mails", 2)]

    broker.serve()
    async with running(broker):
        await broker.drained()

    assert sorted(got) == [("mails", 2), ("orders or letters", 0), ("orders or letters", 1)]


@pytest.mark.parametrize("how", [{"queues": ["order"]}, {"exclude": ["order"]}])
async def test_a_queue_without_a_subscriber_cannot_be_named(place: Place, how: dict[str, list[str]]) -> None:
    broker = three_queues(place, [])

    with pytest.raises(
        OptionError, match=r"no subscriber of queue 'order'; there are subscribers of \['letters', 'mails'"
    ):
        broker.serve(**how)


async def test_a_broker_that_serves_nothing_drains_at_once(place: Place) -> None:
    got: list[tuple[str, int]] = []
    broker = three_queues(place, got)
    broker.serve([])

    async with running(broker):
        await publish_to_each(broker)
        await broker.drained()

    assert got == []


async def test_a_broker_that_does_not_run_drains_nothing(place: Place) -> None:
    with pytest.raises(NotStarted, match="start it first"):
        await three_queues(place, []).drained()


async def test_a_halted_broker_begins_nothing_more(place: Place) -> None:
    got: list[tuple[str, int]] = []
    broker = three_queues(place, got)

    async with running(broker):
        broker.halt()
        await publish_to_each(broker)
        await others_take_turns(place)

    assert got == []
    assert [row.acquired_token for row in place.rows()] == [None] * 3


async def others_take_turns(place: Place) -> None:
    """Return when another broker has found something several times."""
    other = place.broker()
    got: list[int] = []

    @other.subscriber("parcels")
    async def handle(body: int) -> None:
        got.append(body)

    async with running(other):
        for number in range(3):
            await other.publish(number, "parcels")
            await until(lambda: [row for row in place.rows() if row.queue == "parcels"], [])
    assert got == [0, 1, 2]


# Concurrency


class Crowd:
    """Handlers that wait until as many as expected run, and remember how many ever did."""

    def __init__(self, expected: int) -> None:
        self.now = self.most = 0
        self.full = asyncio.Event()
        self._expected = expected

    async def enter(self) -> None:
        self.now += 1
        self.most = max(self.most, self.now)
        if self.now == self._expected:
            self.full.set()
        await self.full.wait()
        await asyncio.sleep(0.05)  # for one more to come in, if it could
        self.now -= 1


async def test_max_workers_of_the_broker_is_for_subscribers_that_do_not_say(both: Place) -> None:
    broker = both.broker(max_workers=3)
    router = OutboxRouter()
    crowds = {"orders": Crowd(3), "mails": Crowd(1), "letters": Crowd(3)}

    @broker.subscriber("orders")
    async def order(body: int) -> None:
        await crowds["orders"].enter()

    @broker.subscriber("mails", max_workers=1)
    async def mail(body: int) -> None:
        await crowds["mails"].enter()

    @router.subscriber("letters")
    async def letter(body: int) -> None:
        await crowds["letters"].enter()

    broker.include_router(router)
    for queue in crowds:
        await broker.publish_batch(*range(6), queue=queue)
    async with running(broker):
        await until(both.rows, [])

    assert {queue: crowd.most for queue, crowd in crowds.items()} == {"orders": 3, "mails": 1, "letters": 3}


@pytest.mark.parametrize(
    ("value", "error"), [(0, OptionError), (1_001, OptionError), ("2", WrongType), (True, WrongType)]
)
def test_max_workers_of_the_broker_is_checked(place: Place, value: object, error: type[Exception]) -> None:
    with pytest.raises(error, match="max_workers must be"):
        place.broker(max_workers=value)


# Handlers as functions


async def test_a_handler_is_still_the_function_that_was_written(place: Place) -> None:
    broker = place.broker()

    @broker.subscriber("orders")
    def double(body: int) -> int:
        return 2 * body

    @broker.subscriber("mails")
    async def halve(body: int) -> float:
        return body / 2

    assert double(21) == 42
    async with running(broker):
        await broker.publish(1, "orders")
        await until(place.rows, [])
        assert double(21) == 42
        assert await halve(84) == 42
    assert double(21) == 42
    async with running(broker):
        assert double(21) == 42


async def test_a_broker_that_serves_nothing_is_as_healthy_as_its_database(both: Place) -> None:
    broker = three_queues(both, [])
    broker.serve([])

    async with running(broker):
        assert await broker.ping(5.0)
    assert not await broker.ping(5.0)
