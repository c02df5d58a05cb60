"""The tables that users' own metadata makes, and what is said when the live ones differ."""

import asyncio
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import MetaData, Table, inspect, text

from outbox_core.errors import InvalidName, OptionError, OutboxError, SchemaMismatch, WrongType
from outbox_sqlalchemy import OutboxBroker, OutboxTables, make_dlq_table, make_outbox_table, make_outbox_tables
from tests.places import Place, until


async def test_create_all_makes_what_is_described(place: Place) -> None:
    await place.broker().validate_schema()


async def test_the_set_with_an_archive_and_an_inbox_is_what_is_described(fresh_either: Place) -> None:
    metadata = MetaData()
    tables = make_outbox_tables(metadata, "mail", archive=True, inbox=True)
    metadata.create_all(fresh_either.sync_engine)

    await fresh_either.broker(outbox_table=tables).validate_schema()

    names = inspect(fresh_either.sync_engine).get_table_names()
    assert sorted(name for name in names if name.startswith("mail")) == [
        "mail",
        "mail_archive",
        "mail_dlq",
        "mail_inbox",
        "mail_queues",
    ]


async def test_the_columns_are_those_of_the_described_table(postgres: Place) -> None:
    columns = inspect(postgres.sync_engine).get_columns("outbox")

    assert [(column["name"], str(column["type"]), column["nullable"]) for column in columns] == [
        ("id", "BIGINT", False),
        ("message_id", "UUID", False),
        ("queue", "VARCHAR(255)", False),
        ("key", "VARCHAR(255)", True),
        ("payload", "BYTEA", False),
        ("headers", "JSONB", False),
        ("priority", "SMALLINT", False),
        ("timer_id", "VARCHAR(255)", True),
        ("created_at", "TIMESTAMP", False),
        ("next_attempt_at", "TIMESTAMP", False),
        ("acquired_token", "UUID", True),
        ("leased_until", "TIMESTAMP", True),
        ("held_key", "VARCHAR(255)", True),
        ("deliveries_count", "INTEGER", False),
        ("attempts_count", "INTEGER", False),
        ("first_attempt_at", "TIMESTAMP", True),
        ("last_attempt_at", "TIMESTAMP", True),
        ("failure_reason", "VARCHAR(64)", True),
        ("last_exception", "TEXT", True),
    ]


async def test_no_index_contains_a_lease_column(either: Place) -> None:
    live = inspect(either.sync_engine)
    indexes = [*live.get_indexes("outbox"), *live.get_unique_constraints("outbox")]

    assert {index["name"]: index["column_names"] for index in indexes} == {
        "outbox_ready_idx": ["queue", "priority", "next_attempt_at", "id"],
        "outbox_key_idx": ["queue", "key", "id"],
        "outbox_held_idx": ["queue", "held_key"],
        "outbox_timer_idx": ["queue", "timer_id"],
        "outbox_message_id_idx": ["message_id"],
    }


async def test_what_is_unique_among_all_rows_is_a_constraint(either: Place) -> None:
    live = inspect(either.sync_engine)

    assert [one["name"] for one in live.get_unique_constraints("outbox")] == ["outbox_message_id_idx"]
    assert [one["name"] for one in live.get_unique_constraints("outbox_queues")] == ["outbox_queues_queue_idx"]
    assert live.get_pk_constraint("outbox_queues")["constrained_columns"] == ["id"]


async def test_a_schema_other_than_public_is_described_too(fresh_postgres: Place) -> None:
    fresh_postgres.run("CREATE SCHEMA shop")
    metadata = MetaData()
    tables = make_outbox_tables(metadata, schema="shop")
    metadata.create_all(fresh_postgres.sync_engine)
    broker = fresh_postgres.broker(outbox_table=tables)
    await broker.validate_schema()

    await broker.publish("hello", "orders")

    assert [row.queue for row in fresh_postgres.rows(tables.outbox)] == ["orders"]
    assert fresh_postgres.rows() == []


