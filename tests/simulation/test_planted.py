"""The simulation finds each defect that was planted in the engine, so it can fail."""

from collections.abc import Callable

import pytest

from tests.simulation import planted
from tests.simulation.database import Fault
from tests.simulation.plans import at, without_faults
from tests.simulation.scenario import simulate


@pytest.mark.parametrize(
    ("plant", "fault"),
    [
        (planted.leases_are_not_extended, "refused"),
        (planted.what_could_not_be_settled_is_forgotten, "refused"),
        (planted.the_worker_does_not_come_back, "lost"),
        (planted.a_broken_link_is_kept, "silent"),
        (planted.a_key_goes_on_after_a_failure, "late"),
        (planted.what_is_given_back_counts_as_failed, "cut"),
        (planted.a_stop_does_not_wait_for_settlements, "stopped"),
        (planted.a_suspect_is_not_alone, "killed"),
    ],
)
def test_a_planted_defect_is_found(plant: Callable[[pytest.MonkeyPatch], None], fault: Fault) -> None:
    calls = len(without_faults().calls)
    with pytest.MonkeyPatch.context() as patch:
        plant(patch)
        reports = (simulate(at(number, fault)) for number in range(5, calls))
        assert any(report.wrongs or (report.history.lost and fault != "killed") for report in reports)
