"""The store behind a URL, for the command line: the entry points `outbox.urls` of this distribution."""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from sqlalchemy import URL, make_url
from sqlalchemy.exc import ArgumentError, NoSuchModuleError
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import NullPool

from outbox_core.errors import DatabaseUnavailable, OptionError
from outbox_core.schema import Tables
from outbox_sqlalchemy.store import SqlAlchemyStore

DRIVERS: Mapping[str, tuple[str, ...]] = {"postgresql": ("asyncpg", "psycopg"), "sqlite": ("aiosqlite",)}
CONNECT_TIMEOUT = 10  # seconds
_TIMEOUTS: Mapping[str, Mapping[str, Any]] = {
    "asyncpg": {"timeout": CONNECT_TIMEOUT},
    "psycopg": {"connect_timeout": CONNECT_TIMEOUT},
}


@asynccontextmanager
async def open_store(url: str, tables: Tables) -> AsyncIterator[SqlAlchemyStore]:
    """A store on connections that are opened when they are needed and closed at once.

    A URL without a driver gets one that is installed; `postgres` is read as `postgresql`. Raises `OptionError` for a URL that
    cannot work, without repeating it: it may have a password.
    """
    parsed = _with_driver(_parsed(url))
    _check_file(parsed)
    driver = parsed.get_driver_name()
    try:
        engine = create_async_engine(parsed, poolclass=NullPool, connect_args=dict(_TIMEOUTS.get(driver, {})))
    except (ArgumentError, NoSuchModuleError, ImportError) as error:
        raise OptionError(f"{parsed.drivername} cannot be used: {error}") from None
    try:
        yield SqlAlchemyStore(engine, tables)
    finally:
        await engine.dispose()


def _parsed(url: str) -> URL:
    try:
        return make_url(url)
    except (ArgumentError, ValueError):
        scheme = url.partition("://")[0]
        raise OptionError(
            f"the {scheme} URL cannot be read; it is {scheme}://user:password@host:port/database, and what is special in a "
            "password is written as %xx"
        ) from None


def _check_file(url: URL) -> None:
    """SQLite would make the file that is not there."""
    if url.get_backend_name() == "sqlite" and not Path(url.database or "").is_file():
        raise DatabaseUnavailable(f"there is no SQLite file {url.database!r}")


def _with_driver(url: URL) -> URL:
    backend, _, driver = url.drivername.partition("+")
    backend = "postgresql" if backend == "postgres" else backend
    known = DRIVERS[backend]
    if driver:
        if driver not in (*known, "psycopg_async"):
            raise OptionError(f"{url.drivername} has no asynchronous driver; use {backend}+{known[0]}://, or no driver")
        return url.set(drivername=f"{backend}+{driver}")
    for one in known:
        if find_spec(one) is not None:
            return url.set(drivername=f"{backend}+{one}")
    raise OptionError(f"no driver for {backend} is installed; pip install {' or '.join(known)}")
