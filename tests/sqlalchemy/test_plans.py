"""The plans of the statements that run all the time, on 200,000 rows and with statistics of an empty table."""

import json
import re
from collections.abc import Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import psycopg
import pytest
from sqlalchemy import URL, MetaData, create_engine

from outbox_core.outcome import Ack, DeadLetter, Retry
from outbox_core.schema import Tables
from outbox_core.sql.dialect import Settlements, Statement
from outbox_core.sql.postgresql import PostgreSQL
from outbox_core.sql.sqlite import SQLite
from outbox_core.store import CLAIM_BYTES, Band, KeyWant, Settlement, Want
from outbox_sqlalchemy import make_inbox_table, make_outbox_tables
from tests.core.deliveries import delivery
from tests.databases import plain, postgres_database

DIALECT = PostgreSQL(Tables("outbox", dead_letters="outbox_dlq", queues="outbox_queues"))


@pytest.fixture(scope="module")
def backlog(server: URL) -> Iterator[psycopg.Connection[Any]]:
    """200,000 due messages in four queues, 10,000 of them leased and 20,000 not due yet; analyzed while empty."""
    with postgres_database(server) as url:
        metadata = MetaData()
        make_outbox_tables(metadata)
        engine = create_engine(url.set(drivername="postgresql+psycopg"))
        metadata.create_all(engine)
        engine.dispose()
        with psycopg.connect(plain(url), autocommit=True) as connection:
            connection.execute("ALTER TABLE outbox SET (autovacuum_enabled = off)")
            connection.execute("ANALYZE outbox")
            connection.execute(
                """INSERT INTO outbox (message_id, queue, payload, priority, next_attempt_at, acquired_token, leased_until)
                   SELECT gen_random_uuid(), 'queue-' || n % 4, 'x', n % 2,
                          now() + CASE WHEN n % 10 = 0 THEN interval '1 hour' ELSE interval '-1 hour' END,
                          CASE WHEN n < 10000 THEN gen_random_uuid() END,
                          CASE WHEN n < 10000 THEN now() + interval '1 minute' END
                   FROM generate_series(1, 200000) AS n"""
            )
            for statement in DIALECT.setup():
                connection.execute(statement.text)  # type: ignore[call-overload]  # our own SQL
            yield connection


def test_a_claim_scans_the_ready_index_of_each_band_in_order_and_sorts_nothing(
    backlog: psycopg.Connection[Any],
) -> None:
    wants = [Want(Band("queue-1", 1), 100), Want(Band("queue-1", 0), 100), Want(Band("queue-2", 0), 100)]
    statement = DIALECT.claim(wants, total=200, most_bytes=CLAIM_BYTES, lease=30.0, token=uuid4(), suspect=uuid4())

    nodes = explain(backlog, statement)

    assert kinds(nodes) == {
        "Update",
        "Tid Scan",
        "WindowAgg",
        "Limit",
        "Nested Loop",
        "Function Scan",
        "LockRows",
        "Index Scan",
        "Subquery Scan",
    }
    assert indexes(nodes) == {"outbox_ready_idx"}


def test_a_claim_reads_no_more_rows_than_it_takes_and_skips(backlog: psycopg.Connection[Any]) -> None:
    wants = [Want(Band("queue-2", 0), 50)]
    statement = DIALECT.claim(wants, total=50, most_bytes=CLAIM_BYTES, lease=30.0, token=uuid4(), suspect=uuid4())

    nodes = explain(backlog, statement, analyze=True)

    (scan,) = [node for node in nodes if node["Node Type"] == "Index Scan"]
    assert scan["Actual Rows"] == 50
    assert scan["Rows Removed by Filter"] <= 10_000


