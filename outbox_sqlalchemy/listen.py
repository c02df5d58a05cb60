"""LISTEN on the driver underneath SQLAlchemy: asyncpg calls back, psycopg is waited for."""

import asyncio
from collections.abc import Callable
from typing import Any

from sqlalchemy.ext.asyncio import AsyncConnection

from outbox_core.store import Listener


async def listen_on(connection: AsyncConnection, channel: str, heard: Callable[[str], None]) -> Listener | None:
    """Listen on a connection that is ours alone; None, and it is closed, if its driver cannot."""
    raw = await connection.get_raw_connection()
    assert raw.dbapi_connection is not None, "a connection that was just opened is there"
    driver = connection.dialect.get_driver_connection(raw.dbapi_connection)
    listener: AsyncpgListener | PsycopgListener
    if connection.dialect.driver == "asyncpg":
        listener = AsyncpgListener(connection, driver, channel, heard)
    elif connection.dialect.driver.startswith("psycopg"):
        listener = PsycopgListener(connection, driver, channel, heard)
    else:
        await connection.close()
        return None
    try:
        await listener.start()
    except BaseException:
        await listener.close()
        raise
    return listener


class AsyncpgListener:
    """asyncpg keeps reading its socket by itself."""

    def __init__(self, connection: AsyncConnection, driver: Any, channel: str, heard: Callable[[str], None]) -> None:
        self._connection = connection
        self._driver = driver
        self._channel = channel
        self._heard = heard
        self._ended = asyncio.Event()

    async def start(self) -> None:
        self._driver.add_termination_listener(lambda _: self._ended.set())
        await self._driver.add_listener(self._channel, lambda _c, _p, _ch, payload: self._heard(payload))

    async def closed(self) -> None:
        await self._ended.wait()

    async def close(self) -> None:
        self._driver.terminate()
        await asyncio.gather(self._connection.close(), return_exceptions=True)


class PsycopgListener:
    """psycopg reads notifications while somebody iterates over them."""

    def __init__(self, connection: AsyncConnection, driver: Any, channel: str, heard: Callable[[str], None]) -> None:
        self._connection = connection
        self._driver = driver
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
        await asyncio.gather(self._connection.close(), return_exceptions=True)
