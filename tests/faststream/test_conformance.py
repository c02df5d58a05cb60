"""docs/reference/faststream-conformance.md is true as far as a program can see: the tests that it names are there."""

import ast
import re

import pytest

from tests.pages import ROOT

PAGE = (ROOT / "docs" / "reference" / "faststream-conformance.md").read_text()
ROWS = [[cell.strip() for cell in line.strip("|").split("|")] for line in PAGE.splitlines() if line.startswith("| ")]
NAMED = sorted(set(re.findall(r"`([\w/]+\.py)::(\w+)`", PAGE)))


@pytest.mark.parametrize("file", sorted({file for file, _ in NAMED}))
def test_every_test_that_the_page_names_exists(file: str) -> None:
    tree = ast.parse((ROOT / "tests" / file).read_text())
    functions = {node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}
    assert {name for of, name in NAMED if of == file} <= functions


def test_a_case_that_applies_has_a_test_and_one_that_does_not_has_a_reason() -> None:
    cases = [row for row in ROWS if len(row) == 3 and row[0] != "upstream"]
    assert len(cases) > 80
    for case, applies, tests in cases:
        word = re.match(r"yes|partly|in tests|not yet|no: ", applies)
        assert word, case
        assert "::" in tests or word[0] in ("no: ", "not yet"), case
