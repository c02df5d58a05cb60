"""How pytest-xdist spreads the suite over processes: which tests one process runs together, and which are begun first.

What a process is given next is a function's tests, for all its parameters: small enough that nobody waits for the last one,
and in the order in which they are collected. Each process has a server, databases and files of its own.
"""

from typing import Any

import pytest
from xdist.scheduler import LoadScopeScheduling

# They start many processes and say how soon something has happened, so no two of them run at once.
ALONE = "tests/crash/"
# Their module fixtures cost more than is gained by sharing their tests out.
WHOLE = (
    "tests/contract/test_silence.py",
    "tests/django/test_same_table.py",
    "tests/faststream/test_ping.py",
    "tests/sqlalchemy/test_plans.py",
    "tests/typing/test_typing.py",
)


class Scheduler(LoadScopeScheduling):
    """Gives out one unit of work after the other, in the order of the collection."""

    def __init__(self, config: pytest.Config, log: Any) -> None:
        super().__init__(config, log)
        config.option.loadscopereorder = False

    def _split_scope(self, nodeid: str) -> str:
        return unit_of(nodeid)


def unit_of(test: str) -> str:
    """What *test* is given out with."""
    if test.startswith(ALONE):
        return ALONE
    file = test.partition("::")[0]
    return file if file in WHOLE else test.partition("[")[0]