def test_a_claim_locks_no_more_than_its_limits_and_takes_what_has_the_bytes(backlog: psycopg.Connection[Any]) -> None:
    wants = [Want(Band("queue-2", 0), 50)]
    statement = DIALECT.claim(wants, total=50, most_bytes=7, lease=30.0, token=uuid4(), suspect=uuid4())

    nodes = explain(backlog, statement, analyze=True)

    rows = {node["Node Type"]: node["Actual Rows"] for node in nodes}
    assert (rows["Index Scan"], rows["LockRows"], rows["WindowAgg"]) == (50, 50, 50)
    assert (rows["Tid Scan"], rows["ModifyTable"]) == (7, 7)


def test_a_survey_probes_the_ready_index_once_a_band(backlog: psycopg.Connection[Any]) -> None:
    nodes = explain(backlog, DIALECT.survey(["queue-0", "queue-1", "queue-3"]), analyze=True)

    assert indexes(nodes) <= {"outbox_ready_idx", "outbox_key_idx", "outbox_queues_queue_idx"}
    assert "Sort" not in kinds(nodes)
    assert not [node for node in nodes if node["Node Type"] == "Seq Scan" and node["Relation Name"] == "outbox"]
    probes = [node["Actual Rows"] for node in nodes if node.get("Index Name") in ("outbox_ready_idx", "outbox_key_idx")]
    assert max(probes) <= 1


def test_the_names_of_queues_are_found_in_hops(backlog: psycopg.Connection[Any]) -> None:
    nodes = explain(backlog, DIALECT.queues(), analyze=True)

    assert indexes(nodes) == {"outbox_ready_idx", "outbox_key_idx"}
    assert "Seq Scan" not in kinds(nodes)
    probes = [node for node in nodes if node.get("Index Name") in ("outbox_ready_idx", "outbox_key_idx")]
    assert max(node["Actual Rows"] for node in probes) <= 1
    assert (
        sum(node["Actual Loops"] for node in probes) == 6
    )  # four queues, and once an index to see that there is no other


def test_sqlite_finds_the_names_of_queues_in_hops(tmp_path: Path) -> None:
    metadata = MetaData()
    make_outbox_tables(metadata)
    engine = create_engine(f"sqlite:///{tmp_path / 'outbox.db'}")
    metadata.create_all(engine)
    statement = SQLite(DIALECT.tables).queues()
    steps = 0

    def count() -> int:
        nonlocal steps
        steps += 1
        return 0

    with engine.connect() as connection:
        connection.exec_driver_sql(
            """WITH RECURSIVE number (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM number WHERE n < 10000)
               INSERT INTO outbox (message_id, queue, payload, priority)
               SELECT lower(hex(randomblob(16))), 'queue-' || (n % 4), 'x', n % 2 FROM number"""
        )
        plan = [row[3] for row in connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement.text}")]
        driver: Any = connection.connection.driver_connection
        driver.set_progress_handler(count, 100)
        names = [row[0] for row in connection.exec_driver_sql(statement.text)]
    engine.dispose()

    assert names == ["queue-0", "queue-1", "queue-2", "queue-3"]
    assert [step for step in plan if "message" in step and "INDEX outbox_" not in step] == []
    assert steps < 10  # of a hundred instructions each; every row would be hundreds


def test_settling_and_extending_find_each_row_by_its_primary_key(backlog: psycopg.Connection[Any]) -> None:
    deliveries = [delivery(id) for id in (100_001, 100_002, 100_003)]
    outcomes = [Ack(), Retry(1.0), DeadLetter("rejected")]
    batch = [Settlement(one, outcome) for one, outcome in zip(deliveries, outcomes, strict=True)]
    statements = [*DIALECT.settle(Settlements.of(batch), worker="w"), DIALECT.extend(deliveries, 30.0)]

    for statement in statements:
        nodes = explain(backlog, statement)
        assert indexes(nodes) == {"outbox_pkey"}
        assert "Sort" not in kinds(nodes)
    assert len(statements) == 4


