"""Which bands are asked for how much: the claimer's plan, without a claim."""

from collections.abc import Sequence
from datetime import timedelta

import pytest

from outbox_core.claimer import Claimer
from outbox_core.events import Event
from outbox_core.links import LinkKeeper
from outbox_core.memory import MemoryStore
from outbox_core.message import Delivery
from outbox_core.options import ConsumerOptions
from outbox_core.settler import Settler
from outbox_core.slots import Consumer
from outbox_core.store import CLAIM_BYTES, Band, Want
from tests.core.deliveries import NOON, delivery


async def ignore(deliveries: Sequence[Delivery]) -> None: ...


def observe(event: Event) -> None: ...


class Planner:
    """A claimer that only plans, and is told what a claim would have given."""

    def __init__(self, store: MemoryStore, *consumers: Consumer) -> None:
        keeper = LinkKeeper("claim", store, observe)
        self.claimer = Claimer(keeper, Settler(keeper, worker="w1", observe=observe), observe=observe)
        self.consumers = consumers
        for consumer in consumers:
            self.claimer.add(consumer)

    def plan(self) -> list[Want]:
        return self.claimer._plan(self.consumers)

    def learn(self, **found: int) -> None:
        """So many messages of each queue, a second apart, at priority 0."""
        deliveries = [
            delivery(queue=queue, due=(NOON + timedelta(seconds=number)).timestamp())
            for queue, count in found.items()
            for number in range(count)
        ]
        self.learn_of(*deliveries)

    def learn_of(self, *deliveries: Delivery) -> None:
        wants = self.plan()
        for consumer in self.consumers:
            consumer.more = False
        self.claimer._learn(wants, deliveries, self.consumers)


def consumer(*queues: str, prefetch: int = 12) -> Consumer:
    return Consumer(ConsumerOptions.of(queues, {"prefetch": prefetch}), ignore)


def asked(wants: Sequence[Want]) -> list[tuple[str, int]]:
    return [(want.band.queue, want.limit) for want in wants]


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore()


def test_at_first_each_queue_is_asked_for_all_that_there_is_room_for(store: MemoryStore) -> None:
    planner = Planner(store, consumer("a", "b"))

    assert asked(planner.plan()) == [("a", 12), ("b", 12)]


def test_hot_queues_share_the_room_after_the_quiet_ones(store: MemoryStore) -> None:
    planner = Planner(store, consumer("a", "b", "c", "d"))

    planner.learn(b=12, d=12)

    wants = asked(planner.plan())
    assert wants[:2] == [("a", 6), ("c", 6)]
    assert sorted(wants[2:]) == [("b", 6), ("d", 6)]


def test_hot_queues_take_turns_at_being_asked_first(store: MemoryStore) -> None:
    planner = Planner(store, consumer("a", "b", "c"))
    planner.learn(a=12, b=12, c=12)

    firsts = [asked(planner.plan())[0][0] for _ in range(6)]

    assert {firsts.count("a"), firsts.count("b"), firsts.count("c")} == {2}


def test_even_without_much_room_each_hot_queue_is_asked_for_one(store: MemoryStore) -> None:
    planner = Planner(store, consumer("a", "b", "c", prefetch=2))

    planner.learn(a=2, b=2, c=2)

    assert sorted(asked(planner.plan())) == [("a", 1), ("b", 1), ("c", 1)]


def test_consumers_have_room_of_their_own(store: MemoryStore) -> None:
    planner = Planner(store, consumer("a", prefetch=5), consumer("b", prefetch=7))

    assert asked(planner.plan()) == [("a", 5), ("b", 7)]


def test_a_full_claim_says_that_there_is_more_and_where_to_go_on(store: MemoryStore) -> None:
    its = consumer("a")
    planner = Planner(store, its)

    planner.learn(a=12)

    assert its.more
    assert planner.plan() == [Want(Band("a", 0), 12, since=NOON.timestamp())]


def test_a_short_claim_says_that_there_is_no_more(store: MemoryStore) -> None:
    its = consumer("a")
    planner = Planner(store, its)

    planner.learn(a=11)

    assert not its.more
    assert since(planner) == [None]


def test_a_short_claim_above_a_mark_is_followed_by_one_without_it(store: MemoryStore) -> None:
    its = consumer("a")
    planner = Planner(store, its)
    planner.learn(a=12)

    planner.learn(a=3)

    assert its.more
    assert since(planner) == [None]
    planner.learn(a=3)
    assert not its.more


def test_a_claim_that_had_all_its_bytes_says_that_there_is_more_and_where_to_go_on(store: MemoryStore) -> None:
    its = consumer("a")
    planner = Planner(store, its)

    planner.learn_of(
        delivery(queue="a", payload=b"x", due=NOON.timestamp()),
        delivery(queue="a", payload=bytes(CLAIM_BYTES - 1), due=(NOON + timedelta(seconds=1)).timestamp()),
    )

    assert its.more
    assert since(planner) == [NOON.timestamp()]


def test_a_claim_that_had_a_byte_less_has_come_to_the_end(store: MemoryStore) -> None:
    its = consumer("a")
    planner = Planner(store, its)

    planner.learn_of(delivery(queue="a", payload=bytes(CLAIM_BYTES - 1)))

    assert not its.more
    assert since(planner) == [None]


def test_bands_for_which_there_were_no_bytes_left_may_have_more_and_keep_their_marks(store: MemoryStore) -> None:
    before, cut, behind = consumer("a"), consumer("b"), consumer("c")
    planner = Planner(store, before, cut, behind)
    planner.learn(c=12)

    planner.learn_of(delivery(queue="a"), delivery(queue="b", payload=bytes(CLAIM_BYTES)))

    assert [its.more for its in (before, cut, behind)] == [False, True, True]
    assert since(planner) == [None, NOON.timestamp(), NOON.timestamp()]


def since(planner: Planner) -> list[float | None]:
    return [want.since for want in planner.plan()]