async def test_the_metadatas_own_schema_is_taken(fresh_postgres: Place) -> None:
    fresh_postgres.run("CREATE SCHEMA shop")
    metadata = MetaData(schema="shop")
    table = make_outbox_table(metadata)
    metadata.create_all(fresh_postgres.sync_engine)

    await fresh_postgres.broker(outbox_table=table).validate_schema()

    assert inspect(fresh_postgres.sync_engine).get_table_names(schema="shop") == ["outbox"]


async def test_storage_options_are_live(postgres: Place) -> None:
    with postgres.sync_engine.connect() as connection:
        options = connection.scalar(text("SELECT reloptions FROM pg_class WHERE relname = 'outbox'"))

    assert sorted(options) == [
        "autovacuum_analyze_scale_factor=0.1",
        "autovacuum_vacuum_cost_delay=0",
        "autovacuum_vacuum_scale_factor=0.01",
        "autovacuum_vacuum_threshold=500",
        "fillfactor=50",
    ]


async def test_making_the_tables_again_changes_nothing(fresh_either: Place) -> None:
    await fresh_either.broker().publish("hello", "orders")

    fresh_either.metadata.create_all(fresh_either.sync_engine)

    assert len(fresh_either.rows()) == 1


@dataclass(frozen=True)
class Drift:
    """What somebody did to the tables, and the line that says so. SQLite cannot alter columns, so it makes them anew."""

    postgresql: tuple[str, ...]
    sqlite: tuple[str, ...]
    table: str
    line: str
    sqlite_line: str | None = None


def remade(
    *, without: str = "", instead: str = "", also: str = "", constraint: str = "UNIQUE (message_id)"
) -> tuple[str, ...]:
    """SQLite's outbox table again, with one column left out, declared differently, or added, or another constraint."""
    columns = {
        "id": "INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT",
        "message_id": "CHAR(32) NOT NULL DEFAULT (lower(hex(randomblob(16))))",
        "queue": "VARCHAR(255) NOT NULL",
        '"key"': "VARCHAR(255)",
        "payload": "BLOB NOT NULL",
        "headers": "JSON NOT NULL DEFAULT '{}'",
        "priority": "SMALLINT NOT NULL DEFAULT 0",
        "timer_id": "VARCHAR(255)",
        "created_at": "DATETIME NOT NULL DEFAULT (strftime('%Y-%m-%d %H:%M:%f000', 'now'))",
        "next_attempt_at": "DATETIME NOT NULL DEFAULT (strftime('%Y-%m-%d %H:%M:%f000', 'now'))",
        "acquired_token": "CHAR(32)",
        "leased_until": "DATETIME",
        "held_key": "VARCHAR(255)",
        "deliveries_count": "INTEGER NOT NULL DEFAULT 0",
        "attempts_count": "INTEGER NOT NULL DEFAULT 0",
        "first_attempt_at": "DATETIME",
        "last_attempt_at": "DATETIME",
        "failure_reason": "VARCHAR(64)",
        "last_exception": "TEXT",
    }
    columns.pop(without, None)
    name, _, declared = instead.partition(" ")
    if name:
        columns[name] = declared
    every = [*(f"{column} {kind}" for column, kind in columns.items()), also, constraint]
    return (
        "DROP TABLE outbox",
        f"CREATE TABLE outbox ({', '.join(filter(None, every))})",
        (
            "CREATE INDEX outbox_ready_idx ON outbox (queue, priority, next_attempt_at, id)"
            " WHERE failure_reason IS NULL AND key IS NULL"
        ),
        "CREATE INDEX outbox_held_idx ON outbox (queue, held_key) WHERE held_key IS NOT NULL",
        'CREATE INDEX outbox_key_idx ON outbox (queue, "key", id) WHERE "key" IS NOT NULL AND failure_reason IS NULL',
        """CREATE UNIQUE INDEX outbox_timer_idx ON outbox (queue, timer_id)
           WHERE timer_id IS NOT NULL AND failure_reason IS NULL""",
    )


