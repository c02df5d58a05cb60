"""The catalogue is whole, and what it says is fit for a log."""

import re
from pathlib import Path

import pytest

from tests.bad_inputs.calls import CALLS
from tests.bad_inputs.catalogue import Bad, BadCall, name_of
from tests.bad_inputs.groups import GROUPS
from tests.bad_inputs.operations import OPERATIONS
from tests.bad_inputs.publishes import PUBLISHES

TESTS = Path(__file__).parent.parent
EVERY: tuple[Bad | BadCall, ...] = (*PUBLISHES, *CALLS, *OPERATIONS)


def test_at_least_150_inputs_are_refused() -> None:
    assert len(EVERY) >= 300
    assert len(PUBLISHES) >= 140


def test_no_group_is_left_out() -> None:
    assert set(GROUPS) == set(range(1, 75))
    in_catalogue = {case.group for case in EVERY}
    assert [number for number, group in GROUPS.items() if number not in in_catalogue and not group.tests] == []
    assert [number for number, group in GROUPS.items() if group.taken and not group.tests] == []


def test_the_tests_that_groups_name_exist() -> None:
    named = {test for group in GROUPS.values() for test in group.tests}
    sources = {path: (TESTS / path).read_text() for path in {test.partition("::")[0] for test in named}}

    def exists(test: str) -> bool:
        path, _, name = test.partition("::")
        return re.search(rf"^(async )?def {name}\(", sources[path], re.MULTILINE) is not None

    assert [test for test in named if not exists(test)] == []


@pytest.mark.parametrize("case", EVERY, ids=name_of)
def test_an_error_is_one_short_line_and_begins_in_lower_case(case: Bad | BadCall) -> None:
    assert case.message.isprintable()
    assert len(case.message) <= 320
    assert not case.message[0].isupper() or re.match(r"[A-Z]\w+\.", case.message)  # the name of a class
