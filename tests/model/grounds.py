"""The stores as grounds for the machine: opened once, and emptied for each example."""

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, TypeVar

from outbox_core.store import Link
from tests.contract.harness import MemoryOutbox, Outbox, SqlOutbox

T = TypeVar("T")


class MemoryGround:
    """A new store in memory for each example."""

    def __init__(self, runner: asyncio.Runner, make: Callable[[], MemoryOutbox] = MemoryOutbox) -> None:
        self.run = runner.run
        self._make = make

    def empty(self) -> tuple[Outbox, Sequence[Link]]:
        outbox = self._make()
        return outbox, [self.run(outbox.link()), self.run(outbox.link())]


class SqlGround:
    """One set of tables, and two links that stay open."""

    def __init__(self, runner: asyncio.Runner, outbox: SqlOutbox) -> None:
        self._runner = runner
        self._outbox = outbox
        self._links = [self.run(outbox.link()), self.run(outbox.link())]

    def empty(self) -> tuple[Outbox, Sequence[Link]]:
        self.run(self._outbox.clear())
        return self._outbox, self._links

    def run(self, call: Coroutine[Any, Any, T]) -> T:
        return self._runner.run(call)
