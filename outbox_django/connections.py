"""Connections of a worker's own, made as Django makes them, and shared with nobody.

Each lives in a thread of its own, so that the event loop never waits for it; a statement that takes too long is given up,
and its socket shut down, because nothing else ends a thread's wait.
"""

import asyncio
import logging
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager, closing, suppress
from copy import deepcopy
from functools import partial
from typing import Any, TypeVar

from django.db import connections
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.transaction import atomic
from django.db.utils import load_backend

from outbox_core.errors import WrongDatabase
from outbox_core.sql import Executor, Row, Statement, begun
from outbox_core.waiting import hang_up, within
from outbox_django.lanes import in_thread, in_threads
from outbox_django.statements import execute, execute_on

T = TypeVar("T")
logger = logging.getLogger("outbox")

DEADLINE = 10.0  # seconds to connect, and for any statement
CLOSE_DEADLINE = 2.0  # seconds
POSTGRESQL = (".postgresql", ".postgis")  # how these engines' names end
PREPARE_AFTER = 5  # executions; psycopg's own default, which Django switches off for the sake of poolers


def database_settings(alias: str) -> dict[str, Any]:
    """What `settings.DATABASES` says of *alias*, with Django's defaults. Raises `WrongDatabase` if it says nothing."""
    if alias not in connections.settings:
        known = ", ".join(repr(one) for one in connections)
        raise WrongDatabase(f"there is no database {alias!r} in settings.DATABASES; known are {known}")
    settings: dict[str, Any] = connections.settings[alias]
    return settings


def own_wrapper(alias: str) -> BaseDatabaseWrapper:
    """A new connection to *alias*, outside of any pool; to be used in the calling thread only."""
    given = deepcopy(database_settings(alias))
    given |= {"AUTOCOMMIT": True, "CONN_MAX_AGE": None, "CONN_HEALTH_CHECKS": False}
    given["OPTIONS"].pop("pool", None)
    backend = load_backend(given["ENGINE"])
    if given["ENGINE"].endswith(POSTGRESQL):
        # Nothing else ends the wait of a thread for a server that accepts and is silent.
        given["OPTIONS"].setdefault("connect_timeout", int(DEADLINE))
    if _is_psycopg3(given["ENGINE"]):
        # The same few statements for ever: PostgreSQL plans each once if the driver prepares them.
        given["OPTIONS"].setdefault("prepare_threshold", PREPARE_AFTER)
        given["OPTIONS"]["server_side_binding"] = given["OPTIONS"]["prepare_threshold"] is not None
    wrapper: BaseDatabaseWrapper = backend.DatabaseWrapper(given, alias)
    wrapper.timezone_name = "UTC"  # in which no hour comes twice, if USE_TZ is off and times come without their zone
    return wrapper


def is_psycopg3(alias: str) -> bool:
    """Whether the alias leads to PostgreSQL through psycopg 3, which can wait for notifications."""
    return _is_psycopg3(database_settings(alias)["ENGINE"])


def _is_psycopg3(engine: str) -> bool:
    if not engine.endswith(POSTGRESQL):
        return False
    from django.db.backends.postgresql.psycopg_any import is_psycopg3

    return bool(is_psycopg3)


def _is_pooled(driver: Any) -> bool:
    """Whether it leads through a pooler that may give each of its transactions another session; then it prepares nothing.

    A pooler makes up the process id that a client is told for its cancel requests.
    """
    (pid,) = driver.execute("SELECT pg_backend_pid()", prepare=False).fetchone()
    if pid == driver.info.backend_pid:
        return False
    driver.prepare_threshold = None
    return True


class OwnConnection(Executor):
    """`Executor` on one connection in one thread."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="outbox-connection")
        self._wrapper: BaseDatabaseWrapper | None = None
        self._running: Future[Any] | None = None
        self._closed = False

    @classmethod
    async def open(cls, alias: str) -> "OwnConnection":
        """Connect to *alias*; raises what Django raises, or `TimeoutError`."""
        connection = cls()
        try:
            await connection._in_thread(partial(connection._connect, alias))
        except BaseException:
            await connection.close()
            raise
        return connection

    def _connect(self, alias: str) -> None:
        wrapper = own_wrapper(alias)
        with wrapper.wrap_database_errors:
            wrapper.connect()
            self._wrapper = wrapper
            if is_psycopg3(alias):
                self.keeps_settings = not _is_pooled(wrapper.connection)

    async def execute(self, statement: Statement) -> Sequence[Row]:
        return await self._in_thread(partial(self._execute, statement))

    def _execute(self, statement: Statement) -> Sequence[Row]:
        assert self._wrapper is not None, "it is open"
        with self._wrapper.wrap_database_errors, closing(self._wrapper.create_cursor()) as cursor:
            return execute_on(cursor, self._wrapper, statement)

    def together(self) -> AbstractAsyncContextManager[None]:
        return begun(self)

    async def _in_thread(self, work: Callable[[], T]) -> T:
        self._running = self._thread.submit(work)
        async with asyncio.timeout(DEADLINE):
            return await asyncio.wrap_future(self._running)

    async def close(self) -> None:
        """Close it in its thread; if that still waits for the database, end the wait first."""
        if self._running is not None and not self._running.done():
            cut(self._wrapper)
        if not self._closed:
            self._closed = True
            closed = asyncio.wrap_future(self._thread.submit(self._close))
            self._thread.shutdown(wait=False)
            await within(CLOSE_DEADLINE, closed)

    def _close(self) -> None:
        try:
            if self._wrapper is not None:
                self._wrapper.close()
        except Exception:  # whatever is wrong with it, it is over
            logger.debug("closing a connection failed", exc_info=True)


def cut(wrapper: BaseDatabaseWrapper | None) -> None:
    """From another thread: whatever waits for the server sees the end of the connection."""
    driver: Any = None if wrapper is None else wrapper.connection
    with suppress(Exception):  # the driver may be half-way through its own end
        if hasattr(driver, "interrupt"):  # SQLite's
            driver.interrupt()
        elif hasattr(driver, "fileno"):
            hang_up(driver.fileno())


class BorrowedConnection(Executor):
    """`Executor` on the caller's own connection, in whatever transaction it is: for a drain inside a test."""

    def __init__(self, alias: str) -> None:
        self._alias = alias

    async def execute(self, statement: Statement) -> Sequence[Row]:
        return await in_thread(lambda: execute(connections[self._alias], statement))

    def together(self) -> AbstractAsyncContextManager[None]:
        return in_threads(atomic(using=self._alias))

    async def close(self) -> None:
        """Nothing: it is the caller's."""
