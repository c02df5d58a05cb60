"""Notifications on their way to the claimer, and no flood of them.

Any role of a database may send to any channel, and each notification is worth a look at the queues. So some that come to
nothing are forgiven, since other workers may have been quicker; then there is one look in each `PAUSE`, until a claim finds
something again.
"""

import asyncio
from collections.abc import Callable
from time import monotonic

FORGIVEN = 20  # hints in a row after which no claim found anything
PAUSE = 0.05  # seconds


class Hints:
    """Passes the queues that were heard of on to *tell*, at once or a little later, if this worker *serves* them."""

    def __init__(self, tell: Callable[[str], None], *, serves: Callable[[str], bool]) -> None:
        self._tell = tell
        self._serves = serves
        self._fruitless = 0
        self._told_at = 0.0
        self._held: set[str] = set()  # with a timer behind them

    def heard(self, queue: str) -> None:
        """Somebody says that there is something in *queue*."""
        if not self._serves(queue):
            return
        wait = self._told_at + PAUSE - monotonic()
        if self._held:
            self._held.add(queue)
        elif self._fruitless < FORGIVEN or wait <= 0:
            self._pass_on([queue])
        else:
            self._held.add(queue)
            asyncio.get_running_loop().call_later(wait, self._let_go)

    def came_true(self) -> None:
        """A claim found messages."""
        self._fruitless = 0

    def _let_go(self) -> None:
        held, self._held = self._held, set()
        self._pass_on(sorted(held))

    def _pass_on(self, queues: list[str]) -> None:
        self._fruitless += 1
        self._told_at = monotonic()
        for queue in queues:
            self._tell(queue)