def test_claiming_and_extending_leave_every_index_alone(backlog: psycopg.Connection[Any]) -> None:
    backlog.execute("SELECT pg_stat_force_next_flush()")
    backlog.execute("SELECT pg_stat_reset_single_table_counters('outbox'::regclass)")
    wants = [Want(Band("queue-3", 1), 500)]
    token = uuid4()

    run(backlog, DIALECT.claim(wants, total=500, most_bytes=CLAIM_BYTES, lease=30.0, token=token, suspect=uuid4()))

    backlog.execute("SELECT pg_stat_force_next_flush()")
    updated, hot = backlog.execute(
        "SELECT n_tup_upd, n_tup_hot_upd FROM pg_stat_user_tables WHERE relname = 'outbox'"
    ).fetchone() or (0, 0)
    assert updated == 500
    assert hot == 500


@pytest.fixture
def keyed(database: URL) -> Iterator[psycopg.Connection[Any]]:
    """20,000 messages of a key that waits for a retry, and behind them 400 of 100 keys, in turn; analyzed while empty."""
    metadata = MetaData()
    make_outbox_tables(metadata)
    engine = create_engine(database.set(drivername="postgresql+psycopg"))
    metadata.create_all(engine)
    engine.dispose()
    with psycopg.connect(plain(database), autocommit=True) as connection:
        connection.execute("ALTER TABLE outbox SET (autovacuum_enabled = off)")
        connection.execute("ANALYZE outbox")
        connection.execute(
            """INSERT INTO outbox (message_id, queue, key, payload, next_attempt_at)
               SELECT gen_random_uuid(), 'orders', CASE WHEN n <= 20000 THEN 'blocked' ELSE 'key-' || n % 100 END, 'x',
                      now() + CASE WHEN n = 1 THEN interval '1 hour' ELSE interval '-1 hour' END
               FROM generate_series(1, 20400) AS n"""
        )
        for statement in DIALECT.setup():
            connection.execute(statement.text)  # type: ignore[call-overload]  # our own SQL
        yield connection


def test_a_look_at_keys_reads_no_more_of_a_key_than_it_may_claim(keyed: psycopg.Connection[Any]) -> None:
    nodes = explain(keyed, DIALECT.look_at_keys(KeyWant("orders", 500, 100, keys=50)), analyze=True)

    assert indexes(nodes) == {"outbox_key_idx", "outbox_held_idx"}
    assert "Seq Scan" not in kinds(nodes)
    # What was found is put in order to be answered; since PostgreSQL 16 an aggregate's ORDER BY is a node of the plan.
    assert [node["Sort Key"] for node in nodes if node["Node Type"] == "Sort"] in ([], [["lane.hop"]])
    assert max(node["Actual Rows"] for node in nodes if node["Node Type"] == "Index Scan") <= 8
    probes = [node for node in nodes if node.get("Index Name") == "outbox_held_idx"]
    assert sum(node["Actual Loops"] for node in probes) == 100  # none of the key that waits, and one each of the others


def test_a_claim_of_keys_finds_each_row_by_its_key_once(keyed: psycopg.Connection[Any]) -> None:
    runs = {f"key-{number}": 4 for number in range(100)}
    claim = DIALECT.claim_keys("orders", runs, most_bytes=CLAIM_BYTES, lease=30.0, token=uuid4(), suspect=uuid4())

    nodes = explain(keyed, claim, analyze=True)

    assert indexes(nodes) == {"outbox_key_idx"}
    assert "Seq Scan" not in kinds(nodes)
    assert {node["Actual Loops"] for node in nodes if node.get("Index Name") == "outbox_key_idx"} == {100}
    assert max(node["Actual Rows"] for node in nodes) == 400


def test_a_claim_of_keys_locks_nothing_beyond_the_bytes(keyed: psycopg.Connection[Any]) -> None:
    runs = {f"key-{number}": 4 for number in range(100)}
    claim = DIALECT.claim_keys("orders", runs, most_bytes=10, lease=30.0, token=uuid4(), suspect=uuid4())

    nodes = explain(keyed, claim, analyze=True)

    assert [node["Actual Rows"] for node in nodes if node["Node Type"] == "LockRows"] == [10]
    assert {node["Actual Rows"] for node in nodes if node["Node Type"] == "ModifyTable"} == {10}


