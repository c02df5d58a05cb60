"""Each database role has what `outbox ddl --grants` grants it: it can do its work, and nothing beyond."""

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import timedelta
from uuid import UUID

import psycopg
import pytest
from django.db.transaction import atomic
from sqlalchemy import URL, create_engine
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import Session

from outbox_core.cli.main import main
from outbox_core.envelope import compose
from outbox_core.errors import InvalidMessage, NoPermission
from outbox_core.outcome import Ack, DeadLetter, Release, Retry
from outbox_core.sql.grants import Roles, grant_statements
from outbox_core.store import Band, Settlement, Want
from outbox_django.store import DjangoStore
from outbox_sqlalchemy import Inbox, NoRetry, OutboxBroker, SqlAlchemyStore
from tests.databases import execute, plain, with_driver
from tests.django_databases import added_database
from tests.places import running, until
from tests.security.conftest import Guarded

ONE = UUID("0197a3c0-0000-7000-8000-000000000001")


@pytest.fixture(params=["asyncpg", "psycopg"])
async def publisher(request: pytest.FixtureRequest, guarded: Guarded) -> AsyncIterator[OutboxBroker]:
    async with brokers(guarded, guarded.publisher, request.param, insert_only=True) as broker:
        yield broker


@asynccontextmanager
async def brokers(guarded: Guarded, url: URL, driver: str = "asyncpg", **options: bool) -> AsyncIterator[OutboxBroker]:
    engine = create_async_engine(with_driver(url, driver))
    yield OutboxBroker(engine, outbox_table=guarded.tables, logger=None, **options)
    await engine.dispose()


def rows(guarded: Guarded, columns: str, table: str = "outbox") -> list[tuple[object, ...]]:
    return execute(guarded.owner, f"SELECT {columns} FROM mail.{table} ORDER BY id")


@pytest.fixture
def store(guarded: Guarded) -> Iterator[DjangoStore]:
    with added_database("guarded", guarded.publisher):
        yield DjangoStore("guarded", guarded.names, insert_only=True)


# Publisher


async def test_a_publisher_publishes_in_its_transaction(guarded: Guarded, publisher: OutboxBroker) -> None:
    async with AsyncSession(publisher.engine) as session, session.begin():
        assert await publisher.publish("a", "orders", session=session, priority=3, key="k") is None
        assert await publisher.publish_batch("b", "c", queue="orders", session=session) == [None, None]
        assert await publisher.publish("d", "orders", session=session, activate_in=timedelta(hours=1)) is None

    assert rows(guarded, "payload") == [(b"a",), (b"b",), (b"c",), (b"d",)]


async def test_a_publisher_with_a_synchronous_session(guarded: Guarded) -> None:
    engine = create_engine(with_driver(guarded.publisher, "psycopg"))
    broker = OutboxBroker(outbox_table=guarded.tables, logger=None, insert_only=True)
    with Session(engine) as session, session.begin():
        assert broker.publish_sync("a", "orders", session=session) is None
    engine.dispose()

    assert rows(guarded, "payload") == [(b"a",)]


def test_a_publisher_with_django(guarded: Guarded, store: DjangoStore) -> None:
    with atomic(using="guarded"):
        assert store.insert_sync([compose("a", "orders"), compose("b", "orders")], "guarded") == [None, None]
    store.connection("guarded").close()

    assert rows(guarded, "payload") == [(b"a",), (b"b",)]


async def test_a_timer_and_a_message_id_that_are_there_are_ignored(guarded: Guarded, publisher: OutboxBroker) -> None:
    for _ in range(2):
        await publisher.publish("reminder", "orders", timer_id="t")
        await publisher.publish("order", "orders", message_id=ONE)

    assert rows(guarded, "payload") == [(b"reminder",), (b"order",)]


@pytest.mark.parametrize("conflict", ["extend", "replace"])
async def test_a_timer_that_would_be_changed_is_refused_and_the_transaction_goes_on(
    guarded: Guarded, publisher: OutboxBroker, conflict: str
) -> None:
    async with AsyncSession(publisher.engine) as session, session.begin():
        with pytest.raises(InvalidMessage, match=f"timer_conflict='{conflict}' looks at the timer that is there"):
            await publisher.publish("t", "orders", session=session, timer_id="t", timer_conflict=conflict)
        await publisher.publish("a", "orders", session=session)

    assert rows(guarded, "payload") == [(b"a",)]


