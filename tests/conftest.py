"""Fixtures for all tests: a PostgreSQL server, databases on it, and outboxes on those and on SQLite."""

import shutil
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import URL, MetaData, create_engine, make_url
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from outbox_sqlalchemy import make_outbox_tables
from tests.databases import execute, postgres_database, postgres_server, with_driver
from tests.parallel import ALONE, Scheduler
from tests.places import Place


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Scheduler:
    return Scheduler(config, log)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """In several processes, what one of them is busy with for long is begun first."""
    if hasattr(config, "workerinput"):
        items.sort(key=lambda item: not item.nodeid.startswith(ALONE))


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


@pytest.fixture(scope="session")
def sqlite_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sqlite") / "template.db"
    metadata = MetaData()
    make_outbox_tables(metadata)
    engine = create_engine(f"sqlite:///{path}")
    metadata.create_all(engine)
    engine.dispose()
    return path


@pytest.fixture(scope="session")
def shared_database(server: URL) -> Iterator[URL]:
    """A PostgreSQL database with the tables, to be emptied for each test."""
    with postgres_database(server) as url:
        metadata = MetaData()
        make_outbox_tables(metadata)
        engine = create_engine(with_driver(url, "psycopg"))
        metadata.create_all(engine)
        engine.dispose()
        execute(server, f'ALTER DATABASE "{url.database}" SET synchronous_commit = off')
        yield url


@pytest.fixture
async def place(sqlite_template: Path, tmp_path: Path) -> AsyncIterator[Place]:
    """An empty outbox on SQLite."""
    path = tmp_path / "outbox.db"
    shutil.copy(sqlite_template, path)
    place = Place(make_url(f"sqlite:///{path}"), "aiosqlite")
    yield place
    await place.close()


@pytest.fixture(params=["aiosqlite", "asyncpg"])
async def both(request: pytest.FixtureRequest) -> AsyncIterator[Place]:
    """An empty outbox on SQLite, and on PostgreSQL."""
    if request.param == "aiosqlite":
        path: Path = request.getfixturevalue("tmp_path") / "outbox.db"
        shutil.copy(request.getfixturevalue("sqlite_template"), path)
        place = Place(make_url(f"sqlite:///{path}"), request.param)
    else:
        place = Place(request.getfixturevalue("shared_database"), request.param)
        place.run("TRUNCATE outbox, outbox_dlq, outbox_queues RESTART IDENTITY")
    yield place
    await place.close()
