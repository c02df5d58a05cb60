"""Why a database refused a statement or a login, read from a driver's own exception: asyncpg's, psycopg's, sqlite3's."""

import re

# PostgreSQL's "undefined table", "undefined column", "datatype mismatch" and "invalid schema name"; SQLite says it in words.
_SCHEMA_STATES = {"42P01", "42703", "42804", "3F000"}
_SCHEMA_WORDS = ("no such table", "has no column named", "no such column", "does not exist", "datatype mismatch")
_LOGIN_STATES = ("28", "3D", "53", "57P")  # no such login, no such database, too many connections, shutting down
_ABORTED_STATE = "25P02"
_FORBIDDEN_STATE = "42501"
_READ_ONLY_STATE = "25006"
_READ_ONLY_WORDS = "readonly database"

# The way out where a privilege is missing.
GRANTS = "outbox ddl --grants prints what each role needs; one that may only INSERT publishes with insert_only"


def driver_error(error: BaseException) -> BaseException:
    """The driver's own error in that of SQLAlchemy or Django."""
    return getattr(error, "orig", None) or error.__cause__ or error


def sqlstate(cause: BaseException) -> str:
    """PostgreSQL's code for the error; empty if the driver gives none."""
    return str(getattr(cause, "sqlstate", None) or getattr(cause, "pgcode", None) or "")


def is_schema_refused(cause: BaseException) -> bool:
    """Whether the table is not there, or not the one that the statement expects."""
    if state := sqlstate(cause):
        return state in _SCHEMA_STATES
    return any(words in str(cause) for words in _SCHEMA_WORDS)


def is_login_refused(cause: BaseException) -> bool:
    """Whether the server is there and takes no connection of ours."""
    return sqlstate(cause).startswith(_LOGIN_STATES)


def is_forbidden(cause: BaseException) -> bool:
    """Whether the role lacks a privilege."""
    return sqlstate(cause) == _FORBIDDEN_STATE


def is_read_only(cause: BaseException) -> bool:
    """Whether the database takes no writes: a replica, or a file without the permission."""
    return sqlstate(cause) == _READ_ONLY_STATE or _READ_ONLY_WORDS in str(cause)


def is_aborted(cause: BaseException) -> bool:
    """Whether an earlier error has ended the transaction for all but a rollback, as PostgreSQL has it."""
    return sqlstate(cause) == _ABORTED_STATE


def first_line(cause: BaseException) -> str:
    """What the driver says, without the statement and the hints that follow."""
    line = (str(cause).strip().splitlines() or [type(cause).__name__])[0]
    return re.sub(r"^<class '[^']+'>: ", "", line)  # SQLAlchemy 2.0 puts it before asyncpg's own words
