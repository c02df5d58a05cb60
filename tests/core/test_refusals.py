"""What a database meant by refusing, read from exceptions as drivers raise them."""

import sqlite3

import psycopg.errors
import pytest

from outbox_core.sql.refusals import first_line, is_login_refused, is_read_only, is_schema_refused, sqlstate


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
