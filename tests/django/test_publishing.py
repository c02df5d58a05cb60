"""Publishing from synchronous code: in the transaction of its caller, on the right database, with one statement."""

import subprocess
import sys
import unittest
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from enum import Enum
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from django.contrib.auth.models import Group
from django.db import IntegrityError, ProgrammingError, connections, transaction
from django.db.transaction import TransactionManagementError
from django.http import HttpRequest, HttpResponse
from django.test import Client, TestCase, TransactionTestCase, override_settings
from django.test.utils import CaptureQueriesContext
from django.urls import path
from faststream import BaseMiddleware, PublishCommand
from pydantic import BaseModel
from sqlalchemy import URL

from outbox_core.errors import (
    CannotEncode,
    InvalidMessage,
    NoTransaction,
    NotStarted,
    OptionError,
    OutboxError,
    SchemaMismatch,
    UnknownOption,
    WrongDatabase,
    WrongType,
)
from outbox_django import OutboxBroker, publish, publish_batch
from outbox_django.errors import NotInTransaction, ReadOnlyDatabase
from outbox_django.models import OutboxMessage
from outbox_django.publishing import publishing_store
from tests.django.conftest import leading
from tests.places import Place

MESSAGE_ID = UUID("0192f3a0-0000-7000-8000-000000000001")


def bodies(alias: str) -> list[Any]:
    """What is in the outbox as this thread's connection sees it, oldest first."""
    return [message.body for message in OutboxMessage.objects.using(alias).order_by("id")]


def only(alias: str) -> OutboxMessage:
    return OutboxMessage.objects.using(alias).get()


def groups(alias: str) -> list[str]:
    return [group.name for group in Group.objects.using(alias).order_by("id")]


class RolledBack(Exception):
    """The end of a transaction that fails."""


@contextmanager
def rolled_back(alias: str) -> Iterator[None]:
    """`atomic()`, and then something fails."""
    with suppress(RolledBack), transaction.atomic(using=alias):
        yield
        raise RolledBack


@contextmanager
def queries(alias: str) -> Iterator[CaptureQueriesContext]:
    """What is sent meanwhile, without what connecting takes."""
    connections[alias].ensure_connection()
    with CaptureQueriesContext(connections[alias]) as captured:
        yield captured


@contextmanager
def added_alias(alias: str, url: URL, **settings: Any) -> Iterator[str]:
    """A further alias, with settings of its own."""
    with leading(alias, url):
        connections.settings[alias] |= settings
        yield alias


# In the caller's transaction


def test_a_message_is_committed_with_the_callers_writes(alias: str) -> None:
    with transaction.atomic(using=alias):
        Group.objects.using(alias).create(name="bakers")
        row_id = publish({"group": "bakers"}, "groups", using=alias)

    assert bodies(alias) == [{"group": "bakers"}]
    assert only(alias).id == row_id
    assert groups(alias) == ["bakers"]


def test_a_message_is_rolled_back_with_the_callers_writes(alias: str) -> None:
    with rolled_back(alias):
        Group.objects.using(alias).create(name="bakers")
        publish({"group": "bakers"}, "groups", using=alias)

    assert bodies(alias) == []
    assert groups(alias) == []


def test_a_savepoint_that_is_rolled_back_takes_its_own_message_only(alias: str) -> None:
    with transaction.atomic(using=alias):
        publish("outer", "groups", using=alias)
        with rolled_back(alias):
            publish("inner", "groups", using=alias)
        publish("after", "groups", using=alias)

    assert bodies(alias) == ["outer", "after"]


def test_nested_blocks_are_one_transaction(alias: str) -> None:
    with rolled_back(alias), transaction.atomic(using=alias), transaction.atomic(using=alias, savepoint=False):
        publish("inner", "groups", using=alias)

    assert bodies(alias) == []


def test_a_durable_block_is_a_transaction(alias: str) -> None:
    with transaction.atomic(using=alias, durable=True):
        publish("durable", "groups", using=alias)

    assert bodies(alias) == ["durable"]


