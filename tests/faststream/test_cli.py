"""FastStream's command line with our broker: real processes, real signals, real databases."""

import json
import re
import socket
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from signal import SIGINT, SIGTERM, Signals

import httpx
import pytest

from tests.places import Place
from tests.processes import until
from tests.programs import Program, program

APP = """
from faststream import FastStream

from outbox import broker

app = FastStream(broker)
"""

REFUSED = "Error when broker was publishing: "


@pytest.fixture
def shop(place: Place, tmp_path: Path) -> Iterator[Program]:
    """An application on SQLite."""
    with program(tmp_path, place) as shop:
        shop.write("app.py", APP)
        yield shop


@pytest.fixture
def either(both: Place, tmp_path: Path) -> Iterator[Program]:
    """An application on each database in turn."""
    with program(tmp_path, both) as shop:
        shop.write("app.py", APP)
        yield shop


# faststream run


@pytest.mark.parametrize("signal", [SIGTERM, SIGINT])
def test_run_handles_messages_until_a_signal_and_lets_handlers_end(either: Program, signal: Signals) -> None:
    worker = either.start("faststream", "run", "app:app")
    worker.says("FastStream app started successfully")
    either.publish(1, 2, -3)
    until(either.handled, [-3, 1, 2])

    worker.send(signal)
    worker.says("shutting down")
    either.write("gate", "")

    assert worker.ends() == 0
    assert either.handled() == [-3, 1, 2, 3]
    assert either.place.rows() == []
    assert "`Handle` waiting for messages" in worker.log


def test_run_ends_with_an_error_that_says_what_is_wrong_with_the_database(shop: Program) -> None:
    shop.environment["TEST_DSN"] = "postgresql+asyncpg://nobody@127.0.0.1:1/nowhere"

    code, log = shop.run("faststream", "run", "app:app")

    assert code == 1
    assert "DatabaseUnavailable: cannot use postgresql://127.0.0.1:1/nowhere/outbox" in re.sub(r"\s+", " ", log)


def test_run_begins_anew_when_code_changes(shop: Program) -> None:
    worker = shop.start("faststream", "run", "app:app", "--reload")
    worker.says("FastStream app started successfully")  # by then the watcher looks

    shop.write("app.py", f"{APP}\nprint('this is new', flush=True)")
    worker.says("this is new")
    shop.publish(1)
    until(shop.handled, [1])
    worker.send(SIGTERM)

    assert worker.ends() == 0
    assert worker.log.count("shut down gracefully") == 2


# faststream publish


def test_publish_inserts_a_message_and_consumes_nothing(either: Program) -> None:
    either.publish(1)

    assert either.run("faststream", "publish", "app:app", "2", "--queue", "numbers") == (0, "")

    assert [(row.payload, row.deliveries_count) for row in either.place.rows()] == [(b"1", 0), (b"2", 0)]
    assert either.handled() == []


def test_publish_takes_the_options_of_a_publish(shop: Program) -> None:
    before = datetime.now(UTC)

    options = ["--priority", "5", "--key", "7", "--activate-in", "3600.5", "--timer_id", "t", "--correlation_id", "c"]
    assert shop.run("faststream", "publish", "app:app", '{"id": 1}', "--queue", "orders", *options) == (0, "")

    (row,) = shop.place.rows()
    assert (row.queue, row.payload, row.priority, row.key, row.timer_id) == ("orders", b'{"id":1}', 5, "7", "t")
    assert row.headers == {"content-type": "application/json", "correlation_id": "c"}
    assert timedelta(seconds=3_600) < row.next_attempt_at.replace(tzinfo=UTC) - before < timedelta(seconds=3_660)


def test_publish_takes_a_time_with_its_offset(shop: Program) -> None:
    at = (datetime.now(UTC) + timedelta(days=30)).replace(microsecond=0)

    assert shop.run("faststream", "publish", "app:app", "1", "--queue", "orders", "--activate_at", at.isoformat()) == (
        0,
        "",
    )

    assert [row.next_attempt_at.replace(tzinfo=UTC) for row in shop.place.rows()] == [at]


@pytest.mark.parametrize(
    ("options", "error"),
    [
        (["--priority", "high"], "InvalidMessage(\"--priority must be a whole number, got 'high'\")"),
        (["--priority", "99999"], "InvalidMessage('priority must be between -32768 and 32767, got 99999')"),
        (["--activate_in", "soon"], "InvalidMessage(\"--activate_in must be a number of seconds, got 'soon'\")"),
        (["--activate_in", "nan"], "InvalidMessage(\"--activate_in must be a number of seconds, got 'nan'\")"),
        (
            ["--activate_at", "tomorrow"],
            "InvalidMessage(\"--activate_at must be a time such as 2031-07-01T12:30:00+00:00, got 'tomorrow'\")",
        ),
        (
            ["--standalone", "yes"],
            "InvalidMessage(\"--standalone takes no value, got 'yes'; leave it out for no\")",
        ),
        (["--prority", "5"], "UnknownOption(\"publish has no option 'prority'; did you mean 'priority'?\")"),
        (["--key"], "WrongType('key must be a str, got bool')"),
        (["--headers", "a=b"], "WrongType('headers must be a mapping of str to str, got list')"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_publish_says_what_is_wrong_with_an_option(shop: Program, options: list[str], error: str) -> None:
    code, log = shop.run("faststream", "publish", "app:app", "1", "--queue", "orders", *options)

    assert (code, log) == (1, f"{REFUSED}{error}\n")
    assert shop.place.rows() == []


def test_publish_needs_a_word_where_transactions_are_required(shop: Program) -> None:
    shop.environment["TEST_POLICY"] = "error"

    code, log = shop.run("faststream", "publish", "app:app", "1", "--queue", "orders")
    assert code == 1
    assert "NoTransaction(\"publish to 'orders' has no session" in log
    assert shop.place.rows() == []

    assert shop.run("faststream", "publish", "app:app", "1", "--queue", "orders", "--standalone") == (0, "")
    assert len(shop.place.rows()) == 1


def test_publish_refuses_to_wait_for_an_answer(shop: Program) -> None:
    code, log = shop.run("faststream", "publish", "app:app", "1", "--queue", "orders", "--rpc", "--timeout", "3")

    assert code == 1
    assert log.startswith(f"{REFUSED}FeatureNotSupportedException('an outbox has no request()")
    assert "publish with reply_to=… and subscribe to the answers" in log
    assert shop.place.rows() == []


async def test_a_program_that_passes_text_for_a_number_is_refused(shop: Program) -> None:
    shop.write(
        "mistake.py",
        """
import asyncio
import sys

from outbox import broker

try:
    asyncio.run(broker.publish(1, "orders", priority="5"))
except TypeError as error:
    sys.exit(str(error))
""",
    )

    assert shop.run("mistake") == (1, "priority must be an int, got str\n")


# faststream docs


def test_docs_gen_writes_the_document(shop: Program) -> None:
    code, log = shop.run("faststream", "docs", "gen", "app:app")

    assert code == 0, log
    document = json.loads((shop.folder / "asyncapi.json").read_text())
    assert [channel["address"] for channel in document["channels"].values()] == ["numbers"]
    assert str(shop.place.url.database) not in json.dumps(document)


def test_docs_serve_shows_the_document(shop: Program) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    server = shop.start("faststream", "docs", "serve", "app:app", "--host", "127.0.0.1", "--port", port)
    server.says("running on")

    page = httpx.get(f"http://127.0.0.1:{port}/", trust_env=False)

    assert (page.status_code, "AsyncAPI" in page.text) == (200, True)
