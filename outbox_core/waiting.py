"""Waiting for something, but not for ever; and not waiting at all."""

import asyncio
import socket
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar, cast

from outbox_core.errors import NotStarted

T = TypeVar("T")

CLOSE_PATIENCE = 1.0  # seconds that a question may still take when nobody waits for its answer any more


async def within(seconds: float, what: Awaitable[object]) -> bool:
    """Whether *what* came to its end within *seconds*; it is cancelled if not."""
    try:
        async with asyncio.timeout(seconds):
            await what
    except TimeoutError:
        return False
    return True


def hang_up(connection: int) -> None:
    """Shut the socket of that file descriptor down: whatever waits for the other side, in any thread, sees its end."""
    with socket.socket(fileno=socket.dup(connection)) as duplicate:
        duplicate.shutdown(socket.SHUT_RDWR)


class Question:
    """Asked of somebody who may be silent, such as a database: one at a time, with an answer in time for whoever waits.

    One that takes too long is left open, not cut: that would cost its connection, and a driver may take seconds to give a
    dead one up. Whoever asks meanwhile waits for the same answer.
    """

    def __init__(self, ask: Callable[[], Coroutine[Any, Any, bool]]) -> None:
        self._ask = ask
        self._asked: asyncio.Task[bool] | None = None

    async def answer(self, timeout: float | None) -> bool:
        """The answer, or False if it does not come within *timeout* seconds; None waits for it."""
        if self._asked is None or self._asked.done():
            self._asked = asyncio.create_task(self._ask())
        asked = self._asked
        await asyncio.wait([asked], timeout=timeout)
        return asked.done() and not asked.cancelled() and asked.result()

    async def close(self) -> None:
        """Wait for the answer on its way and for no other. Cut half-way, it leaves a connection that nobody closes."""
        asked, self._asked = self._asked, None
        if asked is not None:
            await asyncio.wait([asked], timeout=CLOSE_PATIENCE)
            asked.cancel()
            await asyncio.gather(asked, return_exceptions=True)


def drive(pipeline: Coroutine[Any, Any, T]) -> T:
    """The result of a coroutine that never waits, without an event loop; `NotStarted` if it does wait."""
    try:
        pipeline.send(None)
    except StopIteration as done:
        return cast("T", done.value)
    pipeline.close()
    raise NotStarted(
        "a publish middleware or codec waited for something, which a synchronous publish cannot; "
        "use await broker.publish(...) or a middleware that does not wait"
    )
