"""An outbox on every database and driver, its tables made and empty.

The plain fixtures share one PostgreSQL database, emptied for each test; the fresh ones are for tests that change tables,
count connections or cut them.
"""

import shutil
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from sqlalchemy import make_url

from tests.places import Place

DRIVERS = ["asyncpg", "psycopg"]
EVERY = [*DRIVERS, "aiosqlite"]
EITHER = ["asyncpg", "aiosqlite"]


def make_place(request: pytest.FixtureRequest, *, fresh: bool = False) -> Place:
    driver = request.param
    if driver == "aiosqlite":
        path: Path = request.getfixturevalue("tmp_path") / "outbox.db"
        shutil.copy(request.getfixturevalue("sqlite_template"), path)
        return Place(make_url(f"sqlite:///{path}"), driver)
    if fresh:
        place = Place(request.getfixturevalue("database"), driver)
        place.metadata.create_all(place.sync_engine)
        return place
    place = Place(request.getfixturevalue("shared_database"), driver)
    place.run("TRUNCATE outbox, outbox_dlq, outbox_queues RESTART IDENTITY")
    return place


@asynccontextmanager
async def opened(request: pytest.FixtureRequest, *, fresh: bool = False) -> AsyncIterator[Place]:
    place = make_place(request, fresh=fresh)
    try:
        yield place
    finally:
        await place.close()


@pytest.fixture(params=EVERY)
async def place(request: pytest.FixtureRequest) -> AsyncIterator[Place]:
    """Every database with every driver."""
    async with opened(request) as place:
        yield place


@pytest.fixture(params=EITHER)
async def either(request: pytest.FixtureRequest) -> AsyncIterator[Place]:
    """Each database once, where the driver makes no difference."""
    async with opened(request) as place:
        yield place


@pytest.fixture(params=DRIVERS)
async def postgres(request: pytest.FixtureRequest) -> AsyncIterator[Place]:
    """PostgreSQL with each driver."""
    async with opened(request) as place:
        yield place


@pytest.fixture(params=["aiosqlite"])
async def sqlite(request: pytest.FixtureRequest) -> AsyncIterator[Place]:
    """SQLite alone."""
    async with opened(request) as place:
        yield place


@pytest.fixture(params=EITHER)
def sync_place(request: pytest.FixtureRequest) -> Iterator[Place]:
    """Each database for code without an event loop; the asynchronous engine is never used."""
    place = make_place(request)
    yield place
    place.sync_engine.dispose()


@pytest.fixture(params=EITHER)
async def fresh_either(request: pytest.FixtureRequest) -> AsyncIterator[Place]:
    """Each database once, for this test alone."""
    async with opened(request, fresh=True) as place:
        yield place


@pytest.fixture(params=DRIVERS)
async def fresh_postgres(request: pytest.FixtureRequest) -> AsyncIterator[Place]:
    """PostgreSQL with each driver, for this test alone."""
    async with opened(request, fresh=True) as place:
        yield place