DRIFTS = {
    "missing table": Drift(
        ("DROP TABLE outbox_dlq",), ("DROP TABLE outbox_dlq",), "outbox_dlq", "table outbox_dlq does not exist"
    ),
    "missing column": Drift(
        ("ALTER TABLE outbox DROP COLUMN last_exception",),
        ("ALTER TABLE outbox DROP COLUMN last_exception",),
        "outbox",
        "column last_exception is missing, expected text",
    ),
    "wrong type": Drift(
        ("ALTER TABLE outbox ALTER payload TYPE text USING ''",),
        remade(instead="payload TEXT NOT NULL"),
        "outbox",
        "column payload is text, expected bytea",
        "column payload is text, expected blob",
    ),
    "nullable": Drift(
        ("ALTER TABLE outbox ALTER payload DROP NOT NULL",),
        remade(instead="payload BLOB"),
        "outbox",
        "column payload is nullable, expected the opposite",
    ),
    "not nullable": Drift(
        ("ALTER TABLE outbox ALTER leased_until SET NOT NULL",),
        remade(instead="leased_until DATETIME NOT NULL"),
        "outbox",
        "column leased_until is NOT NULL, expected the opposite",
    ),
    "missing default": Drift(
        ("ALTER TABLE outbox ALTER message_id DROP DEFAULT",),
        remade(instead="message_id CHAR(32) NOT NULL"),
        "outbox",
        "column message_id has no default in the database",
    ),
    "foreign column": Drift(
        ("ALTER TABLE outbox ADD tenant integer NOT NULL",),
        remade(also="tenant INTEGER NOT NULL"),
        "outbox",
        "column tenant is not ours, NOT NULL and without a default, so nothing can be inserted",
    ),
    "missing index": Drift(
        ("DROP INDEX outbox_ready_idx",),
        ("DROP INDEX outbox_ready_idx",),
        "outbox",
        "index outbox_ready_idx on (queue, priority, next_attempt_at, id) WHERE failure_reason IS NULL AND key IS NULL "
        "is missing or different",
    ),
    "index on other columns": Drift(
        (
            "DROP INDEX outbox_key_idx",
            "CREATE INDEX outbox_key_idx ON outbox (queue, key) WHERE key IS NOT NULL AND failure_reason IS NULL",
        ),
        (
            "DROP INDEX outbox_key_idx",
            'CREATE INDEX outbox_key_idx ON outbox (queue, "key") WHERE "key" IS NOT NULL AND failure_reason IS NULL',
        ),
        "outbox",
        "index outbox_key_idx on (queue, key, id) WHERE key IS NOT NULL AND failure_reason IS NULL "
        "is missing or different",
    ),
    "index that is not unique": Drift(
        (
            "ALTER TABLE outbox DROP CONSTRAINT outbox_message_id_idx",
            "CREATE INDEX outbox_message_id_idx ON outbox (message_id)",
        ),
        (*remade(constraint=""), "CREATE INDEX outbox_message_id_idx ON outbox (message_id)"),
        "outbox",
        "index outbox_message_id_idx on unique (message_id) is missing or different",
    ),
    "index without its predicate": Drift(
        ("DROP INDEX outbox_timer_idx", "CREATE UNIQUE INDEX outbox_timer_idx ON outbox (queue, timer_id)"),
        ("DROP INDEX outbox_timer_idx", "CREATE UNIQUE INDEX outbox_timer_idx ON outbox (queue, timer_id)"),
        "outbox",
        "index outbox_timer_idx on unique (queue, timer_id) WHERE timer_id IS NOT NULL AND failure_reason IS NULL "
        "is missing or different",
    ),
}


@pytest.mark.parametrize("drift", DRIFTS.values(), ids=DRIFTS.keys())
async def test_a_drifted_table_is_named_with_its_difference(fresh_either: Place, drift: Drift) -> None:
    fresh_either.run(*(drift.postgresql if fresh_either.is_postgresql else drift.sqlite))
    line = drift.line if fresh_either.is_postgresql else drift.sqlite_line or drift.line

    with pytest.raises(SchemaMismatch) as caught:
        await fresh_either.broker().validate_schema()

    assert caught.value.table == drift.table
    assert caught.value.differences == (line,)
    assert str(caught.value) == f"{drift.table} does not fit this version: {line}"
    assert isinstance(caught.value, OutboxError | LookupError)


