"""One fault at each call to the store in turn: all is handled, in order and once, and the worker goes on by itself."""

import pytest

from tests.simulation.database import ENDS, ERRORS, Fault
from tests.simulation.plans import at, without_faults
from tests.simulation.scenario import simulate

STARTING = 3  # calls until a worker has started; until then it says that it cannot, and is started again
UNWRITTEN = 0.05  # seconds in which what is done may not be written yet


def test_without_a_fault_all_is_handled_once() -> None:
    report = without_faults()

    assert report.wrongs == []
    assert report.starts == 1
    assert report.history.lost == report.history.repeated == []


def test_the_same_arguments_make_the_same_simulation() -> None:
    one, other = (simulate(at(20, "lost"), seed=7) for _ in range(2))

    assert str(one) == str(other)
    assert one.calls == other.calls


@pytest.mark.parametrize("fault", ERRORS)
def test_an_error_is_survived(fault: Fault) -> None:
    for number, name in enumerate(without_faults().calls):
        report = simulate(at(number, fault))

        assert not report.wrongs, f"{fault} at call {number}, {name}\n{report}"
        assert report.starts == 1 or number < STARTING, (
            f"{fault} at call {number}, {name}: the worker did not come back"
        )
        assert not report.history.repeated, f"{fault} at call {number}, {name}\n{report}"
        # A settlement whose answer comes after the lease is taken for lost, though it was not: nobody can know.
        assert not report.history.lost or fault == "unheard", f"{fault} at call {number}, {name}\n{report}"


@pytest.mark.parametrize("fault", ENDS)
def test_an_end_loses_nothing(fault: Fault) -> None:
    for number, name in enumerate(without_faults().calls):
        report = simulate(at(number, fault))

        assert not report.wrongs, f"{fault} at call {number}, {name}\n{report}"
        assert report.starts <= 2
        assert not report.history.repeated_after(UNWRITTEN), f"{fault} at call {number}, {name}\n{report}"
        if fault in ("stopped", "cut"):
            assert not report.history.repeated, f"{fault} at call {number}, {name}\n{report}"
            assert not report.history.lost, f"{fault} at call {number}, {name}\n{report}"