def test_a_claim_of_keys_leaves_the_indexes_alone_but_for_the_last_of_each_run(keyed: psycopg.Connection[Any]) -> None:
    runs = {f"key-{number}": 4 for number in range(20)}  # so few that all pages have room for them
    keyed.execute("SELECT pg_stat_force_next_flush()")
    keyed.execute("SELECT pg_stat_reset_single_table_counters('outbox'::regclass)")

    run(keyed, DIALECT.claim_keys("orders", runs, most_bytes=CLAIM_BYTES, lease=30.0, token=uuid4(), suspect=uuid4()))

    keyed.execute("SELECT pg_stat_force_next_flush()")
    counted = keyed.execute("SELECT n_tup_upd, n_tup_hot_upd FROM pg_stat_user_tables WHERE relname = 'outbox'")
    assert counted.fetchone() == (80, 60)


def test_an_inbox_is_purged_by_its_index(database: URL) -> None:
    with psycopg.connect(plain(database), autocommit=True) as connection:
        engine = create_engine(database.set(drivername="postgresql+psycopg"))
        make_inbox_table(metadata := MetaData())
        metadata.create_all(engine)
        engine.dispose()
        connection.execute(
            """INSERT INTO outbox_inbox (consumer, message_id, received_at)
               SELECT 'billing', n, now() - make_interval(mins => n) FROM generate_series(1, 50000) AS n"""
        )
        connection.execute("ANALYZE outbox_inbox")
        connection.execute("SET plan_cache_mode = force_generic_plan")
        statement = PostgreSQL(Tables(inbox="outbox_inbox")).purge_inbox(timedelta(days=30), 100)

        nodes = explain(connection, statement, analyze=True)

    assert indexes(nodes) == {"outbox_inbox_received_idx", "outbox_inbox_pkey"}
    assert "Sort" not in kinds(nodes)
    assert max(node["Actual Rows"] for node in nodes) == 100


def explain(
    connection: psycopg.Connection[Any], statement: Statement, *, analyze: bool = False
) -> list[dict[str, Any]]:
    """The nodes of the generic plan, which is the one that a worker's connection uses. *analyze* runs it, undone."""
    with connection.transaction(force_rollback=True):
        execute = prepare(connection, statement)
        row = connection.execute(
            f"EXPLAIN (FORMAT JSON, ANALYZE {analyze}, TIMING off) {execute}"  # type: ignore[call-overload]
        ).fetchone()
    assert row is not None
    plan = row[0] if isinstance(row[0], list) else json.loads(row[0])
    return list(walk(plan[0]["Plan"]))


def run(connection: psycopg.Connection[Any], statement: Statement) -> None:
    connection.execute(prepare(connection, statement))  # type: ignore[call-overload]  # our own SQL
    connection.execute("DEALLOCATE ALL")


def prepare(connection: psycopg.Connection[Any], statement: Statement) -> str:
    """Prepare the statement and return the EXECUTE with its parameters as literals."""
    connection.execute("DEALLOCATE ALL")
    names: list[str] = []

    def number(found: re.Match[str]) -> str:
        if found[1] not in names:
            names.append(found[1])
        return f"${names.index(found[1]) + 1}"

    text = re.sub(r":([a-z_]+)", number, statement.text)
    connection.execute(f"PREPARE tested AS {text}")  # type: ignore[call-overload]  # our own SQL
    literals = ", ".join(["%s"] * len(names))
    cursor = psycopg.ClientCursor(connection)
    values = [statement.parameters[name] for name in names]
    return cursor.mogrify(f"EXECUTE tested ({literals})", values) if names else "EXECUTE tested"


def walk(node: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield node
    for child in node.get("Plans", ()):
        yield from walk(child)


def kinds(nodes: Sequence[dict[str, Any]]) -> set[str]:
    return {node["Operation"] if node["Node Type"] == "ModifyTable" else node["Node Type"] for node in nodes}


def indexes(nodes: Sequence[dict[str, Any]]) -> set[str]:
    return {node["Index Name"] for node in nodes if "Index Name" in node}
