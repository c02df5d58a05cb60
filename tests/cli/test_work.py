"""`outbox work`: a worker process for a broker."""

import signal
import subprocess
from importlib.metadata import entry_points
from pathlib import Path
from uuid import uuid4

import pytest
from sqlalchemy import URL

from outbox_core.cli.main import main
from outbox_core.sql.grants import Roles, grant_statements
from outbox_sqlalchemy.tables import names_of
from tests.cli.conftest import PROJECT, Shop
from tests.databases import execute, with_driver


async def test_it_handles_what_is_due_and_ends(shop: Shop) -> None:
    await shop.place.broker().publish_batch("good", "bad", queue="orders")

    done = shop.run("work", "shop:broker", "--drain")

    assert done.code == 0, done.err
    assert [line for line in done.out.splitlines() if line.startswith("handled")] == ["handled good", "handled bad"]
    assert "stopped after handling 2 messages" in done.out
    assert [row.failure_reason for row in shop.place.rows(shop.place.tables.dead_letters)] == ["retry_terminal"]


def test_a_signal_drains_it(lite_shop: Shop, tmp_path: Path) -> None:
    lite_shop.place.run("INSERT INTO outbox (queue, payload) VALUES ('orders', x'676f6f64')")
    health = tmp_path / "health"
    command = lite_shop.command("work", "shop:broker", "--health-file", str(health))
    with subprocess.Popen(command, **lite_shop.process, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as worker:
        assert worker.stdout is not None
        for line in worker.stdout:
            if line == "handled good\n":
                break
        worker.send_signal(signal.SIGTERM)
        rest = worker.stdout.read()
        assert worker.wait(30) == 0

    assert "SIGTERM: draining; once more to end at once" in rest
    assert lite_shop.place.rows() == []
    assert not health.exists()


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["shop:app"], 2, "'shop:app' is an application or a router with a start-up of its own"),
        (["shop:silent"], 2, "'shop:silent' has no subscribers, so there is nothing to handle"),
        (
            ["shop:number"],
            2,
            "'shop:number' must name an OutboxBroker, or an application or a router with one, got int",
        ),
        (
            ["shop:broker", "--queue", "ordres"],
            2,
            "no subscriber of queue 'ordres'; there are subscribers of ['orders']",
        ),
        (["shop:broker", "--exclude-queue", "orders"], 2, "--queue and --exclude-queue leave nothing to serve"),
        (["shop:broker", "--health-file", "/no/such/folder/file"], 2, "/no/such/folder is no folder that takes files"),
    ],
)
def test_what_is_wrong_is_told_before_anything_is_connected(
    lite_shop: Shop, arguments: list[str], code: int, said: str
) -> None:
    done = lite_shop.run("work", *arguments)

    assert done.code == code
    assert said in done.err
    assert done.err.count("\n") == 1


def test_a_database_that_does_not_answer_ends_it(lite_shop: Shop) -> None:
    (lite_shop.folder / "shop.py").write_text(PROJECT.format(url="postgresql+asyncpg://app@127.0.0.1:1/shop"))

    done = lite_shop.run("work", "shop:broker")

    assert done.code == 69
    assert "cannot use postgresql://127.0.0.1:1/shop/outbox" in done.err


def test_tables_that_do_not_fit_end_it(lite_shop: Shop) -> None:
    lite_shop.place.run("ALTER TABLE outbox_dlq DROP COLUMN worker")

    done = lite_shop.run("work", "shop:broker")

    assert (done.code, done.err.count("\n")) == (78, 1)
    assert "outbox_dlq does not fit this version: column worker is missing, expected varchar" in done.err


@pytest.mark.parametrize(
    "without",
    [
        "SELECT ON outbox",
        "UPDATE ON outbox",
        "UPDATE (held_key) ON outbox",
        "UPDATE (failure_reason) ON outbox",  # which only a message that halts its key needs
        "DELETE ON outbox",
        "INSERT ON outbox_dlq",
        "SELECT ON outbox_queues",
    ],
)
def test_a_role_that_lacks_a_privilege_ends_it(
    shared_database: URL, lite_shop: Shop, driver: str, without: str
) -> None:
    role = f"outbox-worker-{uuid4().hex[:8]}"
    names = names_of(lite_shop.place.tables)
    execute(shared_database, f'CREATE ROLE "{role}" LOGIN')
    try:
        for statement in grant_statements(names, Roles(worker=role)):
            execute(shared_database, statement)
        execute(shared_database, f'REVOKE {without} FROM "{role}"')
        url = with_driver(shared_database.set(username=role), driver)
        (lite_shop.folder / "shop.py").write_text(PROJECT.format(url=url))
        done = lite_shop.run("work", "shop:broker")
    finally:
        execute(shared_database, f'DROP OWNED BY "{role}"; DROP ROLE "{role}"')

    assert done.code == 77
    assert "permission denied for table outbox" in done.err
    assert "outbox ddl --grants prints what each role needs" in done.err


def test_two_subscribers_of_a_queue_are_the_programs_mistake(lite_shop: Shop) -> None:
    with (lite_shop.folder / "shop.py").open("a") as project:
        project.write('\n\n@broker.subscriber("orders")\nasync def again(body: str) -> None: ...\n')

    done = lite_shop.run("work", "shop:broker")

    assert done.code == 1
    assert "queue 'orders' has two subscribers" in done.err


def test_the_console_script_is_the_same_command() -> None:
    (script,) = entry_points(group="console_scripts", name="outbox")

    assert script.load() is main
