"""What a database meant by refusing, read from exceptions as drivers raise them."""

import sqlite3
from pathlib import Path

import psycopg.errors
import pytest

from outbox_core.sql.refusals import (
    first_line,
    is_conflict,
    is_login_refused,
    is_read_only,
    is_schema_refused,
    sqlstate,
)


class Psycopg2Error(Exception):
    """psycopg2 has the code under another name."""

    def __init__(self, code: str | None) -> None:
        super().__init__("no")
        self.pgcode = code


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (psycopg.errors.UndefinedTable("no"), "42P01"),
        (Psycopg2Error("42P01"), "42P01"),
        (Psycopg2Error(None), ""),
        (ValueError("no"), ""),
    ],
)
def test_the_code_of_an_error_is_found_in_every_driver(error: Exception, code: str) -> None:
    assert sqlstate(error) == code


@pytest.mark.parametrize(
    "error",
    [
        psycopg.errors.UndefinedTable('relation "outbox" does not exist'),
        psycopg.errors.UndefinedColumn("no"),
        psycopg.errors.DatatypeMismatch("no"),
        psycopg.errors.InvalidSchemaName("no"),
        sqlite3.OperationalError("no such table: outbox"),
        sqlite3.OperationalError("table outbox has no column named key"),
        sqlite3.OperationalError("no such column: key"),
    ],
    ids=lambda error: f"{type(error).__name__}: {error}",
)
def test_a_table_that_is_not_the_expected_one_is_told(error: Exception) -> None:
    assert is_schema_refused(error)
    assert not is_login_refused(error)
    assert not is_read_only(error)


@pytest.mark.parametrize(
    "error",
    [
        psycopg.errors.InvalidPassword("no"),
        psycopg.errors.InvalidCatalogName('database "x" does not exist'),
        psycopg.errors.TooManyConnections("no"),
        psycopg.errors.CannotConnectNow("no"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_a_refused_login_is_told(error: Exception) -> None:
    assert is_login_refused(error)
    assert not is_schema_refused(error)


@pytest.mark.parametrize(
    "error",
    [
        psycopg.errors.ReadOnlySqlTransaction("cannot execute INSERT in a read-only transaction"),
        sqlite3.OperationalError("attempt to write a readonly database"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_a_database_that_takes_no_writes_is_told(error: Exception) -> None:
    assert is_read_only(error)
    assert not is_schema_refused(error)


@pytest.mark.parametrize(
    "error", [psycopg.errors.UniqueViolation("no"), sqlite3.OperationalError("database is locked")]
)
def test_anything_else_is_neither(error: Exception) -> None:
    assert not is_schema_refused(error)
    assert not is_login_refused(error)
    assert not is_read_only(error)


class WrappedError(Exception):
    """What somebody makes of a driver's error."""


def raised(error: Exception, by: BaseException | None = None, *, denied: bool = False) -> Exception:
    """*error* as it is after it was raised from *by*, or while *by* was handled."""
    error.__cause__ = None if denied else by
    error.__context__ = by
    error.__suppress_context__ = denied
    return error


def busy(path: Path, *, reading_first: bool) -> sqlite3.OperationalError:
    """SQLite's own refusal of a second writer; with *reading_first* it is one that reads an old state."""
    first, second = (sqlite3.connect(path, isolation_level=None, timeout=0) for _ in range(2))
    first.execute("PRAGMA journal_mode = WAL")
    first.execute("CREATE TABLE t (n)")
    if reading_first:
        second.execute("BEGIN")
        second.execute("SELECT * FROM t").fetchall()
        first.execute("INSERT INTO t VALUES (1)")
    else:
        first.execute("BEGIN IMMEDIATE")
    try:
        with pytest.raises(sqlite3.OperationalError) as refused:
            second.execute("INSERT INTO t VALUES (2)")
        return refused.value
    finally:
        first.close()
        second.close()


@pytest.mark.parametrize(
    "error",
    [
        psycopg.errors.SerializationFailure("no"),
        psycopg.errors.DeadlockDetected("no"),
        Psycopg2Error("40001"),
        raised(WrappedError(), psycopg.errors.SerializationFailure("no")),
        raised(WrappedError(), raised(WrappedError(), psycopg.errors.DeadlockDetected("no"))),
        ExceptionGroup("tasks", [ValueError("no"), psycopg.errors.SerializationFailure("no")]),
    ],
    ids=lambda error: type(error).__name__,
)
def test_the_choice_of_one_transaction_among_several_is_told(error: Exception) -> None:
    assert is_conflict(error)


@pytest.mark.parametrize("reading_first", [False, True], ids=["busy", "busy with a snapshot"])
def test_a_second_writer_of_a_file_is_a_conflict(tmp_path: Path, reading_first: bool) -> None:
    error = busy(tmp_path / "file.db", reading_first=reading_first)

    assert is_conflict(error)
    assert is_conflict(raised(WrappedError(), error))


@pytest.mark.parametrize(
    "error",
    [
        psycopg.errors.UniqueViolation("no"),
        psycopg.errors.LockNotAvailable("no"),
        psycopg.errors.InFailedSqlTransaction("no"),
        psycopg.OperationalError("the connection is closed"),
        sqlite3.OperationalError("no such table: t"),
        ValueError("the account is locked"),
        raised(WrappedError(), psycopg.errors.SerializationFailure("no"), denied=True),
    ],
    ids=lambda error: type(error).__name__,
)
def test_what_the_next_run_would_meet_again_is_no_conflict(error: Exception) -> None:
    assert not is_conflict(error)


def test_an_error_that_led_to_itself_is_looked_at_once() -> None:
    error = ValueError("no")
    error.__context__ = raised(WrappedError(), error)

    assert not is_conflict(error)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("\n  no such table\nLINE 1: INSERT\n", "no such table"),
        ("<class 'asyncpg.exceptions.UndefinedTableError'>: relation does not exist", "relation does not exist"),
        ("", "ValueError"),
    ],
)
def test_the_first_line_is_what_the_driver_says(text: str, line: str) -> None:
    assert first_line(ValueError(text)) == line
