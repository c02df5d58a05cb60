"""What an operator types: stats, list, show, redrive, purge, pause, resume, health."""

import json
import os
from collections.abc import Mapping
from datetime import timedelta
from io import StringIO
from pathlib import Path
from time import time
from uuid import UUID

import pytest
from django.core.management import CommandError, call_command
from django.db import connections
from django.test import override_settings
from django.utils import timezone
from sqlalchemy import URL

from outbox_core.waiting import drive
from outbox_django import publish, publish_batch
from outbox_django.models import DeadLetter, OutboxMessage, QueueControl
from outbox_django.store import DirectStore
from tests.django.conftest import leading

ONE = UUID("0197a3c0-0000-7000-8000-000000000001")

COMMANDS = {
    "outbox_stats": [],
    "outbox_list": [],
    "outbox_show": ["1"],
    "outbox_redrive": [],
    "outbox_purge": ["--older-than", "1d"],
    "outbox_pause": ["orders"],
    "outbox_resume": ["orders"],
    "outbox_health": ["--max-dead", "0"],
}


def said(command: str, *arguments: object, alias: str | None = None) -> str:
    """What it writes to standard output."""
    out = StringIO()
    database = () if alias is None else ("--database", alias)
    call_command(command, *map(str, arguments), *database, stdout=out)
    return out.getvalue()


def refused(command: str, *arguments: object, alias: str | None = None) -> CommandError:
    with pytest.raises(CommandError) as raised:
        said(command, *arguments, alias=alias)
    return raised.value


def bury(alias: str, number: int = 1, *, queue: str = "orders", reason: str = "rejected", days: float = 0) -> list[int]:
    """Dead letters that failed so many days ago; their ids."""
    failed_at = timezone.now() - timedelta(days=days)
    return [
        DeadLetter.objects.using(alias)
        .create(queue=queue, payload=b"{}", failure_reason=reason, failed_at=failed_at, attempts_count=5)
        .id
        for _ in range(number)
    ]


def dead(alias: str) -> int:
    return DeadLetter.objects.using(alias).count()


def live(alias: str) -> list[str]:
    return list(OutboxMessage.objects.using(alias).order_by("id").values_list("queue", flat=True))


# All of them


@pytest.mark.parametrize("command", COMMANDS)
def test_an_alias_that_does_not_exist_is_a_usage_error(django_databases: object, command: str) -> None:
    error = refused(command, *COMMANDS[command], alias="evnets")

    assert str(error) == "there is no database 'evnets' in settings.DATABASES; known are 'default', 'lite'"
    assert error.returncode == 2


@pytest.mark.parametrize("command", COMMANDS)
def test_without_an_alias_the_settings_say_where(django_databases: object, command: str) -> None:
    publish({}, "mails", using="lite", standalone=True)
    connections["default"].close()
    with override_settings(OUTBOX={"DATABASE": "lite"}):
        said(command, *COMMANDS[command])

    assert connections["default"].connection is None


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize(
    "url",
    [
        URL.create("postgresql", username="nobody", host="127.0.0.1", port=1, database="nowhere"),
        URL.create("sqlite", database="/no/such/folder/outbox.db"),
    ],
    ids=["postgresql", "sqlite"],
)
def test_a_database_that_does_not_answer_is_told_in_one_line(django_databases: object, url: URL, command: str) -> None:
    with leading("gone", url):
        error = refused(command, *COMMANDS[command], alias="gone")

    assert error.returncode == (1 if command == "outbox_health" else 69)
    assert str(error).startswith("cannot use ")
    assert str(error).endswith("; check that it runs and that this process may connect")
    assert "\n" not in str(error)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_database_that_is_not_migrated_is_told_with_the_way_out(
    django_databases: object, command: str, tmp_path: Path
) -> None:
    with leading("fresh", URL.create("sqlite", database=str(tmp_path / "fresh.db"))):
        error = refused(command, *COMMANDS[command], alias="fresh")

    assert error.returncode == (1 if command == "outbox_health" else 78)
    assert "run manage.py migrate outbox --database fresh, then manage.py check --database fresh" in str(error)
    assert "\n" not in str(error)


