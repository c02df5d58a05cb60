"""Who runs next when transactions of one consumer lose against each other."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import cast

import pytest

from outbox_core.completion import TURN_AFTER, in_transaction
from outbox_core.message import Delivery
from outbox_core.outcome import Ack
from outbox_core.store import Store
from tests.core.deliveries import delivery


class Lost(Exception):
    """Against another transaction."""


class Rowless:
    """All of a store that a completion needs."""

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[object]:
        yield object()

    async def complete(self, deliveries: Sequence[Delivery], session: object) -> set[int]:
        return {delivery.id for delivery in deliveries}

    def is_conflict(self, error: Exception) -> bool:
        return isinstance(error, Lost)


@pytest.mark.parametrize(("losses", "order"), [(TURN_AFTER - 1, "late first"), (TURN_AFTER, "first late")])
async def test_who_has_lost_often_is_waited_for_by_those_that_have_not_begun(losses: int, order: str) -> None:
    store, turn = cast("Store", Rowless()), asyncio.Lock()
    lost, go = asyncio.Event(), asyncio.Event()
    left, done = [losses], []

    async def first(batch: Sequence[Delivery]) -> None:
        if left[0]:
            left[0] -= 1
            raise Lost
        lost.set()
        await go.wait()
        batch[0].cast(Ack())
        done.append("first")

    async def late(batch: Sequence[Delivery]) -> None:
        batch[0].cast(Ack())
        done.append("late")

    async with asyncio.timeout(5), asyncio.TaskGroup() as both:
        both.create_task(in_transaction(store, [delivery(1)], first, None, turn))
        await lost.wait()
        both.create_task(in_transaction(store, [delivery(2)], late, None, turn))
        for _ in range(5):
            await asyncio.sleep(0)
        go.set()

    assert " ".join(done) == order
    assert not turn.locked()


async def test_a_turn_ends_with_a_failure_too() -> None:
    store, turn = cast("Store", Rowless()), asyncio.Lock()
    runs: list[int] = []

    async def fail(batch: Sequence[Delivery]) -> None:
        runs.append(len(runs))
        if len(runs) <= TURN_AFTER:
            raise Lost
        assert turn.locked()
        raise ValueError("of its own")

    with pytest.raises(ValueError, match="of its own"):
        await in_transaction(store, [delivery(1)], fail, None, turn)

    assert not turn.locked()