def test_a_connection_without_autocommit_is_in_a_transaction(alias: str) -> None:
    connection = connections[alias]
    connection.set_autocommit(False)
    try:
        publish("gone", "groups", using=alias)
        connection.rollback()
        publish("kept", "groups", using=alias)
        connection.commit()
    finally:
        connection.rollback()
        connection.set_autocommit(True)

    assert bodies(alias) == ["kept"]


def test_a_broken_transaction_is_djangos_to_refuse(alias: str) -> None:
    with transaction.atomic(using=alias):
        Group.objects.using(alias).create(name="bakers")
        with pytest.raises(IntegrityError), transaction.atomic(using=alias, savepoint=False):
            Group.objects.using(alias).create(name="bakers")

        with pytest.raises(TransactionManagementError, match="until the end of the 'atomic' block") as refused:
            publish("too late", "groups", using=alias)

    assert not isinstance(refused.value, OutboxError)
    assert bodies(alias) == []


def test_a_transaction_that_another_missing_table_broke_is_not_blamed_on_the_outbox(alias: str) -> None:
    with transaction.atomic(using=alias):
        with pytest.raises(Exception, match="nowhere"), transaction.mark_for_rollback_on_error(using=alias):
            connections[alias].cursor().execute("SELECT * FROM nowhere")

        with pytest.raises(TransactionManagementError, match="until the end of the 'atomic' block"):
            publish("too late", "groups", using=alias)


def test_on_commit_sees_the_row(alias: str) -> None:
    seen: list[list[Any]] = []

    with transaction.atomic(using=alias):
        transaction.on_commit(lambda: seen.append(bodies(alias)), using=alias)
        publish("first", "groups", using=alias)

    assert seen == [["first"]]


def test_on_commit_is_outside_the_transaction(alias: str) -> None:
    with pytest.raises(NotInTransaction), transaction.atomic(using=alias):
        transaction.on_commit(lambda: publish("late", "groups", using=alias), using=alias)

    assert bodies(alias) == []


# Outside a transaction


def test_outside_a_transaction_a_publish_is_refused_with_the_way_out(alias: str) -> None:
    with queries(alias) as sent, pytest.raises(NotInTransaction) as refused:
        publish("alone", "groups", using=alias)

    assert str(refused.value) == (
        f"publish to 'groups' is outside a transaction on database '{alias}', so it would stay even if what it tells of "
        f"is rolled back; wrap both in \"with transaction.atomic(using='{alias}'):\", or pass standalone=True if that is "
        "what you want"
    )
    assert refused.value.alias == alias
    assert isinstance(refused.value, TransactionManagementError)
    assert isinstance(refused.value, NoTransaction)
    assert len(sent) == 0
    with pytest.raises(NotInTransaction):
        publish_batch("one", "two", queue="groups", using=alias)


def test_a_standalone_message_needs_no_transaction(alias: str) -> None:
    publish("alone", "groups", using=alias, standalone=True)
    publish_batch("two", "three", queue="groups", using=alias, standalone=True)

    assert bodies(alias) == ["alone", "two", "three"]


@pytest.mark.parametrize("how", ["publish", "publish_batch", "publish_sync", "publish_batch_sync"])
def test_a_warning_points_at_the_line_that_publishes(django_databases: object, how: str) -> None:
    with override_settings(OUTBOX={"REQUIRE_TRANSACTION": "warn"}):
        broker = OutboxBroker()
        calls: Mapping[str, Callable[[], object]] = {
            "publish": lambda: publish("loose", "groups"),
            "publish_batch": lambda: publish_batch("loose", queue="groups"),
            "publish_sync": lambda: broker.publish_sync("loose", "groups"),
            "publish_batch_sync": lambda: broker.publish_batch_sync("loose", queue="groups"),
        }
        with pytest.warns(RuntimeWarning, match="outside a transaction") as caught:
            calls[how]()

    (warning,) = caught
    assert (warning.filename, warning.lineno) == (__file__, calls[how].__code__.co_firstlineno)
    assert bodies("default") == ["loose"]


