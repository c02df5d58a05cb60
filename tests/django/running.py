"""A broker that consumes in this process, in an event loop of its own, as a worker does."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from outbox_django import OutboxBroker

PATIENCE = 30.0  # seconds
PAUSE = 0.01


@asynccontextmanager
async def consuming(broker: OutboxBroker) -> AsyncIterator[OutboxBroker]:
    """Started meanwhile, but not for ever."""
    await broker.start()
    try:
        async with asyncio.timeout(PATIENCE):
            yield broker
    finally:
        await broker.stop()


def drain(broker: OutboxBroker) -> None:
    """Handle what is due."""

    async def run() -> None:
        async with consuming(broker):
            await broker.drained()

    asyncio.run(run())


def handle_until(broker: OutboxBroker, condition: Callable[[], bool | Awaitable[bool]]) -> None:
    """Consume until *condition* holds, retries included."""

    async def run() -> None:
        async with consuming(broker):
            await until(condition)

    asyncio.run(run())


async def until(condition: Callable[[], bool | Awaitable[bool]]) -> None:
    """Look again and again, since what happens in a database tells nobody."""
    while not await _holds(condition):  # noqa: ASYNC110  there is no event to wait for
        await asyncio.sleep(PAUSE)


async def _holds(condition: Callable[[], bool | Awaitable[bool]]) -> bool:
    answer = condition()
    return answer if isinstance(answer, bool) else await answer
