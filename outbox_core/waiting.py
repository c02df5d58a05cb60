"""Waiting for something, but not for ever; and not waiting at all."""

import asyncio
from collections.abc import Awaitable, Coroutine
from typing import Any, TypeVar, cast

from outbox_core.errors import NotStarted

T = TypeVar("T")


async def within(seconds: float, what: Awaitable[object]) -> bool:
    """Whether *what* came to its end within *seconds*; it is cancelled if not."""
    try:
        async with asyncio.timeout(seconds):
            await what
    except TimeoutError:
        return False
    return True


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
