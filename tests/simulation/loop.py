"""An event loop whose clock stands still while anything is ready, and then jumps to the next timer."""

import asyncio
import selectors
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

BEGINNING = 1_000.0  # not zero, which the engine takes for "never"
MOST_TURNS = 200_000


class Stuck(Exception):
    """Nothing will ever happen any more, or the same for ever at one moment."""


class VirtualLoop(asyncio.SelectorEventLoop):
    """Waits for nothing but timers: no thread, no socket."""

    def __init__(self) -> None:
        self.now = BEGINNING
        super().__init__(_Jump(self))

    def time(self) -> float:
        return self.now


class _Jump(selectors.SelectSelector):
    """Never looks at a socket, for none is used."""

    def __init__(self, loop: VirtualLoop) -> None:
        super().__init__()
        self._loop = loop
        self._turns = 0

    def select(self, timeout: float | None = None) -> Any:
        self._turns += 1
        if timeout is None:
            raise Stuck("every task waits for another")
        if self._turns > MOST_TURNS:
            raise Stuck(f"{MOST_TURNS:,} turns have not brought the end")
        self._loop.now += timeout
        return []


class SameLoop:
    """`outbox_core.threads.LoopThread` without a thread: the jobs run beside those whom they watch."""

    def __init__(self, name: str) -> None:
        self._tasks: list[asyncio.Task[Any]] = []

    @property
    def alive(self) -> bool:
        return not any(task.done() for task in self._tasks)

    def start(self, *jobs: Callable[[], Any]) -> None:
        self._tasks = [asyncio.create_task(job()) for job in jobs]

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def call(self, job: Callable[[], Any]) -> None:
        await job()

    def post(self, call: Callable[..., object], *arguments: object) -> None:
        asyncio.get_running_loop().call_soon(call, *arguments)


@contextmanager
def virtual_time() -> Iterator[asyncio.Runner]:
    """Runs coroutines on such a loop, by whose clock the engine goes meanwhile."""
    with pytest.MonkeyPatch.context() as patch, asyncio.Runner(loop_factory=VirtualLoop) as runner:
        clock = runner.get_loop().time
        for name, module in [*sys.modules.items()]:
            if name.startswith("outbox_core."):
                for its, real in [("monotonic", time.monotonic), ("perf_counter", time.perf_counter)]:
                    if getattr(module, its, None) is real:
                        patch.setattr(module, its, clock)
        patch.setattr("outbox_core.worker.LoopThread", SameLoop)
        yield runner
