"""`manage.py outbox_worker` in processes of its own, with real signals, on real databases."""

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from signal import SIGINT, SIGKILL, SIGTERM, Signals
from time import monotonic

import psutil
import pytest
from django.core.management import CommandError, call_command
from django.db import connections
from django.db.models.functions import Now
from sqlalchemy import URL

from outbox_django.models import OutboxMessage
from tests.databases import execute, postgres_database
from tests.django.conftest import leading, made, ready
from tests.django.sites import ALIAS, Site, database
from tests.processes import Process, until

# What it serves


def test_it_drains_what_is_due_and_says_what_nobody_handles(either: Site) -> None:
    either.orders(1, 2, 3)
    either.publish("mails", {"number": 4}, {"number": 5})
    either.publish("mails", {"number": 6}, activate_in=timedelta(hours=1))
    either.publish("letters", {})

    code, log = either.manage("outbox_worker", "--drain")

    assert code == 0
    assert either.handled() == [1, 2, 3, 4, 5]
    assert sorted(either.messages()) == ["letters", "mails"]
    assert either.leased() == 0
    kind = "postgresql" if either.url.get_backend_name() == "postgresql" else "sqlite3"
    assert re.search(rf"INFO worker on {kind}://\S*/outbox: queues mails, orders; 4 at once\n", log)
    assert "WARNING queue 'letters' has messages and no handler in this project" in log
    assert log.endswith(" INFO stopped after handling 5 messages\n")
    assert "Traceback" not in log


def test_once_is_one_message(lite: Site) -> None:
    lite.orders(1, 2, 3)

    code, _ = lite.manage("outbox_worker", "--once")

    assert (code, lite.handled()) == (0, [1])
    assert (len(lite.messages()), lite.leased()) == (2, 0)


def test_once_does_not_wait_for_one(lite: Site) -> None:
    code, log = lite.manage("outbox_worker", "--once")

    assert code == 0
    assert log.endswith(" INFO stopped after handling 0 messages\n")


def test_it_serves_the_queues_that_it_is_told(lite: Site) -> None:
    lite.orders(1)
    lite.publish("mails", {"number": 2})

    code, log = lite.manage(
        "outbox_worker", "--queue", "mails", "--queue", "orders", "--exclude-queue", "mails", "--drain"
    )

    assert (code, lite.handled(), lite.messages()) == (0, [1], ["mails"])
    assert "queues orders; 4 at once" in log


def test_never_more_handlers_at_once_than_it_is_told(site: Site) -> None:
    site.orders(*range(8), seconds=0.02)
    site.publish("mails", *({"number": number, "seconds": 0.02} for number in range(8, 16)))

    code, log = site.manage("outbox_worker", "--concurrency", "2", "--drain")

    assert (code, site.handled()) == (0, list(range(16)))
    assert max(run.beside for run in site.runs()) == 2
    assert "queues mails, orders; 2 at once" in log


def test_it_works_on_the_database_that_it_is_told(site: Site, site_sqlite: Path, tmp_path: Path) -> None:
    lite = URL.create("sqlite", database=str(shutil.copy(site_sqlite, tmp_path)))
    site.settings["DATABASES"] = {"default": database(lite), "events": database(site.url)}
    site.orders(1)

    code, log = site.manage("outbox_worker", "--database", "events", "--drain")

    assert (code, site.messages()) == (0, [])
    assert "worker on postgresql://" in log
    with leading("lite", lite), connections["lite"].cursor() as cursor:
        cursor.execute("SELECT number, ended FROM shop_run")
        assert cursor.fetchall() == [(1, True)]


# How it stops


@pytest.mark.parametrize("signal", [SIGTERM, SIGINT])
def test_an_idle_worker_ends_at_once(site: Site, signal: Signals) -> None:
    worker = site.worker()

    worker.send(signal)

    assert worker.ends() == 0
    assert f"INFO {signal.name}: draining; once more to end at once\n" in worker.log
    assert "Traceback" not in worker.log


