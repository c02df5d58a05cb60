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