def test_what_the_database_forbids_is_told_in_one_line(django_databases: object) -> None:
    with connections["default"].cursor() as cursor:
        cursor.execute("SET default_transaction_read_only = on")

    error = refused("outbox_pause", "orders")

    assert error.returncode == 1
    assert str(error).startswith(
        "database 'default' takes no writes (cannot execute INSERT in a read-only transaction)"
    )


# Stats


def test_stats_are_a_table_for_people(alias: str) -> None:
    publish_batch(*range(1_234), queue="mails", using=alias, standalone=True)
    publish({}, "orders", activate_in=timedelta(hours=1), using=alias, standalone=True)
    OutboxMessage.objects.using(alias).filter(queue="mails").update(
        next_attempt_at=timezone.now() - timedelta(minutes=5, seconds=1)
    )
    bury(alias, 2)
    said("outbox_pause", "orders", alias=alias)

    assert said("outbox_stats", alias=alias) == (
        "queue   ready  scheduled  leased  blocked keys  dead  oldest\n"
        "mails   1,234          0       0             0     0   5 min\n"
        "orders      0          1       0             0     2       -  paused\n"
        "total   1,234          1       0             0     2   5 min\n"
    )


def test_stats_of_one_queue_need_no_total(alias: str) -> None:
    bury(alias, 3)

    assert said("outbox_stats", alias=alias) == (
        "queue   ready  scheduled  leased  blocked keys  dead  oldest\n"
        "orders      0          0       0             0     3       -\n"
    )


def test_stats_show_blocked_keys(alias: str) -> None:
    for key in ("a", "a", "b", "b", "c"):
        publish({}, "orders", key=key, using=alias, standalone=True)
    OutboxMessage.objects.using(alias).filter(key="a").update(
        attempts_count=1, next_attempt_at=timezone.now() + timedelta(hours=1)
    )

    assert said("outbox_stats", alias=alias).splitlines()[1].split() == ["orders", "3", "2", "0", "1", "0", "0", "s"]


def test_stats_of_nothing_say_so(django_databases: Mapping[str, URL]) -> None:
    assert said("outbox_stats", alias="lite") == f"sqlite3:///{django_databases['lite'].database}/outbox is empty\n"


def test_stats_are_json_for_machines(alias: str) -> None:
    publish({}, "orders", using=alias, standalone=True)

    stats = json.loads(said("outbox_stats", "--json", alias=alias))

    assert stats["outbox"] == DirectStore(alias).name
    age = stats["queues"]["orders"].pop("oldest_age")
    assert 0 <= age < 60
    assert stats["queues"] == {
        "orders": {
            "queue": "orders",
            "ready": 1,
            "scheduled": 0,
            "leased": 0,
            "blocked_keys": 0,
            "dead": 0,
            "paused": False,
        }
    }
    assert json.loads(said("outbox_stats", "--json", alias="lite" if alias == "default" else "default"))["queues"] == {}


# List and show


def test_a_list_shows_no_bodies(alias: str) -> None:
    publish({"card": "4111"}, "orders", using=alias, standalone=True, message_id=ONE)

    said_then = said("outbox_list", alias=alias)
    assert said_then.splitlines()[0].split() == [
        "id",
        "queue",
        "key",
        "state",
        "due",
        "attempts",
        "deliveries",
        "message",
        "id",
    ]
    assert said_then.splitlines()[1].split()[1:4] == ["orders", "-", "waiting"]
    assert "4111" not in said_then + said("outbox_list", "--json", alias=alias)


def test_dead_letters_are_listed_on_request(alias: str) -> None:
    (id,) = bury(alias, 1)

    assert said("outbox_list", alias=alias) == "no messages\n"
    assert [letter["id"] for letter in json.loads(said("outbox_list", "--dead", "--json", alias=alias))] == [id]


def test_a_message_is_shown_with_its_body(alias: str) -> None:
    publish({"card": "4111"}, "orders", using=alias, standalone=True, message_id=ONE)

    assert '{"card": "4111"}' in said("outbox_show", ONE, alias=alias).replace(" ", "").replace('":"', '": "')


def test_a_message_that_is_not_there_is_told(django_databases: object) -> None:
    error = refused("outbox_show", 4711, alias="lite")

    assert str(error).startswith("there is no message 4711 in ")
    assert error.returncode == 1


# Redrive


