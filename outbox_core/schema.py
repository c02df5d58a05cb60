"""The tables as data: columns, indexes and the names that follow from a table's name.

SQLAlchemy's `Table`, Django's model, the statements and the drift check derive from this page or are tested equal to it.
Names are those of faststream-outbox where the meaning is the same.

Two choices carry the speed (docs/decisions/0001-leases-outside-the-indexes.md): no index contains a lease column, so
that claiming a row is a heap-only-tuple update (PostgreSQL, src/backend/access/heap/README.HOT), and half of each page is
left free for it. Messages with a key are found through indexes of their own (docs/decisions/0011-order-by-key.md).
"""

import re
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Literal, TypeAlias

from outbox_core.errors import InvalidName, MissingTable, WrongType
from outbox_core.quoting import quoted

Kind: TypeAlias = Literal["identity", "smallint", "integer", "string", "text", "uuid", "bytes", "json", "timestamp"]
Default: TypeAlias = Literal["zero", "now", "uuid", "empty"]

NAME_LENGTH = 255
MAX_IDENTIFIER = 63  # PostgreSQL's NAMEDATALEN - 1; index names are kept to Django's 30
MAX_INDEX_NAME = 30

# PostgreSQL storage of a queue table: room on each page for claims to stay on it, and vacuum by rows, not by share.
OUTBOX_STORAGE = {
    "fillfactor": 50,
    "autovacuum_vacuum_scale_factor": 0.01,
    "autovacuum_vacuum_threshold": 500,
    "autovacuum_vacuum_cost_delay": 0,
    "autovacuum_analyze_scale_factor": 0.1,
}


@dataclass(frozen=True, slots=True)
class Column:
    """One column; `length` in characters, for `string` only."""

    name: str
    kind: Kind
    nullable: bool = False
    default: Default | None = None
    length: int | None = None


@dataclass(frozen=True, slots=True)
class Index:
    """One index. `where` names columns of a partial index: those that must be null and those that must not.

    A unique index without a predicate is declared as a UNIQUE constraint, because that is how Django declares it.
    """

    suffix: str
    columns: tuple[str, ...]
    unique: bool = False
    where_null: tuple[str, ...] = ()
    where_not_null: tuple[str, ...] = ()

    @property
    def where(self) -> str | None:
        """The predicate as SQL, the same on every database that has partial indexes."""
        parts = [f"{name} IS NOT NULL" for name in self.where_not_null]
        parts += [f"{name} IS NULL" for name in self.where_null]
        return " AND ".join(parts) or None