def test_the_policy_may_ignore_it(alias: str) -> None:
    with override_settings(OUTBOX={"REQUIRE_TRANSACTION": "ignore"}):
        publish("loose", "groups", using=alias)

    assert bodies(alias) == ["loose"]


def test_a_transaction_on_another_database_does_not_count(django_databases: object) -> None:
    with transaction.atomic(using="default"), pytest.raises(NotInTransaction) as refused:
        publish("astray", "groups", using="lite")

    assert refused.value.alias == "lite"
    with transaction.atomic(using="lite"), pytest.raises(NotInTransaction):
        publish("astray", "groups", using="default")


# Under Django's own test cases


def results_of(case: type[unittest.TestCase]) -> unittest.TestResult:
    result = unittest.TestResult()
    unittest.defaultTestLoader.loadTestsFromTestCase(case).run(result)
    return result


def test_the_transaction_of_a_test_case_does_not_hide_a_missing_one(alias: str) -> None:
    class Case(TestCase):
        databases = {alias}  # noqa: RUF012  Django's own form

        def test_refused(self) -> None:
            with pytest.raises(NotInTransaction):
                publish("loose", "groups", using=alias)

        def test_accepted(self) -> None:
            with transaction.atomic(using=alias):
                publish("kept", "groups", using=alias)
            assert bodies(alias) == ["kept"]

        def test_rolled_back(self) -> None:
            with rolled_back(alias):
                publish("gone", "groups", using=alias)
            assert bodies(alias) == []

        def test_outside_on_commit(self) -> None:
            with (
                pytest.raises(NotInTransaction),
                self.captureOnCommitCallbacks(using=alias, execute=True),
                transaction.atomic(using=alias),
            ):
                transaction.on_commit(lambda: publish("late", "groups", using=alias), using=alias)

    result = results_of(Case)

    assert (result.testsRun, result.errors, result.failures) == (4, [], [])
    assert bodies(alias) == []


def test_a_transaction_test_case_is_as_production_is(django_databases: object) -> None:
    class Case(TransactionTestCase):
        databases = {"lite"}  # noqa: RUF012  Django's own form

        def test_it(self) -> None:
            with pytest.raises(NotInTransaction):
                publish("loose", "groups", using="lite")
            with transaction.atomic(using="lite"):
                publish("kept", "groups", using="lite")
            assert bodies("lite") == ["kept"]

    result = results_of(Case)

    assert (result.testsRun, result.errors, result.failures) == (1, [], [])


# In requests


def view(request: HttpRequest, status: int) -> HttpResponse:
    Group.objects.create(name=f"group {status}")
    publish(status, "requests")
    if status == 500:
        raise RuntimeError("the view fails")
    return HttpResponse(status=status)


urlpatterns = [path("<int:status>", view)]


