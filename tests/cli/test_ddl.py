"""The CREATE statements that `outbox ddl` prints, against the tables that SQLAlchemy makes."""

import pytest
from sqlalchemy import Engine, MetaData, create_engine, text

from outbox_core.errors import InvalidName, UnsupportedDatabase
from outbox_core.schema import Tables
from outbox_core.sql.ddl import create_statements
from outbox_core.sql.grants import Roles, grant_statements
from outbox_sqlalchemy import make_outbox_tables
from outbox_sqlalchemy.tables import names_of
from tests.databases import with_driver
from tests.django.catalogues import read_catalogue


@pytest.fixture(params=["postgresql", "sqlite"])
def engine(request: pytest.FixtureRequest) -> Engine:
    if request.param == "sqlite":
        return create_engine(f"sqlite:///{request.getfixturevalue('tmp_path') / 'outbox.db'}")
    return create_engine(with_driver(request.getfixturevalue("database"), "psycopg"))


@pytest.mark.parametrize("prefix", ["outbox", "a_name_so_long_that_those_of_its_indexes_are_shortened"])
def test_what_is_printed_makes_the_tables_that_create_all_makes(engine: Engine, prefix: str) -> None:
    metadata = MetaData()
    tables = make_outbox_tables(metadata, prefix, archive=True, inbox=True)
    kept = [table for table in tables if table is not None]
    with engine.begin() as connection:
        metadata.create_all(connection)
        expected = [read_catalogue(connection, table) for table in kept]
        metadata.drop_all(connection)
        for statement in create_statements(names_of(tables), engine.dialect.name):
            connection.execute(text(statement.replace(":", "\\:")))

        assert [read_catalogue(connection, table) for table in kept] == expected
    engine.dispose()


def test_a_schema_is_named_everywhere() -> None:
    first, index, *_ = create_statements(Tables("mail", schema="app"), "postgresql")

    assert first.startswith('CREATE TABLE "app"."mail" (')
    assert index.startswith('CREATE INDEX "mail_ready_idx" ON "app"."mail" (')


def test_another_database_is_refused() -> None:
    with pytest.raises(UnsupportedDatabase, match="no CREATE statements for 'oracle'; there are"):
        create_statements(Tables(), "oracle")


def test_only_roles_that_are_named_are_granted_anything() -> None:
    assert grant_statements(Tables(), Roles(publisher="shop")) == [
        'GRANT INSERT (message_id, queue, key, payload, headers, priority, timer_id, next_attempt_at) ON "outbox" TO "shop"'
    ]
    assert grant_statements(Tables(), Roles()) == []


@pytest.mark.parametrize(
    ("role", "quoted"),
    [("web-app", '"web-app"'), ("App", '"App"'), ('a"; DROP TABLE outbox; --', '"a""; DROP TABLE outbox; --"')],
)
def test_a_role_may_have_any_name(role: str, quoted: str) -> None:
    (statement,) = grant_statements(Tables(), Roles(publisher=role))

    assert statement.endswith(f" TO {quoted}")


@pytest.mark.parametrize("role", ["", "a\0b", "é" * 32])
def test_a_name_that_no_role_can_have_is_refused(role: str) -> None:
    with pytest.raises(InvalidName, match="a role's name must be 1 to 63 bytes without NUL"):
        grant_statements(Tables(), Roles(worker=role))
