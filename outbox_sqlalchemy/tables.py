"""The tables on the user's own metadata, so that `create_all` and Alembic see them like any other.

Only stock SQLAlchemy types are used: a type of ours would render in users' migrations without its import.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

from sqlalchemy import (
    DDL,
    JSON,
    BigInteger,
    Column,
    DateTime,
    Identity,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    SmallInteger,
    String,
    Table,
    Text,
    UniqueConstraint,
    Uuid,
    event,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.expression import FunctionElement
from sqlalchemy.types import TypeEngine

from outbox_core import schema as described
from outbox_core.errors import InvalidName, OptionError, WrongType
from outbox_core.schema import OUTBOX_STORAGE, Tables, TableSpec, check_identifier, object_name
from outbox_core.sql.sqlite import NOW


class OutboxTables(NamedTuple):
    """The whole set; a broker takes it where it takes an outbox table."""

    outbox: Table
    dead_letters: Table | None = None
    archive: Table | None = None
    queues: Table | None = None
    inbox: Table | None = None


def make_outbox_table(metadata: MetaData, table_name: str = "outbox", schema: str | None = None) -> Table:
    """The one table on which everything but dead-letter history, archive and pause works.

    *schema* defaults to the metadata's. Raises `InvalidName` for a name that is no plain identifier.
    """
    table = _make_table(metadata, described.OUTBOX, table_name, schema, "outbox table")
    _set_storage(table)
    return table


def make_dlq_table(metadata: MetaData, table_name: str = "outbox_dlq", schema: str | None = None) -> Table:
    """The dead letters, with their whole history."""
    return _make_table(metadata, described.DEAD_LETTERS, table_name, schema, "dead-letter table")


def make_inbox_table(metadata: MetaData, table_name: str = "outbox_inbox", schema: str | None = None) -> Table:
    """What has been received from elsewhere, for an `Inbox`; in whatever database its handlers write to."""
    return _make_table(metadata, described.INBOX, table_name, schema, "inbox table")


def make_outbox_tables(
    metadata: MetaData, prefix: str = "outbox", schema: str | None = None, *, archive: bool = False, inbox: bool = False
) -> OutboxTables:
    """The whole set: `<prefix>`, `<prefix>_dlq`, `<prefix>_queues`; if asked for, `<prefix>_archive` and `<prefix>_inbox`.

    With an archive, handled messages are moved there instead of deleted. The inbox is for an `Inbox` on the same database.
    """
    Tables(  # all or none
        outbox=prefix,
        dead_letters=f"{prefix}_dlq",
        archive=f"{prefix}_archive" if archive else None,
        queues=f"{prefix}_queues",
        schema=schema,
        inbox=f"{prefix}_inbox" if inbox else None,
    )
    for option, value in (("archive", archive), ("inbox", inbox)):
        if not isinstance(value, bool):
            raise WrongType(option, "True or False", value)
    done = _make_table(metadata, described.ARCHIVE, f"{prefix}_archive", schema, "archive table") if archive else None
    return OutboxTables(
        outbox=make_outbox_table(metadata, prefix, schema),
        dead_letters=make_dlq_table(metadata, f"{prefix}_dlq", schema),
        archive=done,
        queues=_make_table(metadata, described.QUEUES, f"{prefix}_queues", schema, "queues table"),
        inbox=make_inbox_table(metadata, f"{prefix}_inbox", schema) if inbox else None,
    )


def names_of(
    outbox: Table | OutboxTables | None, dead_letters: Table | None = None, schema: str | None = None
) -> Tables:
    """The core's view of these tables; the default name where there is none."""
    if outbox is None:
        outbox_name, given = "outbox", OutboxTables(None, dead_letters)  # type: ignore[arg-type]  # replaced below
    elif isinstance(outbox, OutboxTables):
        outbox_name, given = outbox.outbox.name, outbox
    elif isinstance(outbox, Table):
        outbox_name, given, schema = outbox.name, OutboxTables(outbox, dead_letters), outbox.schema
    else:
        raise WrongType("outbox_table", "a Table made by make_outbox_table", outbox, "see make_outbox_tables")
    if dead_letters is not None and not isinstance(dead_letters, Table):
        raise WrongType("dlq_table", "a Table made by make_dlq_table", dead_letters)
    if isinstance(outbox, OutboxTables):
        schema = outbox.outbox.schema
    for table in given:
        if table is not None and table.schema != schema:
            raise OptionError(
                f"all tables of an outbox must be in one schema, got {outbox_name} in {schema!r} and "
                f"{table.name} in {table.schema!r}"
            )
    tables = Tables(
        outbox=outbox_name,
        dead_letters=None if given.dead_letters is None else given.dead_letters.name,
        archive=None if given.archive is None else given.archive.name,
        queues=None if given.queues is None else given.queues.name,
        schema=schema,
        inbox=None if given.inbox is None else given.inbox.name,
    )
    if dead_letters is not None and dead_letters.columns and "failed_at" not in dead_letters.columns:
        raise OptionError(
            f"dlq_table must be made by make_dlq_table, got {dead_letters.name!r}, which has no failed_at"
        )
    return tables