@dataclass(frozen=True, slots=True)
class TableSpec:
    """One table of the set."""

    columns: tuple[Column, ...]
    indexes: tuple[Index, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(column.name for column in self.columns)


_MESSAGE = (
    Column("message_id", "uuid", default="uuid"),
    Column("queue", "string", length=NAME_LENGTH),
    Column("key", "string", nullable=True, length=NAME_LENGTH),
    Column("payload", "bytes"),
    Column("headers", "json", default="empty"),
    Column("priority", "smallint", default="zero"),
    Column("timer_id", "string", nullable=True, length=NAME_LENGTH),
    Column("created_at", "timestamp", default="now"),
)
MESSAGE_COLUMNS = tuple(column.name for column in _MESSAGE)  # what a publisher says, and nobody changes
_HISTORY = (
    Column("deliveries_count", "integer", default="zero"),
    Column("attempts_count", "integer", default="zero"),
    Column("first_attempt_at", "timestamp", nullable=True),
    Column("last_attempt_at", "timestamp", nullable=True),
)
_FAILURE = (
    Column("failure_reason", "string", length=64),
    Column("last_exception", "text", nullable=True),
)

OUTBOX = TableSpec(
    columns=(
        Column("id", "identity"),
        *_MESSAGE,
        Column("next_attempt_at", "timestamp", default="now"),
        Column("acquired_token", "uuid", nullable=True),
        Column("leased_until", "timestamp", nullable=True),
        # The key, while this message keeps the others of its key waiting: it is the last that one claim has of it, or dead
        # where that halts its key. Otherwise null, so that claiming such a row touches no index.
        Column("held_key", "string", nullable=True, length=NAME_LENGTH),
        *_HISTORY,
        # Set on a message that is parked for want of a dead-letter table; a parked row is never claimed.
        Column("failure_reason", "string", nullable=True, length=64),
        Column("last_exception", "text", nullable=True),
    ),
    indexes=(
        Index("ready", ("queue", "priority", "next_attempt_at", "id"), where_null=("failure_reason", "key")),
        Index("key", ("queue", "key", "id"), where_not_null=("key",), where_null=("failure_reason",)),
        Index("held", ("queue", "held_key"), where_not_null=("held_key",)),
        Index(
            "timer", ("queue", "timer_id"), unique=True, where_not_null=("timer_id",), where_null=("failure_reason",)
        ),
        Index("message_id", ("message_id",), unique=True),
    ),
)
DEAD_LETTERS = TableSpec(
    columns=(
        Column("id", "identity"),
        *_MESSAGE,
        *_HISTORY,
        Column("failed_at", "timestamp", default="now"),
        *_FAILURE,
        Column("worker", "string", nullable=True, length=NAME_LENGTH),
    ),
    indexes=(Index("queue", ("queue", "id")), Index("failed", ("failed_at",))),
)
ARCHIVE = TableSpec(
    columns=(Column("id", "identity"), *_MESSAGE, *_HISTORY, Column("archived_at", "timestamp", default="now")),
    indexes=(Index("archived", ("archived_at",)),),
)
QUEUES = TableSpec(
    columns=(
        Column("id", "identity"),
        Column("queue", "string", length=NAME_LENGTH),
        Column("paused_at", "timestamp", nullable=True),
    ),
    indexes=(Index("queue", ("queue",), unique=True),),
)
INBOX = TableSpec(
    columns=(
        Column("id", "identity"),
        Column("consumer", "string", length=NAME_LENGTH),
        Column("message_id", "string", length=NAME_LENGTH),  # of somebody else's making, so it need not be a UUID
        Column("received_at", "timestamp", default="now"),
    ),
    indexes=(Index("message", ("consumer", "message_id"), unique=True), Index("received", ("received_at",))),
)

_IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


def check_identifier(what: str, name: object) -> str:
    """*name* if it is a plain identifier that fits PostgreSQL; otherwise `InvalidName` or `WrongType`."""
    if not isinstance(name, str):
        raise WrongType(what, "a str", name)
    if not _IDENTIFIER.fullmatch(name):
        hint = '; pass schema="…" for a table in a schema' if "." in name else ""
        raise InvalidName(
            f"{what} must be letters, digits and underscores, not starting with a digit, got {quoted(name)}{hint}"
        )
    if len(name) > MAX_IDENTIFIER:
        raise InvalidName(f"{what} must be at most {MAX_IDENTIFIER} characters, got {len(name)}: {quoted(name)}")
    return name


def object_name(table: str, suffix: str) -> str:
    """The name of an index of *table*: the same for every framework, short enough for all of them."""
    name = f"{table}_{suffix}_idx"
    if len(name) <= MAX_INDEX_NAME:
        return name
    digest = blake2b(f"{table}.{suffix}".encode(), digest_size=4).hexdigest()
    return f"{table[: MAX_INDEX_NAME - len(suffix) - 14]}_{suffix}_{digest}_idx"[-MAX_INDEX_NAME:]


@dataclass(frozen=True, slots=True)
class Tables:
    """Which tables there are, by plain name. None: that table was not made, and what needs it says so."""

    outbox: str = "outbox"
    dead_letters: str | None = None
    archive: str | None = None
    queues: str | None = None
    schema: str | None = None
    inbox: str | None = None
    channel: str = field(init=False)

    def __post_init__(self) -> None:
        named = {"outbox table": self.outbox, "dead-letter table": self.dead_letters}
        named |= {"archive table": self.archive, "queues table": self.queues, "inbox table": self.inbox}
        taken: dict[str, str] = {}
        for what, name in named.items():
            if name is None:
                continue
            check_identifier(what, name)
            if name in taken:
                raise InvalidName(f"{what} must be another table than the {taken[name]}, got {name!r} for both")
            taken[name] = what
        if self.schema is not None:
            check_identifier("schema", self.schema)
        object.__setattr__(self, "channel", channel_name(self.outbox, self.schema))

    def sql(self, name: str) -> str:
        """*name* quoted, with its schema."""
        return f'"{self.schema}"."{name}"' if self.schema else f'"{name}"'

    def need(self, feature: str, table: Literal["dead_letters", "archive", "queues", "inbox"]) -> str:
        """The quoted table that *feature* stands on, or `MissingTable` with the way out."""
        name: str | None = getattr(self, table)
        if name is None:
            way_out = "make_outbox_tables(metadata), or with make_dlq_table(metadata) for dead letters alone"
            if table == "inbox":
                way_out = "make_inbox_table(metadata)"
            raise MissingTable(f"{feature} needs the {table.replace('_', '-')} table; make it with {way_out}")
        return self.sql(name)

    def described(self) -> dict[str, TableSpec]:
        """Each table that there is, with its description."""
        every = (
            (self.outbox, OUTBOX),
            (self.dead_letters, DEAD_LETTERS),
            (self.archive, ARCHIVE),
            (self.queues, QUEUES),
            (self.inbox, INBOX),
        )
        return {name: spec for name, spec in every if name is not None}


def channel_name(table: str, schema: str | None) -> str:
    """The NOTIFY channel of a table: one for each, known to every publisher and worker without being told."""
    name = f"outbox_{schema}_{table}" if schema else f"outbox_{table}"
    if len(name) <= MAX_IDENTIFIER:
        return name
    return f"outbox_{blake2b(name.encode(), digest_size=16).hexdigest()}"
