"""A listener over a driver that hands out notifications only while somebody iterates over them, as psycopg does."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable


class StreamListener:
    """`Listener` on a stream of payloads; *close* gives its connection up and never raises."""

    def __init__(
        self, payloads: AsyncIterator[str], heard: Callable[[str], None], close: Callable[[], Awaitable[None]]
    ) -> None:
        self._payloads = payloads
        self._heard = heard
        self._close = close
        self._reading = asyncio.create_task(self._read())

    async def _read(self) -> None:
        async for payload in self._payloads:
            self._heard(payload)

    async def closed(self) -> None:
        await asyncio.wait([self._reading])

    async def close(self) -> None:
        self._reading.cancel()
        await asyncio.gather(self._reading, return_exceptions=True)
        await self._close()