@pytest.mark.parametrize("alias", ["default"], indirect=True)
def test_a_request_is_a_transaction_under_atomic_requests(alias: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(connections.settings[alias], "ATOMIC_REQUESTS", True)
    with override_settings(ROOT_URLCONF=__name__, ALLOWED_HOSTS=["testserver"]):
        client = Client(raise_request_exception=False)

        assert client.get("/200").status_code == 200
        assert client.get("/500").status_code == 500

    assert bodies(alias) == [200]
    assert groups(alias) == ["group 200"]


@pytest.mark.parametrize("alias", ["default"], indirect=True)
def test_a_request_without_a_transaction_publishes_nothing(alias: str) -> None:
    with override_settings(ROOT_URLCONF=__name__, ALLOWED_HOSTS=["testserver"]), pytest.raises(NotInTransaction):
        Client().get("/200")

    assert bodies(alias) == []


# Which database


class ReplicaRouter:
    """Reads anywhere, writes to the primary."""

    def db_for_read(self, model: type, **hints: object) -> str:
        return "replica"

    def db_for_write(self, model: type, **hints: object) -> str:
        return "lite" if model is OutboxMessage else "default"


def test_routers_choose_the_writer_never_the_replica(django_databases: Mapping[str, URL]) -> None:
    with (
        added_alias("replica", django_databases["default"]),
        override_settings(DATABASE_ROUTERS=[f"{__name__}.ReplicaRouter"]),
    ):
        with transaction.atomic(using="lite"):
            publish("routed", "groups")
        with transaction.atomic(using="default"), pytest.raises(NotInTransaction) as refused:
            publish("astray", "groups")

    assert refused.value.alias == "lite"
    assert bodies("lite") == ["routed"]


def test_the_settings_choose_before_the_routers(django_databases: object) -> None:
    with override_settings(OUTBOX={"DATABASE": "lite"}), transaction.atomic(using="lite"):
        publish("chosen", "groups")

    assert bodies("lite") == ["chosen"]
    assert bodies("default") == []


def test_an_alias_that_does_not_exist_is_named(django_databases: object) -> None:
    with pytest.raises(WrongDatabase, match=r"there is no database 'elsewhere' .*; known are .*'default', 'lite'"):
        publish("astray", "groups", using="elsewhere")
    with pytest.raises(WrongType, match="using must be the alias of a database, got int"):
        publish("astray", "groups", using=7)  # type: ignore[arg-type]  # the point


def test_a_replica_says_so_on_postgresql(django_databases: Mapping[str, URL]) -> None:
    options = {"options": "-c default_transaction_read_only=on"}
    with (
        added_alias("replica", django_databases["default"], OPTIONS=options),
        transaction.atomic(using="replica"),
        pytest.raises(ReadOnlyDatabase) as refused,
    ):
        publish("astray", "groups", using="replica")

    assert "database 'replica' takes no writes (cannot execute INSERT in a read-only transaction)" in str(refused.value)
    assert "pass using= the alias of the primary" in str(refused.value)


def test_a_file_that_is_read_only_says_so(django_databases: Mapping[str, URL]) -> None:
    url = django_databases["lite"]
    read_only = URL.create("sqlite", database=f"file:{url.database}?mode=ro")
    with (
        added_alias("read_only", read_only, OPTIONS={"uri": True}),
        transaction.atomic(using="read_only"),
        pytest.raises(ReadOnlyDatabase, match="'read_only'"),
    ):
        publish("astray", "groups", using="read_only")


def test_a_database_that_is_not_migrated_says_how(
    django_databases: object, alias: str, database: URL, tmp_path: Path
) -> None:
    empty = database if alias == "default" else URL.create("sqlite", database=str(tmp_path / "empty.db"))
    with (
        added_alias("empty", empty),
        transaction.atomic(using="empty"),
        pytest.raises(SchemaMismatch, match=r"run manage\.py migrate outbox"),
    ):
        publish("early", "groups", using="empty")


# Bad input


@pytest.mark.parametrize(
    ("error", "call"),
    [
        (InvalidMessage, lambda using: publish("x", "", using=using)),
        (InvalidMessage, lambda using: publish("x", "q" * 256, using=using)),
        (WrongType, lambda using: publish("x", None, using=using)),
        (WrongType, lambda using: publish("x", "q", headers=["a"], using=using)),
        (WrongType, lambda using: publish("x", "q", headers={"a": 1}, using=using)),
        (InvalidMessage, lambda using: publish("x", "q", headers={"a b": "c"}, using=using)),
        (CannotEncode, lambda using: publish(object(), "q", using=using)),
        (CannotEncode, lambda using: publish({"when": {1, 2}}, "q", using=using)),
        (CannotEncode, lambda using: publish(float("nan"), "q", using=using)),
        (InvalidMessage, lambda using: publish("x", "q", priority=40_000, using=using)),
        (WrongType, lambda using: publish("x", "q", priority="high", using=using)),
        (InvalidMessage, lambda using: publish("x", "q", activate_at=datetime(2030, 1, 1), using=using)),  # noqa: DTZ001  naive
        (InvalidMessage, lambda using: publish("x", "q", activate_in=timedelta(-1), using=using)),
        (InvalidMessage, lambda using: publish("x", "q", message_id="not a uuid", using=using)),
        (InvalidMessage, lambda using: publish("x", "q", timer_id="t", timer_conflict="both", using=using)),
        (UnknownOption, lambda using: publish("x", "q", prority=1, using=using)),
        (OptionError, lambda using: publish_batch("x", queue="q", timer_id="t", using=using)),
        (OptionError, lambda using: publish_batch("x", queue="q", message_id=MESSAGE_ID, using=using)),
        (CannotEncode, lambda using: publish_batch("x", object(), queue="q", using=using)),
        (InvalidMessage, lambda using: publish_batch(queue="", using=using)),
    ],
)
def test_bad_input_costs_the_transaction_nothing(
    django_databases: object, alias: str, error: type[Exception], call: Callable[[str], object]
) -> None:
    with transaction.atomic(using=alias):
        with queries(alias) as sent, pytest.raises(error):
            call(alias)
        publish("still usable", "q", using=alias)

    assert [query for query in sent.captured_queries if not query["sql"].startswith("BEGIN")] == []
    assert bodies(alias) == ["still usable"]


# What is written


class Kind(Enum):
    LARGE = "large"


class Parcel(BaseModel):
    number: int
    sent: datetime


@dataclass
class Letter:
    number: UUID
    price: Decimal
    kind: Kind


@pytest.mark.parametrize(
    ("body", "payload", "content_type"),
    [
        (b"\x00\xff", b"\x00\xff", None),
        ("grüße %s :name ?", "grüße %s :name ?".encode(), "text/plain"),
        ({"a": [1, None, "%(b)s"]}, b'{"a":[1,null,"%(b)s"]}', "application/json"),
        ([1, 2.5], b"[1,2.5]", "application/json"),
        (None, b"null", "application/json"),
        (
            Parcel(number=1, sent=datetime(2030, 1, 2, tzinfo=UTC)),
            b'{"number":1,"sent":"2030-01-02T00:00:00Z"}',
            "application/json",
        ),
        (
            Letter(MESSAGE_ID, Decimal("1.50"), Kind.LARGE),
            b'{"number":"0192f3a0-0000-7000-8000-000000000001","price":"1.50","kind":"large"}',
            "application/json",
        ),
        (
            {"at": datetime(2030, 1, 2, 3, 4, 5, 6, tzinfo=UTC), "id": MESSAGE_ID, "sum": Decimal("2")},
            b'{"at":"2030-01-02T03:04:05.000006+00:00","id":"0192f3a0-0000-7000-8000-000000000001","sum":"2"}',
            "application/json",
        ),
    ],
    ids=["bytes", "str", "dict", "list", "None", "model", "dataclass", "values"],
)
def test_bodies(alias: str, body: object, payload: bytes, content_type: str | None) -> None:
    publish(body, "q", using=alias, standalone=True)
    publish_batch(body, body, queue="q", using=alias, standalone=True)

    for message in OutboxMessage.objects.using(alias):
        assert bytes(message.payload) == payload
        assert message.headers.get("content-type") == content_type


def test_headers_and_ids(alias: str) -> None:
    publish(
        "x",
        "q",
        using=alias,
        standalone=True,
        headers={"tenant": "a%b:c"},
        correlation_id="trace-1",
        reply_to="answers",
        message_id=MESSAGE_ID,
        key="customer-7",
        priority=-3,
    )

    message = only(alias)
    assert message.headers == {
        "tenant": "a%b:c",
        "content-type": "text/plain",
        "correlation_id": "trace-1",
        "reply_to": "answers",
    }
    assert (message.message_id, message.key, message.priority) == (MESSAGE_ID, "customer-7", -3)
    assert (message.queue, message.timer_id, message.attempts_count, message.acquired_token) == ("q", None, 0, None)


def test_a_message_without_ids_gets_an_ordered_one(alias: str) -> None:
    publish("x", "q", using=alias, standalone=True)

    message = only(alias)
    assert message.message_id.version == 7
    assert message.headers["correlation_id"] == str(message.message_id)


def test_schedules(alias: str) -> None:
    at = datetime(2035, 6, 7, 8, 9, 10, 11, tzinfo=UTC)
    publish("at", "q", using=alias, standalone=True, activate_at=at)
    publish("in", "q", using=alias, standalone=True, activate_in=timedelta(hours=2))
    publish("now", "q", using=alias, standalone=True)

    by_body = {message.body: message for message in OutboxMessage.objects.using(alias)}
    assert by_body["at"].next_attempt_at == at
    assert timedelta(hours=1, minutes=59) < by_body["in"].next_attempt_at - by_body["in"].created_at
    assert abs(by_body["now"].next_attempt_at - datetime.now(UTC)) < timedelta(minutes=1)


def test_a_message_id_is_published_once(alias: str) -> None:
    first = publish("x", "q", using=alias, standalone=True, message_id=MESSAGE_ID)
    second = publish("y", "q", using=alias, standalone=True, message_id=str(MESSAGE_ID))

    assert first is not None
    assert second is None
    assert bodies(alias) == ["x"]


def test_timers_conflict_as_they_are_told(alias: str) -> None:
    def timer(body: str, hours: int, conflict: Any = "ignore") -> int | None:
        return publish(
            body,
            "q",
            using=alias,
            standalone=True,
            timer_id="t",
            timer_conflict=conflict,
            activate_in=timedelta(hours=hours),
        )

    assert timer("first", 2) == only(alias).id
    assert timer("ignored", 3) is None
    assert bodies(alias) == ["first"]
    timer("extends", 3, "extend")
    assert bodies(alias) == ["extends"]
    timer("earlier", 1, "extend")
    assert bodies(alias) == ["extends"]
    timer("replaces", 1, "replace")
    assert bodies(alias) == ["replaces"]


def test_a_publish_is_one_query(alias: str) -> None:
    with transaction.atomic(using=alias):
        publish("warm up", "q", using=alias)
        with queries(alias) as sent:
            publish({"n": 1}, "q", using=alias)

    assert len(sent) == 1
    assert sent[0]["sql"].lstrip().startswith(("INSERT INTO", "WITH"))


def test_a_batch_is_one_query(alias: str) -> None:
    with transaction.atomic(using=alias), queries(alias) as sent:
        row_ids = publish_batch(*range(1_000), queue="q", using=alias, priority=2, headers={"a": "b"})

    assert len([query for query in sent if not query["sql"].startswith("BEGIN")]) == 1
    assert bodies(alias) == list(range(1_000))
    assert row_ids == list(OutboxMessage.objects.using(alias).order_by("id").values_list("id", flat=True))
    assert {(message.priority, message.headers["a"]) for message in OutboxMessage.objects.using(alias)} == {(2, "b")}


def test_an_empty_batch_is_nothing(alias: str) -> None:
    assert publish_batch(queue="q", using=alias) == []


def test_a_batch_is_all_or_nothing(alias: str) -> None:
    with rolled_back(alias):
        publish_batch(1, 2, 3, queue="q", using=alias)
    with pytest.raises(CannotEncode):
        publish_batch(1, object(), queue="q", using=alias, standalone=True)

    assert bodies(alias) == []


def test_a_standalone_batch_of_several_statements_is_all_or_nothing(django_databases: Mapping[str, URL]) -> None:
    full = "CREATE TRIGGER full BEFORE INSERT ON outbox WHEN NEW.payload = x'35353030' BEGIN SELECT RAISE(ABORT, 'full'); END"
    connections["lite"].cursor().execute(full)

    with pytest.raises(IntegrityError, match="full"):
        publish_batch(*range(6_000), queue="q", using="lite", standalone=True)

    assert bodies("lite") == []


# The same envelope


@pytest.mark.parametrize(
    "body",
    [
        {"grüße": [1, 2.5, None], "b": {"c": True}},
        "text",
        b"\x00bytes",
        None,
        Letter(MESSAGE_ID, Decimal(1), Kind.LARGE),
    ],
)
def test_the_envelope_is_sqlalchemys_byte_for_byte(
    django_databases: Mapping[str, URL], alias: str, body: object
) -> None:
    place = Place(django_databases[alias], "psycopg" if alias == "default" else "aiosqlite")
    options: Any = {
        "headers": {"tenant": "grüße", "a": 'quote"'},
        "correlation_id": "trace-1",
        "reply_to": "answers",
        "message_id": MESSAGE_ID,
        "key": "customer-7",
        "priority": 7,
        "timer_id": "t",
        "activate_at": datetime(2035, 6, 7, 8, 9, 10, 11, tzinfo=UTC),
    }

    publish(body, "q", using=alias, standalone=True, **options)
    from_django = stored(alias)
    with place.sync_engine.begin() as connection:
        place.broker().publish_sync(body, "q", session=connection, **options)
    from_sqlalchemy = stored(alias)
    place.sync_engine.dispose()

    assert from_django == from_sqlalchemy


def stored(alias: str) -> dict[str, Any]:
    """The only row, column for column as the database keeps it, without what is new with every row; it is deleted."""
    with connections[alias].cursor() as cursor:
        cursor.execute("SELECT * FROM outbox")
        columns = [column[0] for column in cursor.description if column[0] not in ("id", "created_at")]
        raw = "CAST({0} AS text)" if alias == "default" else "typeof({0}) || ' ' || quote({0})"
        cursor.execute(f"SELECT {', '.join(raw.format(column) for column in columns)} FROM outbox")
        (row,) = cursor.fetchall()
        cursor.execute("DELETE FROM outbox")
    return dict(zip(columns, row, strict=True))


# Without a worker's dependencies


def test_a_web_process_imports_neither_faststream_nor_sqlalchemy(migrated_sqlite: Path, tmp_path: Path) -> None:
    settings = {
        "DATABASES": {"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": str(migrated_sqlite)}},
        "INSTALLED_APPS": ["django.contrib.contenttypes", "django.contrib.auth", "outbox_django"],
        "USE_TZ": True,
    }
    program = f"""
import sys
from django.conf import settings
settings.configure(**{settings!r})
import django
django.setup()
from django.db import transaction
import outbox_django
from outbox_django import publish, publish_batch
with transaction.atomic():
    publish({{"a": 1}}, "q")
    publish_batch(1, 2, queue="q")
    transaction.set_rollback(True)
print(sorted({{name.partition(".")[0] for name in sys.modules}} & {{"faststream", "fast_depends", "sqlalchemy", "pydantic"}}))
"""
    said = subprocess.run([sys.executable, "-W", "error", "-c", program], capture_output=True, text=True, check=False)

    assert (said.stdout, said.stderr) == ("[]\n", "")