async def test_who_may_only_insert_and_did_not_say_so_is_told(guarded: Guarded) -> None:
    async with brokers(guarded, guarded.publisher) as broker:
        with pytest.raises(NoPermission, match=r"permission denied for table outbox; .*publishes with insert_only"):
            await broker.publish("a", "orders")


def test_django_tells_it_too(guarded: Guarded, store: DjangoStore) -> None:
    with pytest.raises(NoPermission, match="permission denied for table outbox"):
        DjangoStore("guarded", guarded.names).insert_sync([compose("a", "orders")], "guarded")
    store.connection("guarded").close()


@pytest.mark.parametrize(
    "statement",
    [
        "SELECT payload FROM mail.outbox",
        "SELECT id FROM mail.outbox",
        "UPDATE mail.outbox SET payload = 'x'",
        "DELETE FROM mail.outbox",
        "TRUNCATE mail.outbox",
        "INSERT INTO mail.outbox (queue, payload, attempts_count) VALUES ('orders', 'x', 99)",
        "INSERT INTO mail.outbox (queue, payload, leased_until) VALUES ('orders', 'x', 'infinity')",
        "INSERT INTO mail.outbox (queue, payload, created_at) VALUES ('orders', 'x', '2001-01-01')",
        "INSERT INTO mail.outbox_dlq (queue, payload, failure_reason) VALUES ('orders', 'x', 'rejected')",
        "SELECT * FROM mail.outbox_dlq",
        "SELECT * FROM mail.outbox_archive",
        "INSERT INTO mail.outbox_queues (queue, paused_at) VALUES ('orders', now())",
        "CREATE TABLE mail.mine (id int)",
    ],
)
def test_a_publisher_may_not(guarded: Guarded, statement: str) -> None:
    assert_denied(guarded.publisher, statement)


def assert_denied(role: URL, statement: str) -> None:
    with psycopg.connect(plain(role)) as connection, pytest.raises(psycopg.errors.InsufficientPrivilege):
        connection.execute(statement)  # type: ignore[call-overload]  # the test's own SQL


# Worker


@pytest.mark.parametrize("driver", ["asyncpg", "psycopg"])
async def test_a_worker_wakes_up_handles_retries_buries_and_archives(guarded: Guarded, driver: str) -> None:
    seen: list[str] = []
    async with (
        brokers(guarded, guarded.publisher, driver, insert_only=True) as publisher,
        brokers(guarded, guarded.worker, driver) as worker,
    ):

        @worker.subscriber("orders", max_fetch_interval=60, retry_strategy=NoRetry(), max_workers=2)
        async def handle(body: str) -> None:
            seen.append(body)
            if body == "bad":
                raise ValueError(body)

        async with running(worker):
            for number, body in enumerate(("good", "bad", "good"), start=1):
                await publisher.publish(body, "orders")
                await until(lambda: len(seen), number)
            await until(lambda: rows(guarded, "failure_reason", "outbox_dlq"), [("retry_terminal",)])
            await until(lambda: rows(guarded, "payload", "outbox_archive"), [(b"good",), (b"good",)])

    assert rows(guarded, "id") == []


async def test_a_worker_retries_snoozes_extends_and_gives_back(guarded: Guarded) -> None:
    execute(guarded.owner, "INSERT INTO mail.outbox (queue, payload) SELECT 'orders', 'x' FROM generate_series(1, 4)")
    engine = create_async_engine(with_driver(guarded.worker, "asyncpg"))
    link = await SqlAlchemyStore(engine, guarded.names).connect()
    await link.arm(["orders"])
    await link.disarm()
    deliveries = await link.claim([Want(Band("orders"), 9)], total=9, lease=30.0)
    assert await link.begin(deliveries[0])
    assert len(await link.extend(deliveries, 30.0)) == 4
    outcomes = [Ack(), Retry(1.0), Release(), DeadLetter("rejected", "no")]
    settled = await link.settle(
        [Settlement(one, outcome) for one, outcome in zip(deliveries, outcomes, strict=True)], worker="w1"
    )
    assert len(settled) == 4
    assert (await link.survey(["orders"])).paused == frozenset()
    await link.close()
    await engine.dispose()