async def test_a_shorter_column_is_drift_on_postgresql(fresh_postgres: Place) -> None:
    fresh_postgres.run("ALTER TABLE outbox ALTER queue TYPE varchar(100)")

    with pytest.raises(SchemaMismatch) as caught:
        await fresh_postgres.broker().validate_schema()

    assert caught.value.differences == ("column queue is character varying(100), expected character varying(255)",)


async def test_the_table_that_the_drift_tests_remake_is_the_described_one(fresh_either: Place) -> None:
    if not fresh_either.is_postgresql:
        fresh_either.run(*remade())

    await fresh_either.broker().validate_schema()


async def test_a_column_of_the_users_own_that_can_stay_empty_is_no_drift(fresh_either: Place) -> None:
    fresh_either.run(
        "ALTER TABLE outbox ADD tenant integer", "ALTER TABLE outbox ADD region integer NOT NULL DEFAULT 1"
    )

    await fresh_either.broker().validate_schema()
    await fresh_either.broker().publish("hello", "orders")

    assert len(fresh_either.rows()) == 1


async def test_a_unique_index_in_a_constraints_place_under_another_name_is_no_drift(fresh_either: Place) -> None:
    postgresql = ("ALTER TABLE outbox DROP CONSTRAINT outbox_message_id_idx",)
    fresh_either.run(
        *(postgresql if fresh_either.is_postgresql else remade(constraint="")),
        "CREATE UNIQUE INDEX by_identity ON outbox (message_id)",
    )

    await fresh_either.broker().validate_schema()


async def test_every_difference_of_a_table_is_named_at_once(fresh_postgres: Place) -> None:
    fresh_postgres.run(
        "ALTER TABLE outbox DROP COLUMN last_exception", "ALTER TABLE outbox ALTER priority TYPE integer"
    )

    with pytest.raises(SchemaMismatch) as caught:
        await fresh_postgres.broker().validate_schema()

    assert caught.value.differences == (
        "column priority is integer, expected smallint",
        "column last_exception is missing, expected text",
    )


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("", InvalidName, "{what} must be letters, digits and underscores, not starting with a digit, got ''"),
        (
            'out"box',
            InvalidName,
            "{what} must be letters, digits and underscores, not starting with a digit, got 'out\"box'",
        ),
        (
            "public.outbox",
            InvalidName,
            (
                "{what} must be letters, digits and underscores, not starting with a digit, got 'public.outbox'; "
                'pass schema="…" for a table in a schema'
            ),
        ),
        (
            "2outbox",
            InvalidName,
            "{what} must be letters, digits and underscores, not starting with a digit, got '2outbox'",
        ),
        (
            "outbox\n",
            InvalidName,
            "{what} must be letters, digits and underscores, not starting with a digit, got 'outbox\\n'",
        ),
        ("bücher", InvalidName, None),
        ("o" * 64, InvalidName, "{what} must be at most 63 characters, got 64: '" + "o" * 64 + "'"),
        (None, WrongType, "{what} must be a str, got NoneType"),
        (7, WrongType, "{what} must be a str, got int"),
        (b"outbox", WrongType, "{what} must be a str, got bytes"),
    ],
)
@pytest.mark.parametrize(("make", "what"), [(make_outbox_table, "outbox table"), (make_dlq_table, "dead-letter table")])
def test_a_table_name_that_is_no_identifier_is_refused(
    make: Any, what: str, name: object, error: type[OutboxError], message: str | None
) -> None:
    metadata = MetaData()

    with pytest.raises(error) as caught:
        make(metadata, name)

    assert isinstance(caught.value, ValueError if error is InvalidName else TypeError)
    if message is not None:
        assert str(caught.value) == message.format(what=what)
    assert list(metadata.tables) == []


@pytest.mark.parametrize("schema", ["", "a.b", 'a"b', "1a", "s" * 64])
def test_a_schema_that_is_no_identifier_is_refused(schema: str) -> None:
    with pytest.raises(InvalidName, match=r"^schema must be"):
        make_outbox_table(MetaData(), schema=schema)


