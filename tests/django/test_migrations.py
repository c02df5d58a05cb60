"""The first migration under every setting that it follows: what it makes, what it leaves alone, and its way back."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

import pytest
from alembic.autogenerate import produce_migrations
from alembic.operations import Operations
from alembic.operations.ops import MigrateOperation, ModifyTableOps
from alembic.runtime.migration import MigrationContext
from sqlalchemy import URL

from tests.databases import execute
from tests.django.outboxes import Outbox, empty_database
from tests.django.projects import Project

TABLES = ["outbox", "outbox_archive", "outbox_dlq", "outbox_inbox", "outbox_queues"]


@pytest.fixture(params=["postgresql", "sqlite"])
def empty(request: pytest.FixtureRequest, server: URL, tmp_path: Path) -> Iterator[URL]:
    """A database without tables, on each kind."""
    with empty_database(request.param, server, tmp_path) as url:
        yield url


@pytest.fixture
def sqlite(tmp_path: Path) -> URL:
    """For what looks at no table."""
    return URL.create("sqlite", database=str(tmp_path / "outbox.db"))


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"TABLE": "events_outbox"},
        {"SCHEMA": "app"},
        {"MANAGED": False},
        {"ARCHIVE": True},
        {"TABLE": "events_outbox", "SCHEMA": "app", "MANAGED": False},
    ],
    ids=str,
)
def test_no_setting_makes_a_migration_of_its_own(sqlite: URL, settings: dict[str, object]) -> None:
    said = Project(sqlite, settings).manage("makemigrations", "--check", "--dry-run")

    assert said == "No changes detected\n"


def test_the_migration_can_be_read_before_it_is_run(database: URL) -> None:
    sql = Project(database, {"SCHEMA": "app"}).manage("sqlmigrate", "outbox", "0001")

    assert 'CREATE SCHEMA "app"' in sql
    assert 'ALTER TABLE "app"."outbox" SET (fillfactor = 50, ' in sql
    assert Outbox(database).names() == []


def test_the_way_back_leaves_nothing(empty: URL) -> None:
    outbox = Outbox(empty)
    outbox.project.manage("migrate")
    assert set(TABLES) < set(bare(outbox.names()))

    outbox.project.manage("migrate", "outbox", "zero")

    assert bare(outbox.names()) == ["django_migrations"]


def test_the_way_back_leaves_the_schema_which_others_may_use(database: URL) -> None:
    project = Project(database, {"SCHEMA": "app"})
    project.manage("migrate")

    project.manage("migrate", "outbox", "zero")

    assert execute(database, "SELECT count(*) FROM pg_tables WHERE schemaname = 'app'") == [(0,)]
    assert has_schema(database)
    project.manage("migrate")


def test_the_tables_of_another_owner_are_left_alone(database: URL) -> None:
    project = Project(database, {"SCHEMA": "app", "MANAGED": False})

    assert without_comments(project.manage("sqlmigrate", "outbox", "0001")) == ["BEGIN;", "COMMIT;"]
    project.manage("migrate")

    assert Outbox(database).names() == ["public.django_migrations"]
    assert not has_schema(database)
    assert "[X] 0001_initial" in project.manage("showmigrations")


def test_routers_keep_the_outbox_out_of_a_database(database: URL) -> None:
    project = Project(database, {"SCHEMA": "app"}, routers=["tests.django.project.routers.OutboxElsewhere"])

    project.manage("migrate")

    assert Outbox(database).names() == ["public.django_migrations"]
    assert not has_schema(database)
    project.manage("migrate", "outbox", "zero")


def test_a_schema_that_is_there_is_used_by_a_role_that_could_not_make_it(
    database: URL, monkeypatch: pytest.MonkeyPatch
) -> None:
    execute(database, "CREATE SCHEMA app")
    with new_role(database) as role:
        execute(database, f"GRANT ALL ON SCHEMA public, app TO {role}")
        with monkeypatch.context() as environment:
            environment.setenv("PGOPTIONS", f"-c role={role}")
            Project(database, {"SCHEMA": "app"}).manage("migrate")

        owners = execute(database, "SELECT DISTINCT tableowner FROM pg_tables WHERE schemaname = 'app'")

    assert owners == [(role,)]


def test_a_database_that_alembic_made_is_adopted(empty: URL) -> None:
    outbox = Outbox(empty)
    make_with_alembic(outbox)

    assert "0001_initial... FAKED" in outbox.project.manage("migrate", "--fake-initial")

    assert outbox.project.ask("answer = OutboxMessage.objects.create(queue='orders', payload=b'').id") == 1
    assert "No planned migration operations." in outbox.project.manage("migrate", "--plan")


@contextmanager
def new_role(database: URL) -> Iterator[str]:
    """A role that may do nothing yet; it leaves with all that it owns."""
    role = f"outbox_{uuid4().hex[:12]}"
    execute(database, f"CREATE ROLE {role}")
    try:
        yield role
    finally:
        execute(database, f"DROP OWNED BY {role} CASCADE")
        execute(database, f"DROP ROLE {role}")


def make_with_alembic(outbox: Outbox) -> None:
    """Run what autogenerate writes for an empty database."""
    with outbox.engine() as engine, engine.begin() as connection:
        context = MigrationContext.configure(connection)
        script = produce_migrations(context, outbox.tables.outbox.metadata)
        assert script.upgrade_ops is not None
        invoke(Operations(context), script.upgrade_ops.ops)


def invoke(operations: Operations, steps: list[MigrateOperation]) -> None:
    for step in steps:
        if isinstance(step, ModifyTableOps):
            invoke(operations, step.ops)
        else:
            operations.invoke(step)


def bare(names: list[str]) -> list[str]:
    return [name.rpartition(".")[2] for name in names]


def has_schema(database: URL) -> bool:
    return execute(database, "SELECT count(*) FROM pg_namespace WHERE nspname = 'app'") == [(1,)]


def without_comments(sql: str) -> list[str]:
    return [line for line in sql.splitlines() if not line.startswith("--")]
