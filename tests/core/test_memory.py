"""What is special about the store in memory: its clock is given, and its transactions are plain."""

from datetime import UTC, datetime, timedelta

import pytest

from outbox_core.envelope import compose
from outbox_core.errors import WrongType
from outbox_core.memory import MemoryStore
from outbox_core.outcome import DeadLetter
from outbox_core.store import Band, Settlement, Want

ORDERS = [Want(Band("orders"), 10)]


class Clock:
    """Stands still until it is moved."""

    def __init__(self) -> None:
        self.now = datetime(2026, 1, 1, tzinfo=UTC)

    def __call__(self) -> datetime:
        return self.now


async def test_the_clock_alone_decides_when_a_lease_ends() -> None:
    clock = Clock()
    store = MemoryStore(clock)
    link = await store.connect()
    await store.insert([compose("a", "orders")], None)
    await link.claim(ORDERS, total=10, lease=30)

    clock.now += timedelta(seconds=29.999)
    assert await link.claim(ORDERS, total=10, lease=30) == []
    clock.now += timedelta(seconds=0.001)
    assert len(await link.claim(ORDERS, total=10, lease=30)) == 1


async def test_a_message_is_due_on_the_very_moment() -> None:
    clock = Clock()
    store = MemoryStore(clock)
    link = await store.connect()
    await store.insert([compose("a", "orders", activate_in=timedelta(seconds=5))], None)
    assert (await link.survey(["orders"])).due_in == 5

    clock.now += timedelta(seconds=5)

    assert len(await link.claim(ORDERS, total=10, lease=30)) == 1


async def test_a_transaction_commits_at_its_end() -> None:
    store = MemoryStore()

    with store.begin() as transaction:
        store.insert_sync([compose("a", "orders")], transaction)
        assert await store.fetch_unprocessed(None, 10, None) == []

    assert len(await store.fetch_unprocessed(None, 10, None)) == 1


async def test_a_transaction_that_was_rolled_back_can_go_on() -> None:
    store = MemoryStore()

    with store.begin() as transaction:
        store.insert_sync([compose("a", "orders", timer_id="t")], transaction)
        transaction.rollback()
        (id,) = store.insert_sync([compose("b", "orders", timer_id="t")], transaction)

    (message,) = await store.fetch_unprocessed(None, 10, None)
    assert (message.id, message.payload) == (id, b"b")


def test_another_kind_of_session_is_refused() -> None:
    with pytest.raises(WrongType, match=r"session must be a MemoryTransaction or None, got str; use store\.begin\(\)"):
        MemoryStore().insert_sync([compose("a", "orders")], "session")


async def test_dead_letters_can_be_looked_at() -> None:
    store = MemoryStore()
    link = await store.connect()
    await store.insert([compose("a", "orders")], None)
    (delivery,) = await link.claim(ORDERS, total=10, lease=30)

    await link.settle([Settlement(delivery, DeadLetter("rejected", "no"))], worker="w1")

    (letter,) = store.dead_letters
    assert (letter.message.payload, letter.reason, letter.error, letter.worker) == (b"a", "rejected", "no", "w1")
