"""Storms of faults, a different one for each seed."""

import os

from tests.simulation.plans import stormy
from tests.simulation.scenario import simulate

STORMS = 80 * int(os.environ.get("OUTBOX_TEST_MORE", "1"))


def test_nothing_is_lost_in_a_storm() -> None:
    for seed in range(STORMS):
        report = simulate(stormy(seed), seed=seed)

        assert not report.wrongs, f"simulate(stormy({seed}), seed={seed})\n{report}"
