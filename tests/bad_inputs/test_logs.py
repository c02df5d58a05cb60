"""What a message says cannot forge a record of a log, nor the text of a dead letter."""

import logging
from collections.abc import Callable

import pytest

from outbox_core.quoting import indent_traceback, one_line, quoted
from outbox_sqlalchemy import NoRetry, OutboxBroker
from tests.bad_inputs.values import Unshowable
from tests.places import Place, running, until

FORGED = "no such order\n2026-11-25 09:00:00 ERROR forged\r\x1b[2J\x85\u2028"
ESCAPED = "no such order\\n2026-11-25 09:00:00 ERROR forged\\r\\x1b[2J\\x85\\u2028"


async def bury(place: Place, broker: OutboxBroker, error: Callable[[], BaseException]) -> str:
    """The text of the one dead letter that a handler has made by raising *error*."""

    @broker.subscriber("orders", retry_strategy=NoRetry())
    async def handle(body: object) -> None:
        raise error()

    async with running(broker):
        await broker.publish(FORGED, "orders")
        await until(lambda: len(place.rows(place.tables.dead_letters)), 1)
    (grave,) = place.rows(place.tables.dead_letters)
    return str(grave.last_exception)


async def test_a_dead_letter_is_one_line(place: Place) -> None:
    assert await bury(place, place.broker(), lambda: ValueError(FORGED)) == f"ValueError: {ESCAPED}"


async def test_what_a_dead_letter_keeps_can_be_less(place: Place) -> None:
    broker = place.broker(last_exception_renderer=lambda error: f"{type(error).__name__}\nredacted")

    assert await bury(place, broker, lambda: ValueError("card 4111 1111 1111 1111")) == "ValueError\\nredacted"


async def test_a_renderer_that_fails_keeps_the_type(place: Place) -> None:
    broker = place.broker(last_exception_renderer=lambda error: 1 / 0)

    assert await bury(place, broker, lambda: ValueError("secret")) == "ValueError, which cannot be shown"


async def test_a_record_about_a_failure_is_one_line(place: Place, caplog: pytest.LogCaptureFixture) -> None:
    logger = logging.getLogger("tests.application")
    with caplog.at_level(logging.DEBUG):
        await bury(place, place.broker(logger=logger), lambda: ValueError(FORGED))

    assert f"ValueError: {ESCAPED}" in [record.message for record in caplog.records if record.name == logger.name]
    ours = [record.message for record in caplog.records if record.name in (logger.name, "outbox")]
    assert [message for message in ours if not message.isprintable()] == []
    assert [message for message in ours if "forged" in message] == [f"ValueError: {ESCAPED}"]


@pytest.mark.parametrize("place", ["aiosqlite"], indirect=True)
async def test_nor_does_the_traceback_of_the_default_logger_begin_one(
    place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    broker = OutboxBroker(place.engine, outbox_table=place.tables)

    await bury(place, broker, lambda: ValueError(FORGED))

    captured = capsys.readouterr()
    lines = (captured.out + captured.err).split("\n")
    assert [line for line in lines if line.startswith("2026-11-25 09:00:00 ERROR forged")] == []
    assert "  2026-11-25 09:00:00 ERROR forged\\r\\x1b[2J\\x85\\u2028" in lines


def record_of(error: BaseException) -> logging.LogRecord:
    try:
        raise error
    except type(error):
        import sys

        return logging.LogRecord("outbox", logging.ERROR, __file__, 1, "failed", (), sys.exc_info())


def test_an_ordinary_traceback_is_left_alone() -> None:
    record = record_of(ValueError("no such order"))

    assert indent_traceback(record)
    assert record.exc_text is None


def test_the_traceback_of_a_cause_counts() -> None:
    error = ValueError("no such order")
    error.__cause__ = ValueError(FORGED)
    record = record_of(error)

    indent_traceback(record)

    assert record.exc_text is not None
    assert all(line.startswith("  ") for line in record.exc_text.split("\n"))


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("orders", "'orders'"),
        ("a\nb", "'a\\nb'"),
        ("\u202e\x9b", "'\\u202e\\x9b'"),
        ("\ud800", "'\\ud800'"),
        ("q" * 1_000, f"'{'q' * 80}'…"),
        (b"\x00" * 1_000, "b'" + "\\x00" * 80 + "'…"),
        (10**5_000, "an int of 16,610 bits"),
        (Unshowable(), "Unshowable, which cannot be shown"),
        (list(range(1_000)), None),
    ],
    ids=range(9),
)
def test_a_value_is_quoted_on_one_short_line(value: object, shown: str | None) -> None:
    quoted_value = quoted(value)

    assert shown is None or quoted_value == shown
    assert len(quoted_value) < 350
    assert quoted_value.isprintable()


@pytest.mark.parametrize("text", ["", "plain", "Ümläut 🚲", "a b"])
def test_what_is_one_line_stays_as_it_is(text: str) -> None:
    assert one_line(text) == text
