"""LISTEN on the driver underneath SQLAlchemy: asyncpg calls back, psycopg is waited for."""

import asyncio
from collections.abc import Callable

from outbox_core.store import Listener
from outbox_sqlalchemy.connections import DEADLINE, OwnConnection


async def listen_on(connection: OwnConnection, channel: str, heard: Callable[[str], None]) -> Listener | None:
    """Listen on a connection that is ours alone; None, and it is closed, if its driver cannot."""
    kind = _LISTENERS.get(connection.sqlalchemy.dialect.driver)
    if kind is None:
        await connection.close()
        return None
    listener = kind(connection, channel, heard)
    try:
        async with asyncio.timeout(DEADLINE):
            await listener.start()
    except BaseException:
        await listener.close()
        raise
    return listener


class AsyncpgListener:
    """asyncpg keeps reading its socket by itself."""

    def __init__(self, connection: OwnConnection, channel: str, heard: Callable[[str], None]) -> None:
        self._connection = connection
        self._driver = connection.driver
        self._channel = channel
        self._heard = heard
        self._ended = asyncio.Event()

    async def start(self) -> None:
        self._driver.add_termination_listener(lambda _: self._ended.set())
        await self._driver.add_listener(self._channel, lambda _c, _p, _ch, payload: self._heard(payload))

    async def closed(self) -> None:
        await self._ended.wait()

    async def close(self) -> None:
        await self._connection.close()


class PsycopgListener:
    """psycopg reads notifications while somebody iterates over them."""

    def __init__(self, connection: OwnConnection, channel: str, heard: Callable[[str], None]) -> None:
        self._connection = connection
        self._driver = connection.driver
        self._channel = channel
        self._heard = heard

        self._reading: asyncio.Task[None] | None = None

    async def start(self) -> None:
        await self._driver.execute(f'LISTEN "{self._channel}"')
        self._reading = asyncio.create_task(self._read())

    async def _read(self) -> None:
        async for notification in self._driver.notifies():
            self._heard(notification.payload)

    async def closed(self) -> None:
        if self._reading is not None:
            await asyncio.wait([self._reading])

    async def close(self) -> None:
        if self._reading is not None:
            self._reading.cancel()
            await asyncio.gather(self._reading, return_exceptions=True)
        await self._connection.close()


_LISTENERS: dict[str, type[AsyncpgListener] | type[PsycopgListener]] = {
    "asyncpg": AsyncpgListener,
    "psycopg": PsycopgListener,
    "psycopg_async": PsycopgListener,
}
