"""What the demo stands on: an empty database, and a worker process that can be killed."""

import os
import signal
import sys
import tempfile
from asyncio.subprocess import Process, create_subprocess_exec
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from uuid import uuid4

from sqlalchemy import URL, make_url, text
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

DRIVERS = {"postgresql": "postgresql+asyncpg", "postgres": "postgresql+asyncpg"}


@asynccontextmanager
async def empty_database(dsn: str) -> AsyncIterator[AsyncEngine]:
    """An engine on a new database that is gone at the end: on the server that *dsn* names, or with "" an SQLite file."""
    if dsn:
        url = make_url(dsn)
        async with _on_server(url.set(drivername=DRIVERS.get(url.drivername, url.drivername))) as engine:
            yield engine
    else:
        with tempfile.TemporaryDirectory(prefix="outbox-demo-") as folder:
            async with _engine(URL.create("sqlite+aiosqlite", database=f"{folder}/orders.db")) as engine:
                yield engine


@asynccontextmanager
async def _on_server(url: URL) -> AsyncIterator[AsyncEngine]:
    if url.get_backend_name() != "postgresql":
        raise SystemExit(f"DSN must name a PostgreSQL server, got {url}; leave it out for SQLite")
    name = f"outbox_demo_{uuid4().hex[:8]}"
    try:
        await _administer(url, f"CREATE DATABASE {name}")
    except (OSError, SQLAlchemyError) as error:
        raise SystemExit(f"cannot create a database on {url}: {error}") from None
    try:
        async with _engine(url.set(database=name)) as engine:
            yield engine
    finally:
        await _administer(url, f"DROP DATABASE {name} WITH (FORCE)")


@asynccontextmanager
async def _engine(url: URL) -> AsyncIterator[AsyncEngine]:
    engine = create_async_engine(url)
    try:
        yield engine
    finally:
        await engine.dispose()


async def _administer(url: URL, statement: str) -> None:
    async with _engine(url) as engine, engine.connect() as connection:
        await connection.execution_options(isolation_level="AUTOCOMMIT")
        await connection.execute(text(statement))


class Worker:
    """The worker's process. What it logs, the traceback of each failed run too, goes to a file."""

    def __init__(self, url: URL) -> None:
        self._environment = {**os.environ, "ORDERS_DSN": url.render_as_string(hide_password=False)}
        self._process: Process | None = None
        self._log = tempfile.TemporaryFile()  # noqa: SIM115  it lives as long as the worker

    async def start(self) -> int:
        """Its process id."""
        script = str(Path(__file__).with_name("worker.py"))
        self._process = await create_subprocess_exec(
            sys.executable, script, env=self._environment, stdout=self._log, stderr=self._log
        )
        return self._process.pid

    def check(self) -> None:
        """Raise if it has ended by itself."""
        if self._process is not None and self._process.returncode is not None:
            raise RuntimeError(f"the worker ended by itself, exit code {self._process.returncode}")

    def read_log(self) -> str:
        self._log.seek(0)
        return self._log.read().decode(errors="replace")

    async def kill(self) -> None:
        """At once, without a chance to clean up."""
        await self._end(signal.SIGKILL)

    async def stop(self) -> int:
        """In order; its exit code."""
        return await self._end(signal.SIGTERM)

    async def _end(self, with_signal: signal.Signals) -> int:
        assert self._process is not None, "start it first"
        if self._process.returncode is None:
            self._process.send_signal(with_signal)
        return await self._process.wait()