# Through the broker


class Stamp(BaseMiddleware):
    async def publish_scope(self, call_next: Any, cmd: PublishCommand) -> Any:
        cmd.headers = {**(cmd.headers or {}), "stamp": "yes"}
        return await call_next(cmd)


class Waits(BaseMiddleware):
    async def publish_scope(self, call_next: Any, cmd: PublishCommand) -> Any:
        import asyncio

        await asyncio.sleep(0)
        return await call_next(cmd)


def test_the_broker_runs_its_middlewares_in_the_callers_transaction(alias: str) -> None:
    broker = OutboxBroker(middlewares=[Stamp])

    with rolled_back(alias):
        broker.publish_sync("gone", "q", using=alias)
    with transaction.atomic(using=alias):
        row_id = broker.publish_sync("one", "q", using=alias, headers={"a": "b"}, priority=4)
        row_ids = broker.publish_batch_sync("two", "three", queue="q", using=alias)

    messages = list(OutboxMessage.objects.using(alias).order_by("id"))
    assert [message.id for message in messages] == [row_id, *row_ids]
    assert [message.body for message in messages] == ["one", "two", "three"]
    assert [message.headers["stamp"] for message in messages] == ["yes", "yes", "yes"]
    assert (messages[0].headers["a"], messages[0].priority) == ("b", 4)


