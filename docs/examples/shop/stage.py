"""What the demo stands on: an empty database, and processes that can be killed."""

import signal
import socket
import sys
import tempfile
from asyncio.subprocess import Process, create_subprocess_exec
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from uuid import uuid4

import psycopg
from sqlalchemy import URL, make_url

FOLDER = Path(__file__).parent


@asynccontextmanager
async def empty_database(dsn: str) -> AsyncIterator[str]:
    """The URL of a new database that is gone at the end: on the server that *dsn* names, or with "" an SQLite file."""
    if dsn:
        async with _on_server(make_url(dsn)) as url:
            yield url
    else:
        with tempfile.TemporaryDirectory(prefix="outbox-demo-") as folder:
            yield f"sqlite:///{folder}/shop.db"


@asynccontextmanager
async def _on_server(given: URL) -> AsyncIterator[str]:
    if given.get_backend_name() not in ("postgresql", "postgres"):
        raise SystemExit(f"DSN must name a PostgreSQL server, got {given}; leave it out for SQLite")
    url = given.set(drivername="postgresql")  # each framework adds its driver
    name = f"outbox_demo_{uuid4().hex[:8]}"
    try:
        await _administer(url, f"CREATE DATABASE {name}")
    except psycopg.Error as error:
        raise SystemExit(f"cannot create a database on {url}: {error}") from None
    try:
        yield url.set(database=name).render_as_string(hide_password=False)
    finally:
        await _administer(url, f"DROP DATABASE {name} WITH (FORCE)")


async def _administer(url: URL, statement: str) -> None:
    dsn = url.render_as_string(hide_password=False)
    async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as connection:
        await connection.execute(statement)


def listen() -> socket.socket:
    """On a free port of this machine. A service that inherits it may die: requests wait here until it comes back."""
    return socket.create_server(("127.0.0.1", 0))


class Worker:
    """One process of the shop, by its command. What it logs goes to a file. It inherits *sockets*."""

    def __init__(self, name: str, *command: str, sockets: Sequence[socket.socket] = ()) -> None:
        self.name = name
        self._command = command
        self._inherited = [one.fileno() for one in sockets]
        self._process: Process | None = None
        self._log = tempfile.TemporaryFile()  # noqa: SIM115  it lives as long as the worker

    async def start(self) -> int:
        """Its process id."""
        self._process = await create_subprocess_exec(
            sys.executable, *self._command, cwd=FOLDER, stdout=self._log, stderr=self._log, pass_fds=self._inherited
        )
        return self._process.pid

    def check(self) -> None:
        """Raise if it has ended by itself."""
        if self._process is not None and self._process.returncode is not None and self._process.returncode >= 0:
            raise RuntimeError(f"{self.name} ended by itself, exit code {self._process.returncode}")

    def read_log(self) -> str:
        self._log.seek(0)
        return f"--- {self.name}\n{self._log.read().decode(errors='replace')}"

    async def kill(self) -> None:
        """At once, without a chance to clean up."""
        await self._end(signal.SIGKILL)

    async def stop(self) -> int:
        """In order; its exit code."""
        return await self._end(signal.SIGTERM)

    async def _end(self, with_signal: signal.Signals) -> int:
        if self._process is None:
            return 0
        if self._process.returncode is None:
            self._process.send_signal(with_signal)
        return await self._process.wait()
