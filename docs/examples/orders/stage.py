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
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

DRIVERS = {"sqlite": "sqlite+aiosqlite", "postgresql": "postgresql+asyncpg", "postgres": "postgresql+asyncpg"}


@asynccontextmanager
async def empty_database(dsn: str | None) -> AsyncIterator[AsyncEngine]:
    """An engine on a database of its own, removed at the end: an SQLite file, or one on the server that *dsn* names."""
    with tempfile.TemporaryDirectory(prefix="outbox-demo-") as folder:
        url = make_url(dsn or f"sqlite:///{folder}/orders.db")
        url = url.set(drivername=DRIVERS.get(url.drivername, url.drivername))
        if url.get_backend_name() == "sqlite":
            if dsn and Path(url.database or "").exists():
                raise SystemExit(f"{url.database} exists already; name a file that does not, or leave DSN out")
            async with _engine(url) as engine:
                yield engine
            return
        name = f"outbox_demo_{uuid4().hex[:8]}"
        await _administer(url, f"CREATE DATABASE {name}")
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
    """The worker's process."""

    def __init__(self, url: URL) -> None:
        self._environment = {**os.environ, "ORDERS_DSN": url.render_as_string(hide_password=False)}
        self._process: Process | None = None

    async def start(self) -> int:
        """Its process id."""
        script = str(Path(__file__).with_name("worker.py"))
        self._process = await create_subprocess_exec(sys.executable, script, env=self._environment)
        return self._process.pid

    def freeze(self) -> None:
        self._send(signal.SIGSTOP)

    def thaw(self) -> None:
        self._send(signal.SIGCONT)

    async def kill(self) -> None:
        """At once, without a chance to clean up."""
        await self._end(signal.SIGKILL)

    async def stop(self) -> int:
        """In order; its exit code."""
        return await self._end(signal.SIGTERM)

    async def _end(self, with_signal: signal.Signals) -> int:
        assert self._process is not None, "start it first"
        self._send(with_signal)
        return await self._process.wait()

    def _send(self, what: signal.Signals) -> None:
        if self._process is not None and self._process.returncode is None:
            self._process.send_signal(what)