def test_redrive_puts_all_back_with_fresh_counters(alias: str) -> None:
    bury(alias, 2)
    bury(alias, 1, queue="mails")
    ids = set(DeadLetter.objects.using(alias).values_list("message_id", flat=True))

    assert said("outbox_redrive", alias=alias) == "3 dead letters put back\n"

    assert dead(alias) == 0
    assert live(alias) == ["orders", "orders", "mails"]
    rows = OutboxMessage.objects.using(alias)
    assert set(rows.values_list("message_id", flat=True)) == ids
    assert set(rows.values_list("attempts_count", flat=True)) == {0}


def test_redrive_takes_filters_together(alias: str) -> None:
    first, second, third = bury(alias, 3, reason="rejected")
    bury(alias, 1, reason="undecodable")
    bury(alias, 1, queue="mails", reason="rejected")
    filters = ["--queue", "orders", "--reason", "rejected", "--id", first, "--id", third]

    assert (
        said("outbox_redrive", *filters, "--limit", 1, "--dry-run", alias=alias) == "1 dead letter would be put back\n"
    )
    assert said("outbox_redrive", *filters, "--dry-run", alias=alias) == "2 dead letters would be put back\n"
    assert (dead(alias), live(alias)) == (5, [])

    assert said("outbox_redrive", *filters, alias=alias) == "2 dead letters put back\n"

    assert live(alias) == ["orders", "orders"]
    assert DeadLetter.objects.using(alias).filter(id=second).exists()


def test_redrive_of_nothing_says_so(alias: str) -> None:
    assert said("outbox_redrive", "--queue", "nobody", alias=alias) == "0 dead letters put back\n"


# Purge


def test_purge_deletes_what_is_older(alias: str) -> None:
    bury(alias, 2, days=31)
    bury(alias, 1, queue="mails", days=31)
    bury(alias, 1, days=29)

    assert said("outbox_purge", "--older-than", "30d", "--queue", "orders", alias=alias) == "2 dead letters deleted\n"
    assert dead(alias) == 2
    assert said("outbox_purge", "--older-than", "30d", alias=alias) == "1 dead letter deleted\n"
    assert said("outbox_purge", "--older-than", "0", alias=alias) == "1 dead letter deleted\n"


