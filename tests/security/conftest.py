"""A database whose outbox belongs to nobody who uses it: a role publishes, one works, one operates, one receives."""

from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from uuid import uuid4

import pytest
from sqlalchemy import URL, MetaData, create_engine

from outbox_core.schema import Tables
from outbox_core.sql.grants import Roles, grant_statements
from outbox_sqlalchemy import OutboxTables, make_outbox_tables
from outbox_sqlalchemy.tables import names_of
from tests.databases import execute, postgres_database, with_driver
from tests.places import Place


@dataclass(frozen=True)
class Guarded:
    """The outbox in a schema of its own, its URL as the owner, and one URL for each role."""

    owner: URL
    tables: OutboxTables
    publisher: URL
    worker: URL
    operator: URL
    receiver: URL

    @property
    def names(self) -> Tables:
        return names_of(self.tables)


@pytest.fixture(scope="session")
def guarded_database(server: URL) -> Iterator[Guarded]:
    """Made once; `guarded` empties it for each test."""
    suffix = uuid4().hex[:8]
    roles = {name: f"outbox-{name}-{suffix}" for name in ("publisher", "worker", "operator", "receiver")}
    with postgres_database(server) as url:
        metadata = MetaData(schema="mail")
        tables = make_outbox_tables(metadata, archive=True, inbox=True)
        execute(url, "CREATE SCHEMA mail")
        engine = create_engine(with_driver(url, "psycopg"))
        metadata.create_all(engine)
        engine.dispose()
        for role in roles.values():
            execute(url, f'CREATE ROLE "{role}" LOGIN')
        try:
            for statement in grant_statements(names_of(tables), Roles(**roles)):
                execute(url, statement)
            yield Guarded(url, tables, **{name: url.set(username=role) for name, role in roles.items()})
        finally:
            for role in roles.values():
                execute(url, f'DROP OWNED BY "{role}"; DROP ROLE "{role}"')


@pytest.fixture
def guarded(guarded_database: Guarded) -> Guarded:
    names = guarded_database.names
    for table in names.described():
        execute(guarded_database.owner, f"DELETE FROM {names.sql(table)}")
    return guarded_database


@pytest.fixture
async def postgres(shared_database: URL) -> AsyncIterator[Place]:
    """An empty outbox on PostgreSQL."""
    place = Place(shared_database, "asyncpg")
    place.run("TRUNCATE outbox, outbox_dlq, outbox_queues RESTART IDENTITY")
    yield place
    await place.close()
