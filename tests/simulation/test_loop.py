"""Virtual time: it stands still, and jumps."""

import asyncio
from time import perf_counter

import pytest

from outbox_core.links import LinkKeeper
from outbox_core.memory import MemoryStore
from outbox_core.settler import Settler
from tests.simulation.loop import BEGINNING, Stuck, virtual_time


async def an_hour() -> tuple[float, float]:
    """The loop's time after it, and the engine's."""
    await asyncio.sleep(3_600)
    settler = Settler(LinkKeeper("settle", MemoryStore(), lambda event: None), worker="w1", observe=lambda event: None)
    return asyncio.get_running_loop().time(), settler.watched


def test_an_hour_takes_no_time_and_the_engine_goes_by_it() -> None:
    began = perf_counter()
    with virtual_time() as runner:
        assert runner.run(an_hour()) == (BEGINNING + 3_600, BEGINNING + 3_600)
    assert perf_counter() - began < 10


def test_who_waits_for_nothing_is_told() -> None:
    with virtual_time() as runner, pytest.raises(Stuck):
        runner.run(asyncio.Event().wait())