@pytest.mark.parametrize(
    ("limit", "deleted"), [([], 7), (["--limit", "3"], 3), (["--limit", "5"], 5), (["--limit", "100"], 7)]
)
def test_purge_works_in_batches(alias: str, limit: list[str], deleted: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("outbox_core.cli.operations.PURGED_AT_ONCE", 2)
    bury(alias, 7, days=1)

    assert said("outbox_purge", "--older-than", "1h", *limit, alias=alias) == f"{deleted} dead letters deleted\n"
    assert dead(alias) == 7 - deleted


@pytest.mark.parametrize(
    ("span", "days"),
    [("2w", 14), ("30d", 30), ("12h", 0.5), ("45m", 45 / 1440), ("90s", 90 / 86_400), ("90", 90 / 86_400)],
)
def test_purge_understands_spans(django_databases: object, span: str, days: float) -> None:
    bury("lite", 1, days=days * 1.1)
    bury("lite", 1, days=days * 0.9)

    assert said("outbox_purge", "--older-than", span, alias="lite") == "1 dead letter deleted\n"


@pytest.mark.parametrize("span", ["", "d", "-1d", "3x", "1d12h", "9999999999w", "nan"])
def test_purge_refuses_what_is_no_span(django_databases: object, span: str) -> None:
    bury("lite", 1, days=99)

    error = refused("outbox_purge", f"--older-than={span}", alias="lite")

    assert "argument --older-than: must be " in str(error)
    assert dead("lite") == 1


def test_purge_asks_how_old(django_databases: object) -> None:
    bury("lite", 1, days=99)

    error = refused("outbox_purge", alias="lite")

    assert str(error) == (
        'dead letters are kept for ever; set OUTBOX["DEAD_LETTER_RETENTION"], or say how old with --older-than'
    )
    assert error.returncode == 2
    assert dead("lite") == 1


def test_purge_takes_the_age_of_the_settings(alias: str) -> None:
    bury(alias, 2, days=31)
    bury(alias, 1, days=29)

    with override_settings(OUTBOX={"DEAD_LETTER_RETENTION": timedelta(days=30)}):
        assert said("outbox_purge", alias=alias) == "2 dead letters deleted\n"


# Pause


def test_a_pause_lasts_until_it_is_resumed(alias: str) -> None:
    assert said("outbox_pause", "orders", "mails", alias=alias) == "orders is paused\nmails is paused\n"
    assert drive(DirectStore(alias).stats())["orders"].paused

    assert said("outbox_resume", "orders", alias=alias) == "orders goes on\n"

    paused = QueueControl.objects.using(alias).filter(paused_at__isnull=False)
    assert [control.queue for control in paused] == ["mails"]


def test_a_list_of_queues_in_one_argument_is_refused(django_databases: object) -> None:
    assert "must be one queue, got 'orders,mails'" in str(refused("outbox_pause", "orders,mails", alias="lite"))


@pytest.mark.parametrize("command", ["outbox_pause", "outbox_resume"])
def test_a_name_that_no_queue_can_have_is_refused(django_databases: object, command: str) -> None:
    assert "must be at most 255 characters" in str(refused(command, "x" * 256, alias="lite"))
    assert not QueueControl.objects.using("lite").exists()


# Health


def test_an_idle_outbox_is_well(alias: str) -> None:
    assert said("outbox_health", "--max-age", 0, "--max-dead", 0, alias=alias) == f"{DirectStore(alias).name} is well\n"


def test_a_message_that_waits_too_long_is_not(alias: str) -> None:
    publish({}, "orders", using=alias, standalone=True)
    publish({}, "mails", activate_in=timedelta(days=1), using=alias, standalone=True)
    OutboxMessage.objects.using(alias).filter(queue="orders").update(
        next_attempt_at=timezone.now() - timedelta(seconds=61)
    )

    assert said("outbox_health", "--max-age", 600, alias=alias)
    error = refused("outbox_health", "--max-age", 60, alias=alias)
    assert error.returncode == 1
    assert str(error) in [f"a message in 'orders' has been ready for {age} s, limit 60" for age in range(61, 70)]

    said("outbox_pause", "orders", alias=alias)
    assert said("outbox_health", "--max-age", 60, alias=alias)


def test_too_many_dead_letters_are_not_well(alias: str) -> None:
    bury(alias, 2)
    bury(alias, 1, queue="mails")

    assert said("outbox_health", "--max-dead", 3, alias=alias)
    error = refused("outbox_health", "--max-dead", 2, alias=alias)
    assert (str(error), error.returncode) == ("3 dead letters, limit 2", 1)


def test_a_table_that_does_not_fit_is_not_well(django_databases: object) -> None:
    with connections["lite"].cursor() as cursor:
        cursor.execute("DROP INDEX outbox_ready_idx")
    assert said("outbox_health", alias="lite")

    with connections["lite"].cursor() as cursor:
        cursor.execute("ALTER TABLE outbox_dlq DROP COLUMN worker")
    error = refused("outbox_health", alias="lite")

    assert str(error) == (
        "outbox_dlq does not fit this version: column worker is missing, expected varchar; "
        "run manage.py migrate outbox --database lite, then manage.py check --database lite"
    )


def test_a_worker_shows_that_it_is_well_by_its_file(django_databases: object, tmp_path: Path) -> None:
    file = tmp_path / "worker"
    file.touch()
    assert said("outbox_health", "--file", file, alias="lite")

    os.utime(file, (time() - 60, time() - 60))
    error = refused("outbox_health", "--file", file, alias="lite")
    assert (error.returncode, str(error)) == (
        1,
        f"{file} was touched 60 s ago, limit 15; the worker makes no progress, or was killed",
    )
    assert said("outbox_health", "--file", file, "--max-silence", 90, alias="lite")

    file.unlink()
    assert str(refused("outbox_health", "--file", file, alias="lite")) == (
        f"{file} does not exist; the worker that should touch it has not started, or has ended"
    )


def test_all_that_is_wrong_is_told_at_once(alias: str, tmp_path: Path) -> None:
    bury(alias, 1)

    error = refused("outbox_health", "--file", tmp_path / "worker", "--max-dead", 0, alias=alias)

    assert "does not exist; " in str(error)
    assert str(error).endswith("; 1 dead letter, limit 0")


def test_a_limit_for_a_file_needs_the_file(django_databases: object) -> None:
    assert refused("outbox_health", "--max-silence", 5, alias="lite").returncode == 2
