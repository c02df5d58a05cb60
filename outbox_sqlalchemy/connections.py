"""A connection of a worker's own: it has left the application's pool, is in autocommit, and is really closed at its end."""

import asyncio
import logging
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from outbox_core.waiting import CLOSE_PATIENCE, hang_up
from outbox_sqlalchemy.poolers import POOLED
from outbox_sqlalchemy.rendering import rendered

logger = logging.getLogger("outbox")

DEADLINE = 10.0  # seconds to connect
CLOSE_DEADLINE = 2.0  # seconds


class OwnConnection:
    """An `AsyncConnection` detached from its pool, whose place there is free again.

    *pooled*: a pooler may give each of its transactions another session.
    """

    def __init__(self, connection: AsyncConnection, dbapi: Any, *, pooled: bool) -> None:
        self.sqlalchemy = connection
        self.pooled = pooled
        self._dbapi = dbapi
        self._errors = connection.dialect.loaded_dbapi.Error

    @classmethod
    async def open(cls, engine: AsyncEngine) -> "OwnConnection":
        """Connect as the engine does, with all of its settings; raises what the driver raises, or `TimeoutError`.

        If nobody waits for it any more, it may still come to its end, and is closed: an attempt that is cut half-way leaves
        a connection that nobody knows.
        """
        opening = asyncio.create_task(cls._open(engine))
        try:
            async with asyncio.timeout(DEADLINE):
                return await asyncio.shield(opening)
        except (asyncio.CancelledError, TimeoutError):
            await asyncio.wait([opening], timeout=CLOSE_PATIENCE)
            opening.cancel()
            (opened,) = await asyncio.gather(opening, return_exceptions=True)
            if isinstance(opened, OwnConnection):
                await opened.close()
            raise

    @classmethod
    async def _open(cls, engine: AsyncEngine) -> "OwnConnection":
        connection = await engine.connect()
        try:
            await connection.execution_options(isolation_level="AUTOCOMMIT")
            raw = await connection.get_raw_connection()
            dbapi, pooled = raw.dbapi_connection, bool(raw.info.get(POOLED))
            await connection.run_sync(_detach)
        except BaseException:
            # Only closing it would give it back to a pool, and that of a worker's connection is disposed of by nobody.
            await asyncio.gather(connection.invalidate(), return_exceptions=True)
            await connection.close()
            raise
        return cls(connection, dbapi, pooled=pooled)

    async def fetch(self, sql: str, parameters: Mapping[str, object]) -> Sequence[Sequence[Any]]:
        """Run it on the driver's cursor, for half of what SQLAlchemy's execution costs; rows are the driver's own.

        Raises SQLAlchemy's `DBAPIError`, without the parameters, for what the driver raises.
        """
        statement = rendered(sql, self.sqlalchemy.dialect)
        try:
            return await self.sqlalchemy.run_sync(self._fetch, statement.text, statement.values(parameters))
        except self._errors as error:
            raise DBAPIError.instance(sql, None, error, self._errors, hide_parameters=True) from error

    def _fetch(self, _: Connection, sql: str, parameters: object) -> Sequence[Sequence[Any]]:
        cursor = self._dbapi.cursor()
        try:
            cursor.execute(sql, parameters)
            return cursor.fetchall() if cursor.description else ()
        finally:
            cursor.close()

    @property
    def driver(self) -> Any:
        """The driver's own connection object."""
        return self.sqlalchemy.dialect.get_driver_connection(self._dbapi)

    def cut(self) -> None:
        """End the wait of whatever waits for the server; the connection is lost."""
        cut(self.driver)

    async def close(self) -> None:
        """Close it, without waiting for a dead peer; never raises.

        SQLAlchemy only terminates a detached connection, and psycopg counts that as forgotten.
        """
        try:
            async with asyncio.timeout(CLOSE_DEADLINE):
                await self.sqlalchemy.run_sync(lambda _: self._dbapi.close())
        except Exception:  # whatever is wrong with it, it is over
            logger.debug("closing a connection failed", exc_info=True)
        # Nothing is left to roll back, which is what a plain close would try on the closed connection.
        await asyncio.gather(self.sqlalchemy.invalidate(), return_exceptions=True)
        await asyncio.gather(self.sqlalchemy.close(), return_exceptions=True)


def cut(driver: Any) -> None:
    """End the wait of whatever waits for the server on a driver's connection. SQLite has no server, and no such wait."""
    with suppress(Exception):  # it may be half-way through its own end
        if hasattr(driver, "terminate"):  # asyncpg's
            driver.terminate()
        elif hasattr(driver, "fileno"):
            hang_up(driver.fileno())


def _detach(connection: Connection) -> None:
    connection.detach()
