"""What Django makes and what SQLAlchemy makes is the same table, and each takes the other's for its own."""

import asyncio
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import URL, Column, Identity, insert, select
from sqlalchemy.ext.asyncio import create_async_engine

from outbox_sqlalchemy.store import SqlAlchemyStore
from outbox_sqlalchemy.tables import names_of
from tests.databases import plain
from tests.django.catalogues import read_catalogue
from tests.django.outboxes import Outbox, empty_database

SETTINGS = {
    "default": {},
    "named": {"TABLE": "events_of_the_warehouse_outbox"},  # so long that the names of its indexes are shortened
    "in a schema": {"TABLE": "events_outbox", "SCHEMA": "app"},
}
ON_POSTGRESQL = [("postgresql", "default"), ("postgresql", "named"), ("postgresql", "in a schema")]
ON_SQLITE = [("sqlite", "default"), ("sqlite", "named")]


@dataclass(frozen=True)
class Both:
    """The same outbox twice."""

    django: Outbox
    sqlalchemy: Outbox


@pytest.fixture(scope="module", params=ON_POSTGRESQL + ON_SQLITE, ids=" ".join)
def both(request: pytest.FixtureRequest, server: URL, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Both]:
    kind, name = request.param
    folders = [tmp_path_factory.mktemp("outbox") for _ in range(2)]
    with empty_database(kind, server, folders[0]) as one, empty_database(kind, server, folders[1]) as other:
        made = Both(Outbox(one, SETTINGS[name]), Outbox(other, SETTINGS[name]))
        made.django.make_with_django()
        made.sqlalchemy.make_with_sqlalchemy()
        yield made


@pytest.fixture(params=["django", "sqlalchemy"])
def outbox(request: pytest.FixtureRequest, both: Both) -> Outbox:
    """The outbox that Django made, and the one that SQLAlchemy made."""
    made: Outbox = getattr(both, request.param)
    return made


def test_the_catalogues_are_the_same(both: Both) -> None:
    assert catalogues(both.django) == catalogues(both.sqlalchemy)


@pytest.mark.parametrize("both", ON_POSTGRESQL, ids=" ".join, indirect=True)
def test_the_dumps_are_the_same(both: Both) -> None:
    assert dump(both.django) == dump(both.sqlalchemy)


def test_alembic_finds_nothing_to_do(outbox: Outbox) -> None:
    tables = outbox.tables
    names = {table.name for table in tables if table is not None}

    def is_ours(name: str | None, kind: str, parents: object) -> bool:
        return name in names if kind == "table" else kind != "schema" or name == outbox.schema

    options = {
        "compare_type": True,
        "compare_server_default": True if outbox.is_postgresql else without_identities,
        "include_schemas": outbox.schema is not None,
        "include_name": is_ours,
    }
    with outbox.engine() as engine, engine.connect() as connection:
        context = MigrationContext.configure(connection, opts=options)
        assert compare_metadata(context, tables.outbox.metadata) == []


def test_sqlalchemys_drift_check_finds_nothing(outbox: Outbox) -> None:
    assert asyncio.run(differences(outbox)) == {}


def test_djangos_drift_check_finds_nothing_in_sqlalchemys_tables(both: Both) -> None:
    answer = both.sqlalchemy.project.ask("""
import asyncio
from outbox_django.store import DjangoStore
answer = asyncio.run(DjangoStore().differences())
""")

    assert answer == {}


def test_a_row_that_sqlalchemy_inserts_reads_the_same_through_django(both: Both) -> None:
    outbox = both.django
    with outbox.engine() as engine, engine.begin() as connection:
        for table, values in zip(outbox.tables, ROWS, strict=True):
            assert table is not None
            connection.execute(insert(table).values(values))

    through_django = outbox.project.ask(READ)

    assert through_django == rows(outbox)
    assert_defaults(through_django)


def test_a_row_that_django_inserts_reads_the_same_through_sqlalchemy(both: Both) -> None:
    outbox = both.sqlalchemy

    through_django = outbox.project.ask(
        f"for model, values in zip(MODELS, {ROWS}): model.objects.create(**values)\n{READ}"
    )

    assert through_django == rows(outbox)
    assert_defaults(through_django)


ROWS: list[dict[str, Any]] = [
    {"queue": "orders", "payload": b'{"id": 7}'},
    {"queue": "orders", "payload": b"\x00\xff", "failure_reason": "rejected"},
    {"queue": "orders", "payload": b""},
    {"queue": "orders"},
    {"consumer": "billing", "message_id": "m1"},
]
READ = "answer = [model.objects.values().get() for model in MODELS]"


def rows(outbox: Outbox) -> list[dict[str, Any]]:
    """The one row of each table. SQLite has no time zones, so what SQLAlchemy reads there does not say that it is UTC."""
    with outbox.engine() as engine, engine.connect() as connection:
        return [
            {
                name: value.replace(tzinfo=UTC) if isinstance(value, datetime) and not outbox.is_postgresql else value
                for name, value in connection.execute(select(table)).mappings().one().items()
            }
            for table in outbox.tables
            if table is not None
        ]


def assert_defaults(found: list[dict[str, Any]]) -> None:
    """All is there that nobody gave; the times are in UTC and of now."""
    now = datetime.now(UTC)
    for row in found[:3]:
        assert isinstance(row["message_id"], UUID)
        assert (row["headers"], row["priority"], row["deliveries_count"], row["attempts_count"]) == ({}, 0, 0, 0)
    moments = [value for row in found for value in row.values() if isinstance(value, datetime)]
    assert len(moments) == 7
    assert all(moment.utcoffset() == timedelta(0) for moment in moments)
    assert all(abs(now - moment) < timedelta(minutes=1) for moment in moments)


def catalogues(outbox: Outbox) -> dict[str, dict[str, list[tuple[Any, ...]]]]:
    with outbox.engine() as engine, engine.connect() as connection:
        return {table.name: read_catalogue(connection, table) for table in outbox.tables if table is not None}


def without_identities(*arguments: object) -> bool | None:
    """Alembic finds every `Identity` missing from SQLite, which has none. None: compare as usual."""
    _, _, column, *_ = arguments
    assert isinstance(column, Column)
    return False if isinstance(column.server_default, Identity) else None


async def differences(outbox: Outbox) -> object:
    engine = create_async_engine(outbox.async_url)
    try:
        return await SqlAlchemyStore(engine, names_of(outbox.tables)).differences()
    finally:
        await engine.dispose()


def dump(outbox: Outbox) -> list[str]:
    """The tables as pg_dump writes them, without the key that each dump has of its own."""
    program = shutil.which("pg_dump")
    if program is None:
        pytest.skip("pg_dump is not installed")
    tables = [f"--table={table.fullname}" for table in outbox.tables if table is not None]
    command = [program, "--schema-only", *tables, plain(outbox.url)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    if "server version mismatch" in done.stderr:
        pytest.skip("pg_dump is older than the server")
    assert done.returncode == 0, done.stderr
    return re.sub(r"^\\(un)?restrict .*$", "", done.stdout, flags=re.MULTILINE).splitlines()
