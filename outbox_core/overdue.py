"""Handlers that have run for very long, and where they are: nothing else would tell.

    running for the limit ---> one WARNING with the messages and the handlers' stacks ---> again at twice that, four times, …

Their leases are extended all the while, so no other worker gets the message, and the loop is free, so the watchdog sees
nothing. A coroutine that waits is found from its task. A function that runs in a thread is found by its code among all
threads, because only the framework knows which one it took.
"""

import asyncio
import logging
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from inspect import unwrap
from time import perf_counter
from types import CodeType, FrameType
from typing import Any

from outbox_core.message import Delivery, named

logger = logging.getLogger("outbox")

MOST_STACKS = 5  # in one record


class Overdue:
    """Those of one subscriber, whose handlers are *functions*."""

    def __init__(self, functions: Iterable[Callable[..., Any]]) -> None:
        own = [unwrap(function) for function in functions]
        self._codes = {code for function in own if (code := _code(function)) is not None}
        self._name = " or ".join(repr(getattr(function, "__name__", type(function).__name__)) for function in own)
        self._next: dict[Delivery, float] = {}  # the seconds of its run at which it is told of

    def look(self, running: Mapping[Delivery, float], tasks: Sequence[asyncio.Task[None]], limit: float) -> None:
        """Tell of those in *running*, which says since when, that *limit* seconds were not enough for."""
        now = perf_counter()
        self._next = {delivery: self._next.get(delivery, limit) for delivery in running}
        due = [delivery for delivery, started in running.items() if now - started >= self._next[delivery]]
        if not due:
            return
        for delivery in due:
            self._next[delivery] = 2 * (now - running[delivery])
        logger.warning(
            "the handler%s has not ended after %.0f s; it keeps %s, and no other worker gets what it keeps; handler_timeout "
            "ends an async def handler, and a def handler has to be ended by the timeouts of what it calls%s",
            f" {self._name}" if self._name else "",
            now - min(running[delivery] for delivery in due),
            named(due),
            self._places_anyway(tasks),
        )

    def _places_anyway(self, tasks: Sequence[asyncio.Task[None]]) -> str:
        """A stack may hold code that is neither Python's nor ours, and whoever looks is needed for other things too."""
        try:
            return self._places(tasks)
        except Exception as error:
            return f"; its stack cannot be shown ({type(error).__name__})"

    def _places(self, tasks: Sequence[asyncio.Task[None]]) -> str:
        """The stacks of all runs of these handlers, from the handler inwards."""
        stacks = [*map(_awaiting, tasks), *map(_outermost_first, sys._current_frames().values())]
        found = [text for stack in stacks if (text := self._from_handler(stack))]
        return "".join(f"\n{text}" for text in dict.fromkeys(found[:MOST_STACKS]))

    def _from_handler(self, stack: Sequence[tuple[FrameType, int]]) -> str:
        for place, (frame, _) in enumerate(stack):
            if frame.f_code in self._codes:
                return "".join(traceback.StackSummary.extract(iter(stack[place:])).format()).rstrip()
        return ""


def _code(function: Any) -> CodeType | None:
    """That of a function or a method, or of what calling an object calls."""
    called = function if hasattr(function, "__code__") else type(function).__call__
    code = getattr(called, "__code__", None)
    return code if isinstance(code, CodeType) else None


def _awaiting(task: asyncio.Task[None]) -> list[tuple[FrameType, int]]:
    """What *task* waits in; it is not the running one."""
    return [(frame, frame.f_lineno) for frame in _frames(task.get_coro())]


def _frames(awaitable: Any) -> Iterator[FrameType]:
    while awaitable is not None:
        for kind in ("cr", "gi", "ag"):  # a coroutine, a generator that is one, an asynchronous generator
            if (frame := getattr(awaitable, f"{kind}_frame", None)) is not None:
                yield frame
                awaitable = getattr(awaitable, "gi_yieldfrom" if kind == "gi" else f"{kind}_await")
                break
        else:
            return


def _outermost_first(frame: FrameType) -> list[tuple[FrameType, int]]:
    return [*traceback.walk_stack(frame)][::-1]
