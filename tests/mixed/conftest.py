"""The outbox that both frameworks share, and everyone who publishes to it or consumes from it."""

import shutil
from collections.abc import AsyncIterator, Iterator
from functools import partial
from pathlib import Path

import pytest
from sqlalchemy import URL

from tests.databases import execute, postgres_database
from tests.django.outboxes import Outbox
from tests.django_databases import added_database
from tests.mixed.consumers import CONSUMERS, Consumer
from tests.mixed.place import Shared
from tests.mixed.publishers import PUBLISHERS, Publish


@pytest.fixture(scope="session")
def migrated_database(server: URL) -> Iterator[URL]:
    """A PostgreSQL database with Django's tables. Nothing in it has to survive a crash of the server."""
    with postgres_database(server) as url:
        execute(server, f'ALTER DATABASE "{url.database}" SET synchronous_commit = off')
        Outbox(url).make_with_django()
        yield url


@pytest.fixture(scope="session")
def migrated_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An SQLite file with Django's tables, to be copied."""
    path = tmp_path_factory.mktemp("migrated") / "template.db"
    Outbox(URL.create("sqlite", database=str(path))).make_with_django()
    return path


@pytest.fixture(params=["postgresql", "sqlite"])
async def shared(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Shared]:
    """An empty outbox, on each kind of database."""
    if request.param == "sqlite":
        path = shutil.copy(request.getfixturevalue("migrated_file"), tmp_path / "outbox.db")
        url = URL.create("sqlite", database=str(path))
    else:
        url = request.getfixturevalue("migrated_database")
    with added_database("shared", url) as alias:
        shared = Shared(url, alias)
        try:
            await shared.clear()
            yield shared
        finally:
            await shared.close()


@pytest.fixture(params=PUBLISHERS)
def publish(request: pytest.FixtureRequest, shared: Shared) -> Publish:
    """Each way to publish."""
    return partial(PUBLISHERS[request.param], shared)


@pytest.fixture(params=CONSUMERS)
def consumer(request: pytest.FixtureRequest, shared: Shared) -> Consumer:
    """Each way to consume."""
    return CONSUMERS[request.param](shared)
