"""Waiting for something, but not for ever."""

import asyncio
from collections.abc import Awaitable


async def within(seconds: float, what: Awaitable[object]) -> bool:
    """Whether *what* came to its end within *seconds*; it is cancelled if not."""
    try:
        async with asyncio.timeout(seconds):
            await what
    except TimeoutError:
        return False
    return True
