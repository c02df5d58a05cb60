"""Storms of faults, a different one for each seed."""

import os

import pytest

from tests.simulation.plans import stormy
from tests.simulation.scenario import simulate

STORMS = 30 * int(os.environ.get("OUTBOX_TEST_MORE", "1"))


@pytest.mark.parametrize("fleet", [1, 2])
def test_nothing_is_lost_in_a_storm(fleet: int) -> None:
    for seed in range(STORMS):
        report = simulate(stormy(seed), seed=seed, fleet=fleet)

        assert not report.wrongs, f"simulate(stormy({seed}), seed={seed}, fleet={fleet})\n{report}"