def test_a_busy_worker_finishes_what_it_has_begun_and_gives_the_rest_back(either: Site, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    either.orders(1, 2, 3, gate=str(gate))
    worker = either.worker("--concurrency", "1")
    until(either.begun, [1])

    worker.send(SIGTERM)
    worker.says("SIGTERM: draining")
    until(either.leased, 1)
    gate.touch()

    assert worker.ends() == 0
    assert (either.handled(), len(either.messages()), either.leased()) == ([1], 2, 0)
    assert worker.log.endswith(" INFO stopped after handling 1 messages\n")


@pytest.mark.parametrize(("signals", "code"), [([SIGTERM, SIGTERM], 143), ([SIGTERM, SIGINT], 130)])
def test_a_second_signal_ends_it_at_once(site: Site, tmp_path: Path, signals: list[Signals], code: int) -> None:
    site.orders(1, gate=str(tmp_path / "never"))
    worker = site.worker()
    until(site.begun, [1])

    worker.send(signals[0])
    worker.says("SIGTERM: draining")
    worker.send(signals[1])

    assert worker.ends(patience=10) == code  # before the time that handlers get, which is 20 seconds
    assert f"WARNING {signals[1].name} again: ending at once; what was in hand will be delivered again" in worker.log
    assert site.messages() == ["orders"]


def test_a_handler_that_takes_too_long_is_left_behind_and_its_message_delivered_again(
    site: Site, tmp_path: Path
) -> None:
    gate = tmp_path / "gate"
    site.orders(1, gate=str(gate))
    worker = site.worker("--graceful-timeout", "0.5")
    until(site.begun, [1])

    asked = monotonic()
    worker.send(SIGTERM)

    assert worker.ends() == 3
    assert monotonic() - asked < 8
    assert "WARNING cut 1 handlers; the messages of those that did not finish will be delivered again" in worker.log
    assert site.handled() == []

    gate.touch()
    until(OutboxMessage.objects.using(ALIAS).filter(leased_until__gt=Now()).exists, False)
    assert site.manage("outbox_worker", "--drain")[0] == 0
    assert (site.handled(), site.messages()) == ([1], [])


# Health


def test_the_health_file_tells_whether_it_makes_progress(site: Site, server: URL, tmp_path: Path) -> None:
    file = tmp_path / "healthy"
    worker = site.worker("--health-file", file)
    until(file.exists)
    first = file.stat().st_mtime_ns
    until(lambda: file.stat().st_mtime_ns > first)

    with outage(server, site.url):
        worker.says(f"ERROR the worker makes no progress; {file} is not touched until it does")
        untouched = file.stat().st_mtime_ns
        assert site.manage("outbox_health", "--file", file, "--max-silence", "60")[0] == 1
        assert file.stat().st_mtime_ns == untouched
    until(lambda: file.stat().st_mtime_ns > untouched)

    worker.send(SIGTERM)
    assert worker.ends() == 0
    assert not file.exists()


@contextmanager
def outage(server: URL, url: URL) -> Iterator[None]:
    """Nobody is, or gets, connected meanwhile."""
    execute(server, f'ALTER DATABASE "{url.database}" ALLOW_CONNECTIONS false')
    try:
        execute(server, "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", url.database)
        yield
    finally:
        execute(server, f'ALTER DATABASE "{url.database}" ALLOW_CONNECTIONS true')
        connections[ALIAS].close()


# The settings


def test_handlers_are_found_in_the_module_that_the_settings_name(lite: Site) -> None:
    lite.settings["OUTBOX"] = {"AUTODISCOVER": "consumers"}
    (lite.folder / "shop/outbox.py").rename(lite.folder / "shop/consumers.py")
    lite.write("shop/outbox.py", "raise RuntimeError('nobody imports me')")
    lite.orders(1)

    code, log = lite.manage("outbox_worker", "--drain")

    assert code == 0, log
    assert lite.handled() == [1]


def test_the_workers_own_connections_lead_past_the_pooler(site: Site, tmp_path: Path) -> None:
    there = database(site.url)
    site.settings["DATABASES"] = {
        "default": {**there, "OPTIONS": {"application_name": "pooled"}},
        "direct": {**there, "OPTIONS": {"application_name": "direct"}},
    }
    site.settings["OUTBOX"] = {"LISTEN_DATABASE": "direct"}
    gate = tmp_path / "gate"
    site.orders(1, gate=str(gate))
    worker = site.worker()
    until(site.begun, [1])

    until(lambda: connected(site.url), {"direct": 3, "pooled": 1})

    gate.touch()
    worker.send(SIGTERM)
    assert worker.ends() == 0
    assert site.handled() == [1]


def connected(url: URL) -> dict[object, object]:
    """How many connections of each of the two names there are."""
    rows = execute(
        url,
        """SELECT application_name, count(*)
           FROM pg_stat_activity
           WHERE datname = current_database() AND application_name IN ('direct', 'pooled')
           GROUP BY application_name""",
    )
    return dict(rows)  # type: ignore[arg-type]  # of two columns


def test_handled_messages_are_kept_in_the_archive(either: Site) -> None:
    either.settings["OUTBOX"] = {"ARCHIVE": True}
    either.orders(1, 2)

    code, log = either.manage("outbox_worker", "--drain")

    assert code == 0, log
    assert (either.handled(), either.messages()) == ([1, 2], [])
    with connections[ALIAS].cursor() as cursor:
        cursor.execute("SELECT queue FROM outbox_archive")
        assert cursor.fetchall() == [("orders",), ("orders",)]


def test_the_tables_may_have_a_name_and_a_schema_of_their_own(server: URL, tmp_path: Path) -> None:
    with postgres_database(server) as url, ready(tmp_path, url) as site:
        execute(url, "CREATE SCHEMA events")
        site.settings["OUTBOX"] = {"SCHEMA": "events", "TABLE": "letters"}
        made(site)
        program = """
from django.db import transaction
from outbox_django import publish
with transaction.atomic():
    publish({"number": 1}, "orders")
    publish({"number": 2}, "nobody's")
"""
        code, log = site.manage("shell", "--no-startup", "-c", program)
        assert code == 0, log
        assert execute(url, "SELECT queue FROM events.letters ORDER BY id") == [("orders",), ("nobody's",)]

        code, log = site.manage("outbox_worker", "--drain")

        assert code == 0, log
        assert site.handled() == [1]
        assert execute(url, "SELECT queue FROM events.letters") == [("nobody's",)]


# Several processes


def test_several_processes_drain_together(site: Site) -> None:
    site.orders(*range(20))

    code, log = site.manage("outbox_worker", "--processes", "2", "--drain")

    assert code == 0, log
    assert (site.handled(), site.messages()) == (list(range(20)), [])
    assert log.count("INFO stopped after ") == 2
    assert "Traceback" not in log


def test_several_processes_share_the_work_and_a_killed_one_is_replaced(site: Site, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    parent = site.start("outbox_worker", "--processes", "2", "--concurrency", "1")
    parent.says("worker on ", times=2)
    site.orders(1, 2, gate=str(gate))
    until(site.begun, [1, 2])
    assert {run.process for run in site.runs()} == set(parent.children())

    victim = next(run.process for run in site.runs() if run.number == 1)
    os.kill(victim, SIGKILL)
    parent.says(f"worker process {victim} was killed by signal 9; starting another")
    parent.says("worker on ", times=3)
    assert len(parent.children()) == 2
    assert victim not in parent.children()

    gate.touch()
    until(site.handled, [1, 2])
    parent.send(SIGTERM)
    assert parent.ends() == 0
    assert site.messages() == []
    assert parent.log.count("INFO stopped after ") == 2
    assert "Traceback" not in parent.log


def test_a_process_whose_loop_is_stuck_says_why_ends_and_is_replaced(site: Site, tmp_path: Path) -> None:
    parent = site.start("outbox_worker", "--processes", "2", "--stuck-timeout", "1")
    parent.says("worker on ", times=2)
    site.publish("mails", {"number": 1, "blocks_once": str(tmp_path / "blocked")})

    parent.says("was stuck, and ended with exit code 70; starting another")
    parent.says("worker on ", times=3)
    until(site.handled, [1])

    assert "time.sleep(3_600)" in parent.log
    assert " in 'mails', to be delivered again" in parent.log
    parent.send(SIGTERM)
    assert parent.ends() == 0


def test_all_processes_drain_when_the_parent_is_told_to_stop(site: Site, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    parent = busy_family(site, gate)

    parent.send(SIGINT)
    parent.says("SIGINT: draining", times=2)
    gate.touch()

    assert parent.ends() == 0
    assert (site.handled(), len(site.messages()), site.leased()) == ([1, 2], 1, 0)


def test_the_processes_of_a_dead_parent_drain_and_end(site: Site, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    parent = busy_family(site, gate)
    children = parent.children()

    parent.send(SIGKILL)
    assert parent.ends() == -SIGKILL
    until(lambda: parent.log.count("the parent process is gone; draining"), 2)
    gate.touch()

    until(lambda: [child for child in children if lives(child)], [])
    assert (site.handled(), len(site.messages()), site.leased()) == ([1, 2], 1, 0)


def lives(pid: int) -> bool:
    """Whether the process runs; one that nobody has waited for does not."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def busy_family(site: Site, gate: Path) -> Process:
    """Two processes, each with one handler that waits, and a message that has not begun."""
    parent = site.start("outbox_worker", "--processes", "2", "--concurrency", "1")
    parent.says("worker on ", times=2)
    site.orders(1, 2, gate=str(gate))
    until(site.begun, [1, 2])
    site.orders(3)
    return parent


def test_processes_that_have_not_started_yet_end_as_well(lite: Site) -> None:
    lite.orders(1)
    parent = lite.start("outbox_worker", "--processes", "2", "--queue", "mails")
    until(lambda: len(parent.children()), 2)

    parent.send(SIGTERM)

    assert parent.ends() == 0
    assert (lite.messages(), lite.leased()) == (["orders"], 0)


def test_processes_that_cannot_start_end_the_parent(lite: Site) -> None:
    code, log = lite.manage("outbox_worker", "--processes", "2", "--queue", "ordres")

    assert code == 2
    assert "CommandError: no subscriber of queue 'ordres'; there are subscribers of ['mails', 'orders']\n" in log
    assert "Traceback" not in log


# Reloading


def test_changed_code_takes_over_when_running_handlers_have_finished(site: Site, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    handlers = (site.folder / "shop/outbox.py").read_text()
    site.orders(1, gate=str(gate))
    worker = site.worker("--reload")
    until(site.begun, [1])

    changed = handlers.replace('number=order["number"]', 'number=order["number"] + 100')
    site.save("shop/outbox.py", changed, lambda: "shop/outbox.py has changed: draining, to start anew" in worker.log)
    assert site.handled() == []
    gate.touch()
    until(site.handled, [1])
    site.orders(2)

    until(site.handled, [1, 102])
    until(site.messages, [])


def test_code_that_cannot_be_imported_is_waited_for(site: Site) -> None:
    handlers = (site.folder / "shop/outbox.py").read_text()
    site.write("shop/outbox.py", "raise RuntimeError('half-way')")
    worker = site.start("outbox_worker", "--reload")
    worker.says("cannot import the handlers in shop.outbox: RuntimeError: half-way; ")
    site.orders(1)

    site.save("shop/outbox.py", handlers, lambda: "worker on " in worker.log)

    until(site.handled, [1])


# Logs


def test_the_projects_own_logging_is_left_alone(lite: Site) -> None:
    lite.settings["LOGGING"] = {
        "version": 1,
        "formatters": {"own": {"format": "OWN %(name)s %(message)s"}},
        "handlers": {"own": {"class": "logging.StreamHandler", "formatter": "own"}},
        "loggers": {"outbox": {"handlers": ["own"], "level": "INFO"}},
    }

    code, log = lite.manage("outbox_worker", "--drain")

    assert code == 0
    assert all(line.startswith("OWN outbox") for line in log.splitlines())
    assert log.endswith("OWN outbox stopped after handling 0 messages\n")


def test_it_can_be_quiet(lite: Site) -> None:
    assert lite.manage("outbox_worker", "--drain", "--verbosity", "0") == (0, "")


# Bad input

TWO_HANDLERS = """
from outbox_django import broker

@broker.subscriber("orders")
def one(order: dict) -> None: ...

@broker.subscriber("orders")
def other(order: dict) -> None: ...
"""


@pytest.mark.parametrize(
    ("handlers", "outbox", "arguments", "code", "line"),
    [
        (
            None,
            {},
            ["--database", "evnets"],
            2,
            "there is no database 'evnets' in settings.DATABASES; known are 'default'",
        ),
        (None, {"DATABASE": "evnets"}, [], 1, "OUTBOX[\"DATABASE\"] names the database 'evnets', which settings."),
        (
            None,
            {},
            ["--queue", "ordres"],
            2,
            "no subscriber of queue 'ordres'; there are subscribers of ['mails', 'orders']",
        ),
        (None, {}, ["--exclude-queue", "mails,orders"], 2, "--queue and --exclude-queue leave nothing to serve"),
        (None, {}, ["--health-file", "/no/such/folder/file"], 2, "/no/such/folder is no folder that takes files"),
        ("", {}, [], 1, "there are no handlers; write them in a module 'outbox' of an installed app, with "),
        ("1 / 0", {}, [], 1, "cannot import the handlers in shop.outbox: ZeroDivisionError: division by zero"),
        (TWO_HANDLERS, {}, [], 1, "queue 'orders' has two subscribers"),
        (
            None,
            {"BROKER": "shop.nowhere.broker"},
            [],
            1,
            "OUTBOX[\"BROKER\"] names 'shop.nowhere.broker', which cannot be",
        ),
        (None, {"BROKER": "shop.models.Run"}, [], 1, 'OUTBOX["BROKER"] must name an outbox_django.OutboxBroker'),
    ],
)
def test_what_is_wrong_is_told_in_one_line_and_nothing_is_lost(
    lite: Site, handlers: str | None, outbox: dict[str, object], arguments: list[str], code: int, line: str
) -> None:
    lite.orders(1, 2)
    lite.settings["OUTBOX"] = outbox
    if handlers is not None:
        lite.write("shop/outbox.py", handlers)

    ended, log = lite.manage("outbox_worker", *arguments)

    assert ended == code, log
    assert line in log
    assert "Traceback" not in log
    assert (lite.messages(), lite.leased()) == (["orders", "orders"], 0)


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--drain", "--once"], "--drain and --once exclude each other"),
        (["--reload", "--drain"], "--reload and --drain exclude each other"),
        (["--processes", "2", "--reload"], "--reload is for one process, got --processes"),
        (["--processes", "2", "--health-file", "x"], "--health-file is for one process, got --processes"),
        (["--concurrency", "0"], "argument --concurrency: must be a number between 1 and 1,000, got '0'"),
        (["--processes", "many"], "argument --processes: must be a number between 1 and 1,000, got 'many'"),
        (["--stuck-timeout", "0.5"], "must be a number of seconds >= 1, or 0 for never, got '0.5'"),
        (["--graceful-timeout", "-1"], "argument --graceful-timeout: must be a number of seconds >= 0, got '-1'"),
    ],
)
def test_arguments_that_cannot_be_meant_are_refused(arguments: list[str], line: str) -> None:
    with pytest.raises(CommandError) as raised:
        call_command("outbox_worker", *arguments)

    assert line in str(raised.value)


def test_an_unknown_setting_is_named(lite: Site) -> None:
    lite.settings["OUTBOX"] = {"CONCURENCY": 8}

    code, log = lite.manage("check")

    assert code == 1
    assert log.endswith(
        "InvalidSettings: settings.OUTBOX has an unknown key 'CONCURENCY'; did you mean 'CONCURRENCY'?\n"
    )


def test_a_database_without_tables_is_told_with_the_way_out(lite: Site, tmp_path: Path) -> None:
    lite.settings["DATABASES"] = {"default": database(URL.create("sqlite", database=str(tmp_path / "empty.db")))}

    code, log = lite.manage("outbox_worker")

    assert code == 78
    assert log.splitlines()[-1] == (
        "CommandError: outbox does not fit this version: table outbox does not exist; "
        "run manage.py migrate outbox, then manage.py check --database default"
    )


def test_tables_of_another_shape_are_told_with_the_way_out(lite: Site) -> None:
    lite.orders(1)
    with connections[ALIAS].cursor() as cursor:
        cursor.execute("ALTER TABLE outbox DROP COLUMN last_exception")

    code, log = lite.manage("outbox_worker")

    assert code == 78
    assert log.splitlines()[-1] == (
        "CommandError: outbox does not fit this version: column last_exception is missing, expected text; "
        "run manage.py migrate outbox, then manage.py check --database default"
    )
    with connections[ALIAS].cursor() as cursor:
        cursor.execute("SELECT count(*), count(leased_until) FROM outbox")
        assert cursor.fetchall() == [(1, 0)]


@pytest.mark.parametrize(
    "gone",
    [
        URL.create("postgresql", username="nobody", host="127.0.0.1", port=1, database="nowhere"),
        URL.create("sqlite", database="/no/such/folder/outbox.db"),
    ],
    ids=["postgresql", "sqlite"],
)
def test_a_database_that_does_not_answer_is_told_in_one_line(lite: Site, gone: URL) -> None:
    lite.settings["DATABASES"] = {"default": database(gone)}

    # Django 6's own checks open SQLite's file for a look at every JSONField, and do not expect that to fail.
    code, log = lite.manage("outbox_worker", "--skip-checks")

    assert code == 69
    assert re.fullmatch(
        r"CommandError: cannot use .*; check that it runs and that this process may connect", log.splitlines()[-1]
    )
    assert "Traceback" not in log


def test_neither_a_web_process_nor_the_other_commands_import_faststream(lite: Site) -> None:
    program = """
import sys
import outbox_django.publishing
from django.core.management import call_command
for command in ("check", "outbox_stats", "outbox_redrive", "outbox_health"):
    call_command(command)
assert not {"faststream", "sqlalchemy"} & {*sys.modules}
"""
    code, log = lite.manage("shell", "--no-startup", "-c", program)

    assert code == 0, log
