"""An outbox on each database, and a fleet of worker processes on it."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import URL

from tests.crash.fleet import Fleet, Outbox
from tests.databases import OwnServer


@pytest.fixture(scope="session")
def own_server() -> Iterator[OwnServer]:
    """One that may be stopped, and is started again by whoever did."""
    with OwnServer.running() as server:
        yield server


@pytest.fixture(params=["asyncpg"])
def backend(request: pytest.FixtureRequest) -> str:
    """asyncpg; tests whose subject depends on the driver are parametrized with psycopg and sqlite too."""
    return str(request.param)


@pytest.fixture
def outbox(backend: str, tmp_path: Path, request: pytest.FixtureRequest) -> Outbox:
    """Empty tables."""
    if backend == "sqlite":
        return Outbox.on(URL.create("sqlite+aiosqlite", database=str(tmp_path / "outbox.db")))
    database: URL = request.getfixturevalue("database")
    return Outbox.on(database.set(drivername=f"postgresql+{backend}"))


@pytest.fixture
def fleet(outbox: Outbox, tmp_path: Path) -> Iterator[Fleet]:
    """No process yet; none survives the test."""
    fleet = Fleet(outbox, tmp_path)
    yield fleet
    fleet.close()