async def test_without_other_tables_a_worker_parks_what_is_dead(guarded: Guarded) -> None:
    execute(guarded.owner, "INSERT INTO mail.outbox (queue, payload) VALUES ('orders', 'x')")
    alone = replace(guarded.names, dead_letters=None, archive=None, queues=None)
    engine = create_async_engine(with_driver(guarded.worker, "asyncpg"))
    link = await SqlAlchemyStore(engine, alone).connect()
    (delivery,) = await link.claim([Want(Band("orders"), 9)], total=9, lease=30.0)
    assert await link.settle([Settlement(delivery, DeadLetter("rejected", "no"))], worker="w1") == {delivery.id}
    await link.close()
    await engine.dispose()

    operators = create_async_engine(with_driver(guarded.operator, "asyncpg"))
    store = SqlAlchemyStore(operators, alone)
    assert (
        await store.redrive(queue=None, key=None, ids=None, reason=None, limit=None, dry_run=False, session=None) == 1
    )
    await operators.dispose()


@pytest.mark.parametrize(
    "statement",
    [
        "INSERT INTO mail.outbox (queue, payload) VALUES ('orders', 'forged')",
        "UPDATE mail.outbox SET payload = 'x'",
        "UPDATE mail.outbox SET queue = 'payments'",
        "SELECT * FROM mail.outbox_dlq",
        "DELETE FROM mail.outbox_dlq",
        "SELECT * FROM mail.outbox_archive",
        "UPDATE mail.outbox_queues SET paused_at = now()",
        "TRUNCATE mail.outbox",
    ],
)
def test_a_worker_may_not(guarded: Guarded, statement: str) -> None:
    assert_denied(guarded.worker, statement)


async def test_a_worker_that_also_publishes_is_granted_both(guarded: Guarded) -> None:
    both = f'"{guarded.worker.username}"'
    async with brokers(guarded, guarded.worker, insert_only=True) as broker:
        with pytest.raises(NoPermission):
            await broker.publish("a", "orders")
        for statement in grant_statements(guarded.names, Roles(publisher=guarded.worker.username)):
            execute(guarded.owner, statement)
        try:
            await broker.publish("a", "orders")
        finally:
            execute(guarded.owner, f"REVOKE INSERT ON mail.outbox FROM {both}")


async def test_a_worker_handles_keys_in_order_and_halts_them(guarded: Guarded) -> None:
    seen: list[str] = []
    async with (
        brokers(guarded, guarded.publisher, insert_only=True) as publisher,
        brokers(guarded, guarded.worker) as worker,
    ):

        @worker.subscriber("orders", on_dead_letter="halt", retry_strategy=NoRetry())
        async def handle(body: str) -> None:
            seen.append(body)
            if body == "bad":
                raise ValueError(body)

        await publisher.publish_batch("good", "bad", "waits", queue="orders", key="k")
        async with running(worker):
            await until(lambda: rows(guarded, "payload, held_key, failure_reason"), HALTED)

    assert seen == ["good", "bad"]


HALTED = [(b"bad", "k", "retry_terminal"), (b"waits", None, None)]


# Operator


