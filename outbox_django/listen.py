"""LISTEN through psycopg 3, on a connection of its own: Django's own connections are synchronous and would block."""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import TYPE_CHECKING, Any

from outbox_core.sql.stream import StreamListener
from outbox_core.store import Listener
from outbox_core.waiting import within
from outbox_django.connections import CLOSE_DEADLINE, DEADLINE, is_psycopg3, own_wrapper

if TYPE_CHECKING:
    from psycopg import AsyncConnection


async def listen_on(alias: str, channel: str, heard: Callable[[str], None]) -> Listener | None:
    """Listen on *channel*; None where the driver cannot."""
    if not is_psycopg3(alias):
        return None
    connection = await _connect(alias)
    try:
        async with asyncio.timeout(DEADLINE):
            await connection.execute(f'LISTEN "{channel}"')
    except BaseException:
        await _close(connection)
        raise
    return StreamListener(_payloads(connection), heard, lambda: _close(connection))


async def _connect(alias: str) -> "AsyncConnection[Any]":
    from psycopg import AsyncConnection

    parameters = own_wrapper(alias).get_connection_params()
    for name in ("cursor_factory", "context", "prepare_threshold"):  # for synchronous cursors and Django's types
        parameters.pop(name, None)
    async with asyncio.timeout(DEADLINE):
        return await AsyncConnection.connect(**parameters, autocommit=True)


async def _payloads(connection: "AsyncConnection[Any]") -> AsyncIterator[str]:
    async for notification in connection.notifies():
        yield notification.payload


async def _close(connection: "AsyncConnection[Any]") -> None:
    await within(CLOSE_DEADLINE, connection.close())
