"""LISTEN on the driver underneath SQLAlchemy: asyncpg calls back, psycopg is waited for."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TypeAlias

from outbox_core.sql.stream import StreamListener
from outbox_core.store import Listener
from outbox_sqlalchemy.connections import DEADLINE, OwnConnection


async def listen_on(connection: OwnConnection, channel: str, heard: Callable[[str], None]) -> Listener | None:
    """Listen on a connection that is ours alone; None, and it is closed, if its driver cannot."""
    start = _STARTS.get(connection.sqlalchemy.dialect.driver)
    if start is None:
        await connection.close()
        return None
    try:
        async with asyncio.timeout(DEADLINE):
            return await start(connection, channel, heard)
    except BaseException:
        await connection.close()
        raise


class AsyncpgListener:
    """asyncpg keeps reading its socket by itself."""

    def __init__(self, connection: OwnConnection) -> None:
        self._connection = connection
        self._ended = asyncio.Event()

    async def start(self, channel: str, heard: Callable[[str], None]) -> None:
        driver = self._connection.driver
        driver.add_termination_listener(lambda _: self._ended.set())
        await driver.add_listener(channel, lambda _c, _p, _ch, payload: heard(payload))

    async def closed(self) -> None:
        await self._ended.wait()

    async def close(self) -> None:
        await self._connection.close()


async def _start_asyncpg(connection: OwnConnection, channel: str, heard: Callable[[str], None]) -> Listener:
    listener = AsyncpgListener(connection)
    await listener.start(channel, heard)
    return listener


async def _start_psycopg(connection: OwnConnection, channel: str, heard: Callable[[str], None]) -> Listener:
    await connection.driver.execute(f'LISTEN "{channel}"')
    return StreamListener(_payloads(connection), heard, connection.close)


async def _payloads(connection: OwnConnection) -> AsyncIterator[str]:
    async for notification in connection.driver.notifies():
        yield notification.payload


Start: TypeAlias = Callable[[OwnConnection, str, Callable[[str], None]], Awaitable[Listener]]

_STARTS: dict[str, Start] = {
    "asyncpg": _start_asyncpg,
    "psycopg": _start_psycopg,
    "psycopg_async": _start_psycopg,
}