def test_the_broker_asks_for_a_transaction_too(alias: str) -> None:
    broker = OutboxBroker()

    with pytest.raises(NotInTransaction):
        broker.publish_sync("loose", "q", using=alias)
    with pytest.raises(NotInTransaction):
        broker.publish_batch_sync("loose", queue="q", using=alias)
    broker.publish_sync("alone", "q", using=alias, standalone=True)

    assert broker.publish_batch_sync(queue="q", using=alias) == []
    assert bodies(alias) == ["alone"]


def test_the_broker_publishes_to_its_own_database(django_databases: object) -> None:
    broker = OutboxBroker("lite")

    with transaction.atomic(using="default"), pytest.raises(NotInTransaction):
        broker.publish_sync("astray", "q")
    with transaction.atomic(using="lite"):
        broker.publish_sync("home", "q")

    assert bodies("lite") == ["home"]


def test_the_brokers_own_policy_comes_before_the_settings(django_databases: object) -> None:
    OutboxBroker(require_transaction="ignore").publish_sync("loose", "q")

    assert bodies("default") == ["loose"]


def test_a_middleware_that_waits_is_told_to_be_awaited(django_databases: object) -> None:
    with transaction.atomic(), pytest.raises(NotStarted, match=r"await broker\.publish"):
        OutboxBroker(middlewares=[Waits]).publish_sync("x", "q")

    assert bodies("default") == []


