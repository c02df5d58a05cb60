"""What `manage.py check` says of settings, routers and live tables, and that it never stands in the way of `migrate`."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from io import StringIO
from pathlib import Path
from typing import Any, TypeAlias

import pytest
from django.apps import apps
from django.core.checks import ERROR, INFO, CheckMessage, run_checks
from django.core.management import call_command
from django.db import connections
from django.test import override_settings
from sqlalchemy import URL, MetaData, create_engine

from outbox_sqlalchemy import make_outbox_tables
from tests.django.conftest import forget, leading

Outbox: TypeAlias = Callable[..., AbstractContextManager[None]]


class To:
    """A router that sends the outbox to one database, and lets it be migrated there or nowhere."""

    def __init__(self, alias: str, *, migrates: bool = True) -> None:
        self.alias = alias
        self.migrates = migrates

    def db_for_write(self, model: Any, **hints: Any) -> str | None:
        return self.alias if model._meta.app_label == "outbox" else None

    def allow_migrate(self, db: str, app_label: str, **hints: Any) -> bool | None:
        return self.migrates and db == self.alias if app_label == "outbox" else None


def found(*databases: str) -> list[CheckMessage]:
    return run_checks(tags=["outbox"], databases=databases)


def ids(messages: Sequence[CheckMessage]) -> list[str | None]:
    return [message.id for message in messages]


@contextmanager
def options(alias: str, **given: object) -> Iterator[None]:
    """*alias* has these OPTIONS meanwhile."""
    before = connections.settings[alias]["OPTIONS"]
    connections.settings[alias]["OPTIONS"] = given
    try:
        yield
    finally:
        connections.settings[alias]["OPTIONS"] = before


# Settings


def test_a_project_that_fits_hears_nothing(alias: str) -> None:
    with override_settings(DATABASE_ROUTERS=[To(alias)]):
        assert found("default", "lite") == []


def test_where_the_routers_send_it_is_enough(alias: str) -> None:
    with override_settings(OUTBOX={"DATABASE": alias}, DATABASE_ROUTERS=[To(alias)]):
        assert found("default", "lite") == []


@pytest.mark.parametrize("key", ["DATABASE", "LISTEN_DATABASE"])
def test_an_alias_that_does_not_exist_is_named_with_those_that_do(
    django_databases: Mapping[str, URL], key: str
) -> None:
    with override_settings(OUTBOX={key: "evnets"}):
        (error,) = found("default")

    assert error.id == "outbox.E001"
    assert error.msg == f"OUTBOX[\"{key}\"] names the database 'evnets', which settings.DATABASES does not have"
    assert error.hint == "known are 'default', 'lite'"


def test_a_router_may_be_what_names_it(django_databases: Mapping[str, URL]) -> None:
    with override_settings(DATABASE_ROUTERS=[To("evnets")]):
        (error,) = found("default")

    assert error.id == "outbox.E001"
    assert error.msg.startswith("a database router names the database 'evnets'")


def test_a_database_without_statements_is_refused(django_databases: Mapping[str, URL]) -> None:
    connections.settings["other"] = {**connections.settings["lite"], "ENGINE": "django.db.backends.dummy"}
    try:
        with override_settings(OUTBOX={"DATABASE": "other"}, DATABASE_ROUTERS=[To("other")]):
            (error,) = found("other")
    finally:
        forget("other")
        del connections.settings["other"]

    assert error.id == "outbox.E002"
    assert "'other' (django.db.backends.dummy)" in error.msg
    assert "supported: postgresql, sqlite" in error.msg


def test_a_router_that_forbids_the_migrations_is_noticed(django_databases: Mapping[str, URL]) -> None:
    with override_settings(DATABASE_ROUTERS=[To("lite", migrates=False)]):
        (warning,) = found()

    assert warning.id == "outbox.W001"
    assert warning.hint is not None
    assert "allow_migrate('lite', 'outbox')" in warning.hint


def test_the_tables_of_others_need_no_migration(django_databases: Mapping[str, URL]) -> None:
    with override_settings(OUTBOX={"MANAGED": False}, DATABASE_ROUTERS=[To("lite", migrates=False)]):
        assert found() == []


def test_models_and_publishers_that_disagree_are_noticed(django_databases: Mapping[str, URL]) -> None:
    with override_settings(OUTBOX={"DATABASE": "lite"}):
        (warning,) = found()

    assert warning.id == "outbox.W002"
    assert (
        "OUTBOX[\"DATABASE\"] is 'lite', but Django reads and writes the models of the outbox in 'default'"
        in warning.msg
    )


def test_a_worker_must_not_listen_to_another_database(django_databases: Mapping[str, URL]) -> None:
    with override_settings(OUTBOX={"LISTEN_DATABASE": "lite"}):
        assert ids(found()) == ["outbox.W003"]
    with override_settings(OUTBOX={"LISTEN_DATABASE": "default"}):
        assert found() == []


def test_times_on_sqlite_without_time_zones_are_explained(django_databases: Mapping[str, URL]) -> None:
    with override_settings(USE_TZ=False, DATABASE_ROUTERS=[To("lite")]):
        assert ids(found()) == ["outbox.W004"]
    with override_settings(USE_TZ=False):
        assert found() == []


@pytest.mark.parametrize(
    ("pool", "concurrency", "expected"),
    [
        (True, 4, []),
        (True, 5, ["outbox.W005"]),
        ({"max_size": 8}, 8, []),
        ({"min_size": 2}, 3, ["outbox.W005"]),
        ({"min_size": 2, "max_size": None}, 3, ["outbox.W005"]),
        (False, 100, []),
        (None, 100, []),
    ],
)
def test_a_pool_must_have_a_connection_for_each_handler(
    django_databases: Mapping[str, URL], pool: object, concurrency: int, expected: list[str]
) -> None:
    with override_settings(OUTBOX={"CONCURRENCY": concurrency}), options("default", pool=pool):
        assert ids(found()) == expected


def test_whoever_asks_about_other_apps_hears_nothing(django_databases: Mapping[str, URL]) -> None:
    with override_settings(OUTBOX={"DATABASE": "evnets", "LISTEN_DATABASE": "lite"}):
        assert run_checks(app_configs=[apps.get_app_config("auth")], tags=["outbox"], databases=["default"]) == []


# Tables


@pytest.fixture(params=["postgresql", "sqlite"])
def outbox(request: pytest.FixtureRequest, django_databases: object, tmp_path: Path) -> Outbox:
    """Sends the outbox to a database without tables, "fresh", with settings as given."""
    url = (
        request.getfixturevalue("database")
        if request.param == "postgresql"
        else URL.create("sqlite", database=str(tmp_path / "fresh.db"))
    )

    @contextmanager
    def sent(**outbox: object) -> Iterator[None]:
        with leading("fresh", url), override_settings(OUTBOX=outbox, DATABASE_ROUTERS=[To("fresh")]):
            yield

    return sent


def execute(*statements: str) -> None:
    with connections["fresh"].cursor() as cursor:
        for statement in statements:
            cursor.execute(statement)


def make_with_sqlalchemy() -> None:
    metadata = MetaData()
    make_outbox_tables(metadata, archive=True, inbox=True)
    given = connections["fresh"].settings_dict
    url = URL.create("sqlite", database=given["NAME"])
    if connections["fresh"].vendor == "postgresql":
        url = URL.create(
            "postgresql+psycopg",
            username=given["USER"],
            password=given["PASSWORD"] or None,
            host=given["HOST"],
            port=given["PORT"] or None,
            database=given["NAME"],
        )
    engine = create_engine(url)
    metadata.create_all(engine)
    engine.dispose()


def test_a_database_that_is_not_migrated_is_told_once_and_how(outbox: Outbox) -> None:
    with outbox():
        (info,) = found("fresh")

    assert (info.id, info.level < ERROR) == ("outbox.I001", True)
    assert info.hint == "run manage.py migrate outbox --database fresh"


def test_tables_are_looked_at_only_where_they_are_asked_about(outbox: Outbox) -> None:
    with outbox():
        assert found() == found("default", "lite") == []


def test_after_the_migration_all_is_well_until_somebody_alters_a_table(outbox: Outbox) -> None:
    with outbox():
        call_command("migrate", "outbox", database="fresh", verbosity=0)
        assert found("fresh") == []

        execute("DROP INDEX outbox_ready_idx", "ALTER TABLE outbox_dlq DROP COLUMN worker")
        slow, fatal = found("fresh")

    assert slow.id == "outbox.W011"
    assert slow.msg.startswith(
        "outbox in database 'fresh' does not fit this version: index outbox_ready_idx on (queue, "
    )
    assert slow.msg.endswith(" is missing or different; claims may be slow")
    assert slow.hint == "alter it to what manage.py sqlmigrate outbox 0001 --database fresh says"
    assert fatal.id == "outbox.W010"
    assert "outbox_dlq in database 'fresh' does not fit this version: column worker is missing" in fatal.msg
    assert max(slow.level, fatal.level) < ERROR


def test_a_table_under_another_name_than_it_was_made_is_missing(outbox: Outbox) -> None:
    with outbox():
        call_command("migrate", "outbox", database="fresh", verbosity=0)
    with outbox(TABLE="events"):
        warnings = found("fresh")

    assert ids(warnings) == ["outbox.W008"] * 4
    assert warnings[0].msg == "table events does not exist in database 'fresh', although it has been migrated"


def test_tables_of_others_that_django_would_make_again_are_noticed(outbox: Outbox) -> None:
    with outbox():
        make_with_sqlalchemy()
        (warning,) = found("fresh")
        assert warning.id == "outbox.W007"
        assert warning.hint is not None
        assert "run manage.py migrate outbox --fake-initial --database fresh" in warning.hint

        call_command("migrate", "outbox", database="fresh", fake_initial=True, verbosity=0)

        assert found("fresh") == []


def test_tables_of_others_are_looked_at_like_ours(outbox: Outbox) -> None:
    with outbox(MANAGED=False):
        missing = found("fresh")
        make_with_sqlalchemy()
        assert found("fresh") == []

        execute("ALTER TABLE outbox RENAME COLUMN queue TO topic")
        altered = found("fresh")

    assert ids(missing) == ["outbox.W009"] * 3 + ["outbox.I002"]
    assert missing[0].hint is not None
    assert "alembic upgrade head" in missing[0].hint
    assert "outbox.W010" in ids(altered)
    assert {warning.hint for warning in altered} == {missing[0].hint}


def test_an_inbox_that_others_have_not_made_is_no_warning(outbox: Outbox) -> None:
    with outbox(MANAGED=False):
        make_with_sqlalchemy()
        execute("DROP TABLE outbox_inbox")
        (info,) = found("fresh")

    assert (info.id, info.level) == ("outbox.I002", INFO)
    assert info.msg == (
        "table outbox_inbox does not exist in database 'fresh', so receive() is refused; nothing else needs it"
    )


def test_an_inbox_that_does_not_fit_keeps_no_worker_from_starting(outbox: Outbox) -> None:
    with outbox():
        call_command("migrate", "outbox", database="fresh", verbosity=0)
        execute("ALTER TABLE outbox_inbox RENAME COLUMN consumer TO who")
        altered = found("fresh")
        call_command("outbox_health", "--max-dead", "0", "--database", "fresh", stdout=StringIO())

    assert set(ids(altered)) == {"outbox.W012"}
    assert "receive() fails" in altered[0].msg


@pytest.mark.parametrize(
    "url",
    [
        URL.create("postgresql", username="nobody", host="127.0.0.1", port=1, database="nowhere"),
        URL.create("sqlite", database="/no/such/folder/outbox.db"),
    ],
    ids=["postgresql", "sqlite"],
)
def test_a_database_that_does_not_answer_is_a_warning(django_databases: object, url: URL) -> None:
    with leading("gone", url), override_settings(DATABASE_ROUTERS=[To("gone")]):
        (warning,) = found("gone")

    assert (warning.id, warning.level < ERROR) == ("outbox.W006", True)
    assert "the tables of the outbox in database 'gone' could not be looked at: cannot use " in warning.msg
