"""The machine finds each defect that was planted in a store, so it can fail."""

import asyncio
from functools import partial

import pytest

from tests.model.grounds import MemoryGround
from tests.model.machine import check
from tests.model.planted import DEFECTS, Planted, planted


@pytest.mark.parametrize("defect", DEFECTS)
def test_a_planted_defect_is_found(defect: type[Planted]) -> None:
    with asyncio.Runner() as runner, pytest.raises(AssertionError):
        check(MemoryGround(runner, partial(planted, defect)), seeds=40, shrink=False)