# Other ways to connect


def test_server_side_binding_works(django_databases: Mapping[str, URL]) -> None:
    with (
        added_alias("bound", django_databases["default"], OPTIONS={"server_side_binding": True}),
        transaction.atomic(using="bound"),
    ):
        publish({"n": 1}, "q", using="bound", headers={"a": "b"}, key="k", activate_in=timedelta(hours=1))
        publish_batch(1, 2, 3, queue="q", using="bound")
        publish("t", "q", using="bound", timer_id="t", timer_conflict="replace")

    assert bodies("default") == [{"n": 1}, 1, 2, 3, "t"]


def test_debug_mode_logs_the_queries(alias: str) -> None:
    with override_settings(DEBUG=True):
        connections[alias].queries_log.clear()
        publish("50 % of :name", "q", using=alias, standalone=True)
        publish_batch(*range(1_000), queue="q", using=alias, standalone=True)

        assert sum("INSERT INTO" in query["sql"] for query in connections[alias].queries) == 2

    assert len(bodies(alias)) == 1_001


def test_without_time_zones_times_are_still_instants(alias: str) -> None:
    at = datetime(2035, 6, 7, 8, 9, 10, 11, tzinfo=UTC)
    with override_settings(USE_TZ=False, TIME_ZONE="Asia/Kathmandu"):
        publish("x", "q", using=alias, standalone=True, activate_at=at)
        store = publishing_store()
        (row,) = store.run_sync(lambda dialect: [dialect.fetch_unprocessed(None, 10)], alias)[0]
        dialect = store._dialect_of(connections[alias])
        pending = dialect.read_pending(row)
        connections[alias].close()

    assert pending.next_attempt_at == at
    assert abs(pending.created_at - datetime.now(UTC)) < timedelta(minutes=1)
    assert only(alias).next_attempt_at == at


def test_programming_errors_of_others_stay_what_they_are(django_databases: object) -> None:
    execute_on_default = connections["default"].cursor().execute
    execute_on_default(
        "CREATE FUNCTION pg_temp.fails() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN PERFORM 1 / 0; END$$"
    )
    execute_on_default("CREATE TRIGGER fails BEFORE INSERT ON outbox FOR EACH ROW EXECUTE FUNCTION pg_temp.fails()")
    try:
        with pytest.raises(Exception, match="division by zero") as raised, transaction.atomic():
            publish("x", "q")
    finally:
        execute_on_default("DROP TRIGGER fails ON outbox")

    assert not isinstance(raised.value, OutboxError | ProgrammingError)