def _make_table(metadata: MetaData, spec: TableSpec, name: str, schema: str | None, what: str) -> Table:
    if not isinstance(metadata, MetaData):
        raise WrongType("metadata", "a MetaData", metadata)
    check_identifier(what, name)
    if schema is None:
        schema = metadata.schema
    if schema is not None:
        check_identifier("schema", schema)
    if (name if schema is None else f"{schema}.{name}") in metadata.tables:
        raise InvalidName(f"{what} {name!r} is on this metadata already; use the Table that is there, or another name")
    table = Table(name, metadata, *map(_make_column, spec.columns), schema=schema, sqlite_autoincrement=True)
    for index in spec.indexes:
        _add_index(table, index)
    return table


def _add_index(table: Table, index: described.Index) -> None:
    name = object_name(table.name, index.suffix)
    columns = [table.c[column] for column in index.columns]
    if index.unique and index.where is None:
        table.append_constraint(UniqueConstraint(*columns, name=name))
        return
    where = None if index.where is None else text(index.where)
    Index(name, *columns, unique=index.unique, postgresql_where=where, sqlite_where=where)


def _set_storage(table: Table) -> None:
    """Have `create_all` set the storage parameters. SQLAlchemy 2.0 has none for tables, so there they are set afterwards."""
    options = table.dialect_options["postgresql"]
    if "with" in options:
        options["with"] = dict(OUTBOX_STORAGE)
        return
    parameters = ", ".join(f"{name} = {value}" for name, value in OUTBOX_STORAGE.items())
    set_them = DDL(f"ALTER TABLE %(fullname)s SET ({parameters})")  # type: ignore[no-untyped-call]  # SQLAlchemy's own
    event.listen(table, "after_create", set_them.execute_if(dialect="postgresql"))


def _make_column(column: described.Column) -> Column[Any]:
    if column.kind == "identity":
        return Column(column.name, _TYPES["identity"], Identity(always=False), primary_key=True)
    kind = String(column.length) if column.kind == "string" else _TYPES[column.kind]
    default = None if column.default is None else _DEFAULTS[column.default]
    return Column(column.name, kind, nullable=column.nullable, server_default=default)


_TYPES: Mapping[str, TypeEngine[Any]] = {
    "identity": BigInteger().with_variant(Integer(), "sqlite"),
    "smallint": SmallInteger(),
    "integer": Integer(),
    "text": Text(),
    "uuid": Uuid(),
    "bytes": LargeBinary(),
    "json": JSON().with_variant(JSONB(), "postgresql"),
    "timestamp": DateTime(timezone=True),
}


class _Now(FunctionElement[Any]):
    """The database's clock, in UTC where a database has no time zones."""

    inherit_cache = True


class _NewUuid(FunctionElement[Any]):
    """A random UUID, for rows that somebody else inserts; our own publishes bring an ordered one."""

    inherit_cache = True


@compiles(_Now)
def _now(element: _Now, compiler: SQLCompiler, **_: Any) -> str:
    return "CURRENT_TIMESTAMP"


@compiles(_Now, "sqlite")
def _now_sqlite(element: _Now, compiler: SQLCompiler, **_: Any) -> str:
    return NOW


@compiles(_NewUuid)
def _new_uuid(element: _NewUuid, compiler: SQLCompiler, **_: Any) -> str:
    return "gen_random_uuid()"


@compiles(_NewUuid, "sqlite")
def _new_uuid_sqlite(element: _NewUuid, compiler: SQLCompiler, **_: Any) -> str:
    return "lower(hex(randomblob(16)))"


_DEFAULTS: Mapping[str, Any] = {"zero": text("0"), "empty": text("'{}'"), "now": _Now(), "uuid": _NewUuid()}