@pytest.fixture(params=["asyncpg", "psycopg"])
def operate(request: pytest.FixtureRequest, guarded: Guarded, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Runs `outbox COMMAND` as the operator; what it says."""

    def run(command: str, *arguments: str) -> str:
        url = with_driver(guarded.operator, request.param)
        code = main([command, url, *arguments, "--schema", "mail"])
        said = capsys.readouterr()
        assert (code, said.err) == (0, ""), said.err
        return said.out

    return run


def test_an_operator_has_every_command(guarded: Guarded, operate: Callable[..., str]) -> None:
    execute(
        guarded.owner,
        "INSERT INTO mail.outbox_dlq (queue, key, payload, failure_reason) "
        "VALUES ('orders', 'a', 'x', 'rejected'), ('orders', 'b', 'x', 'rejected'), ('orders', 'c', 'x', 'rejected')",
    )
    execute(
        guarded.owner,
        "INSERT INTO mail.outbox (queue, key, held_key, payload, failure_reason, last_attempt_at) "
        "VALUES ('mails', 'd', 'd', 'x', 'rejected', now()), ('mails', 'e', 'e', 'x', 'rejected', now())",
    )
    dead = dict(rows(guarded, "key, id", "outbox_dlq"))

    assert "orders" in operate("stats")
    assert operate("list") != "no messages\n"
    assert operate("list", "--dead") != "no dead letters\n"
    assert "dead letter" in operate("show", str(dead["b"]))
    assert operate("redrive", "--dry-run") == "5 dead letters would be put back\n"
    assert operate("redrive", "--queue", "orders", "--key", "a") == "1 dead letter put back\n"
    assert operate("redrive", "--id", str(dead["b"])) == "1 dead letter put back\n"
    assert operate("redrive", "--queue", "mails", "--key", "d") == "1 dead letter put back\n"
    assert operate("release", "mails", "e") == "e goes on\n"
    forever = ("--older-than", "0", "--dead-letter-retention", "0")
    assert operate("purge", "--inbox", *forever) == "0 received messages deleted\n"
    assert operate("purge", "--older-than", "0") == "2 dead letters deleted\n"
    assert operate("pause", "orders") == "orders is paused\n"
    assert operate("resume", "orders") == "orders goes on\n"
    assert "fit" in operate("validate")
    assert rows(guarded, "key, held_key") == [("d", None), ("a", None), ("b", None)]


async def test_an_operator_releases_a_key_where_there_are_no_dead_letters(guarded: Guarded) -> None:
    execute(
        guarded.owner,
        "INSERT INTO mail.outbox (queue, key, held_key, payload, failure_reason) VALUES ('q', 'k', 'k', 'x', 'rejected')",
    )
    engine = create_async_engine(with_driver(guarded.operator, "asyncpg"))
    store = SqlAlchemyStore(engine, replace(guarded.names, dead_letters=None))
    assert await store.release_key("q", "k", None)
    await engine.dispose()

    assert rows(guarded, "held_key, failure_reason") == [(None, "rejected")]


async def test_an_operator_looks_redrives_purges_and_pauses(guarded: Guarded) -> None:
    execute(
        guarded.owner,
        "INSERT INTO mail.outbox_dlq (queue, payload, failure_reason, failed_at) "
        "SELECT 'orders', 'x', 'rejected', now() - interval '1 hour' FROM generate_series(1, 3)",
    )
    async with brokers(guarded, guarded.operator) as broker:
        await broker.validate_schema()
        assert await broker.redrive(limit=1, dry_run=True) == 1
        assert await broker.redrive(limit=1) == 1
        assert await broker.purge_dead_letters(timedelta(minutes=1)) == 2
        await broker.pause("orders")
        assert (await broker.stats())["orders"].paused
        await broker.resume("orders")
        assert [message.queue for message in await broker.fetch_unprocessed()] == ["orders"]


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE mail.outbox SET payload = 'x'",
        "UPDATE mail.outbox_dlq SET payload = 'x'",
        "INSERT INTO mail.outbox_dlq (queue, payload, failure_reason, worker) VALUES ('orders', 'x', 'rejected', 'w')",
        "SELECT * FROM mail.outbox_archive",
        "TRUNCATE mail.outbox",
        "TRUNCATE mail.outbox_dlq",
    ],
)
def test_an_operator_may_not(guarded: Guarded, statement: str) -> None:
    assert_denied(guarded.operator, statement)


# Receiver


async def test_a_receiver_receives_and_forgets_nothing(guarded: Guarded) -> None:
    inbox = Inbox(guarded.tables, dead_letter_retention=timedelta(0))
    engine = create_async_engine(with_driver(guarded.receiver, "asyncpg"))
    for expected in (True, False):
        async with AsyncSession(engine) as session, session.begin():
            assert await inbox.receive("m1", "billing", session=session) is expected

    with pytest.raises(NoPermission, match="outbox_inbox"):
        await inbox.purge(engine, older_than=timedelta(0))
    await engine.dispose()
    assert rows(guarded, "consumer, message_id", "outbox_inbox") == [("billing", "m1")]


async def test_an_operator_purges_the_inbox_and_receives_nothing(guarded: Guarded) -> None:
    execute(guarded.owner, "INSERT INTO mail.outbox_inbox (consumer, message_id) VALUES ('billing', 'm1')")
    inbox = Inbox(guarded.tables, dead_letter_retention=timedelta(0))
    engine = create_async_engine(with_driver(guarded.operator, "asyncpg"))

    assert await inbox.purge(engine, older_than=timedelta(0)) == 1
    async with AsyncSession(engine) as session:
        with pytest.raises(NoPermission, match="outbox_inbox"):
            await inbox.receive("m1", "billing", session=session)
    await engine.dispose()