def test_a_prefix_whose_other_tables_have_no_room_makes_no_table() -> None:
    metadata = MetaData()

    with pytest.raises(InvalidName) as caught:
        make_outbox_tables(metadata, "p" * 60)

    assert str(caught.value) == f"dead-letter table must be at most 63 characters, got 64: '{'p' * 60}_dlq'"
    assert list(metadata.tables) == []


def test_metadata_of_another_type_is_refused() -> None:
    with pytest.raises(WrongType) as caught:
        make_outbox_table("outbox")  # type: ignore[arg-type]

    assert str(caught.value) == "metadata must be a MetaData, got str"


def test_a_dead_letter_table_in_another_schema_is_refused() -> None:
    outbox = make_outbox_table(MetaData(), schema="shop")
    dead = make_dlq_table(MetaData(), schema="ops")

    with pytest.raises(OptionError) as caught:
        OutboxBroker(outbox_table=outbox, dlq_table=dead)

    assert str(caught.value) == (
        "all tables of an outbox must be in one schema, got outbox in 'shop' and outbox_dlq in 'ops'"
    )


def test_one_table_for_two_purposes_is_refused() -> None:
    table = make_outbox_table(MetaData())

    with pytest.raises(InvalidName) as caught:
        OutboxBroker(outbox_table=table, dlq_table=table)

    assert str(caught.value) == "dead-letter table must be another table than the outbox table, got 'outbox' for both"


def test_a_set_and_a_dead_letter_table_beside_it_are_refused() -> None:
    metadata = MetaData()

    with pytest.raises(
        OptionError, match=r"^dlq_table is part of the set made by make_outbox_tables; pass one of them$"
    ):
        OutboxBroker(outbox_table=make_outbox_tables(metadata), dlq_table=make_dlq_table(metadata, "graves"))


@pytest.mark.parametrize("table", ["outbox", MetaData(), 3])
def test_an_outbox_table_of_another_type_is_refused(table: object) -> None:
    with pytest.raises(WrongType, match=r"^outbox_table must be a Table made by make_outbox_table, got "):
        OutboxBroker(outbox_table=table)  # type: ignore[arg-type]


def test_a_foreign_table_with_a_name_that_cannot_be_quoted_is_refused() -> None:
    with pytest.raises(InvalidName, match="got 'out box'"):
        OutboxBroker(outbox_table=Table("out box", MetaData()))


async def test_the_longest_name_works(fresh_either: Place) -> None:
    metadata = MetaData()
    table = make_outbox_table(metadata, "o" * 63)
    metadata.create_all(fresh_either.sync_engine)
    broker = fresh_either.broker(outbox_table=table)
    await broker.validate_schema()

    await broker.publish("hello", "orders")

    assert len(fresh_either.rows(table)) == 1


async def test_two_outboxes_of_one_database_keep_apart(fresh_either: Place) -> None:
    metadata = MetaData()
    tables = make_outbox_tables(metadata, "letters")
    metadata.create_all(fresh_either.sync_engine)

    await fresh_either.broker(outbox_table=tables).publish("hello", "orders")

    assert fresh_either.rows() == []
    assert len(fresh_either.rows(tables.outbox)) == 1


def test_a_set_without_the_rest_is_one_table() -> None:
    table = make_outbox_table(MetaData())

    broker = OutboxBroker(outbox_table=OutboxTables(table))

    assert list(broker.store.tables.described()) == ["outbox"]  # type: ignore[attr-defined]


async def test_a_row_of_somebody_elses_with_only_queue_and_payload_is_handled(place: Place) -> None:
    place.run("""INSERT INTO outbox (queue, payload) VALUES ('orders', '{"id": 7}')""")
    (row,) = place.rows()
    handled: asyncio.Queue[object] = asyncio.Queue()
    broker = place.broker()

    @broker.subscriber("orders")
    async def handle(body: dict[str, int]) -> None:
        handled.put_nowait(body)

    async with broker, asyncio.timeout(5):
        await broker.start()
        assert await handled.get() == {"id": 7}
        await until(place.rows, [])

    assert (row.headers, row.priority, row.deliveries_count, row.attempts_count) == ({}, 0, 0, 0)
    assert isinstance(row.message_id, UUID)
    assert row.next_attempt_at == row.created_at
