"""Fixtures for all tests: a PostgreSQL server, and databases on it."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from sqlalchemy import URL
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from tests.databases import postgres_database, postgres_server, with_driver


@pytest.fixture(scope="session")
def server() -> Iterator[URL]:
    with postgres_server() as url:
        yield url


@pytest.fixture
def database(server: URL) -> Iterator[URL]:
    """An empty PostgreSQL database."""
    with postgres_database(server) as url:
        yield url


@pytest.fixture(params=["asyncpg", "psycopg"])
def driver(request: pytest.FixtureRequest) -> str:
    """Each PostgreSQL driver in turn."""
    return str(request.param)


@pytest.fixture
async def engine(database: URL, driver: str) -> AsyncIterator[AsyncEngine]:
    """An engine on an empty PostgreSQL database, for each driver."""
    engine = create_async_engine(with_driver(database, driver))
    yield engine
    await engine.dispose()


@pytest.fixture
async def sqlite_engine(tmp_path: Path) -> AsyncIterator[AsyncEngine]:
    """An engine on an empty SQLite file."""
    engine = create_async_engine(f"sqlite+aiosqlite:///{tmp_path / 'outbox.db'}")
    yield engine
    await engine.dispose()


@pytest.fixture(params=["asyncpg", "psycopg", "sqlite"])
def dsn(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty database for each driver, as SQLAlchemy takes it."""
    if request.param == "sqlite":
        return f"sqlite+aiosqlite:///{tmp_path / 'outbox.db'}"
    return with_driver(request.getfixturevalue("database"), request.param)


@pytest.fixture
async def any_engine(dsn: str) -> AsyncIterator[AsyncEngine]:
    """An engine on an empty database, for each driver."""
    engine = create_async_engine(dsn)
    yield engine
    await engine.dispose()
