"""The stores on which every test of this folder runs. PostgreSQL's tables are made once and emptied for each test."""

import shutil
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeAlias

import pytest
from sqlalchemy import URL, create_engine
from sqlalchemy.ext.asyncio import create_async_engine

from outbox_core.claimant import Claimant
from outbox_core.events import Observer
from outbox_core.worker import Worker
from tests.contract.harness import (
    ARCHIVING_TABLES,
    METADATA,
    PARKING_TABLES,
    RECEIVING_TABLES,
    TABLES,
    DjangoOutbox,
    MemoryOutbox,
    Outbox,
    SqlAlchemyOutbox,
    SqlOutbox,
)
from tests.databases import execute, postgres_database, with_driver

Work: TypeAlias = Callable[..., Awaitable[Worker]]

POSTGRESQL = ["asyncpg", "psycopg", "django-postgresql"]
SQLITE = ["sqlite", "django-sqlite"]


@pytest.fixture(scope="session")
def shared_database(server: URL) -> Iterator[URL]:
    """A PostgreSQL database with all sets of tables. Nothing in it has to survive a crash of the server."""
    with postgres_database(server) as url:
        execute(server, f'ALTER DATABASE "{url.database}" SET synchronous_commit = off')
        engine = create_engine(with_driver(url, "psycopg"))
        METADATA.create_all(engine)
        engine.dispose()
        yield url


@pytest.fixture(scope="session")
def sqlite_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An SQLite file with all sets of tables, to be copied."""
    path = tmp_path_factory.mktemp("sqlite") / "template.db"
    engine = create_engine(f"sqlite:///{path}")
    METADATA.create_all(engine)
    engine.dispose()
    return path


@asynccontextmanager
async def opened(request: pytest.FixtureRequest, **options: Any) -> AsyncIterator[Outbox]:
    """The store that the fixture's parameter names, empty."""
    options = {"tables": TABLES, **options}
    kind = SqlAlchemyOutbox if not request.param.startswith("django-") else DjangoOutbox
    if request.param == "memory":
        outbox: Outbox = MemoryOutbox()
    elif request.param in SQLITE:
        path = request.getfixturevalue("tmp_path") / "outbox.db"
        shutil.copy(request.getfixturevalue("sqlite_template"), path)
        outbox = kind(create_async_engine(f"sqlite+aiosqlite:///{path}"), **options)
    else:
        driver = "psycopg" if request.param == "django-postgresql" else request.param
        outbox = kind(create_async_engine(with_driver(request.getfixturevalue("shared_database"), driver)), **options)
        await outbox.clear()
    try:
        yield outbox
    finally:
        await outbox.close()


@pytest.fixture(params=["memory", *SQLITE, *POSTGRESQL])
async def outbox(request: pytest.FixtureRequest) -> AsyncIterator[Outbox]:
    """Every store in turn."""
    async with opened(request) as outbox:
        yield outbox


@pytest.fixture(params=["memory", *POSTGRESQL])
async def waking_outbox(request: pytest.FixtureRequest) -> AsyncIterator[Outbox]:
    """The stores through which publishers can wake workers."""
    async with opened(request) as outbox:
        yield outbox


@pytest.fixture(params=POSTGRESQL)
async def postgres_outbox(request: pytest.FixtureRequest) -> AsyncIterator[Outbox]:
    """PostgreSQL with each driver and adapter."""
    async with opened(request) as outbox:
        yield outbox


@pytest.fixture(params=[*SQLITE, *POSTGRESQL])
async def parking_outbox(request: pytest.FixtureRequest) -> AsyncIterator[Outbox]:
    """The SQL stores with nothing but an outbox table."""
    async with opened(request, tables=PARKING_TABLES) as outbox:
        yield outbox


@pytest.fixture(params=[*SQLITE, *POSTGRESQL])
async def archiving_outbox(request: pytest.FixtureRequest) -> AsyncIterator[SqlOutbox]:
    """The SQL stores with an archive."""
    async with opened(request, tables=ARCHIVING_TABLES) as outbox:
        assert isinstance(outbox, SqlOutbox)
        yield outbox


@pytest.fixture(params=[*SQLITE, *POSTGRESQL])
async def receiving_outbox(request: pytest.FixtureRequest) -> AsyncIterator[SqlOutbox]:
    """The SQL stores with an inbox."""
    async with opened(request, tables=RECEIVING_TABLES) as outbox:
        assert isinstance(outbox, SqlOutbox)
        yield outbox


@pytest.fixture(params=POSTGRESQL)
async def postgres_receiving_outbox(request: pytest.FixtureRequest) -> AsyncIterator[SqlOutbox]:
    """PostgreSQL with each driver and adapter, and an inbox."""
    async with opened(request, tables=RECEIVING_TABLES) as outbox:
        assert isinstance(outbox, SqlOutbox)
        yield outbox


@pytest.fixture
async def work(outbox: Outbox) -> AsyncIterator[Work]:
    """Starts workers on the store with the claimants given; they are stopped at the end."""
    async with working(outbox) as start:
        yield start


@pytest.fixture
async def work_waking(waking_outbox: Outbox) -> AsyncIterator[Work]:
    """The same on the stores through which publishers can wake workers."""
    async with working(waking_outbox) as start:
        yield start


@asynccontextmanager
async def working(outbox: Outbox) -> AsyncIterator[Work]:
    workers: list[Worker] = []

    async def start(*claimants: Claimant, name: str = "w1", observers: Sequence[Observer] = ()) -> Worker:
        worker = Worker(outbox.store, name=name, observers=observers)
        workers.append(worker)
        await worker.start()
        for claimant in claimants:
            worker.add(claimant)
        return worker

    try:
        yield start
    finally:
        for worker in workers:
            await worker.stop(timeout=0.1)
