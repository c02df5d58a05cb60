"""`Inbox` on sessions and connections: what is committed with what, what is refused, and how it is purged."""

from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import suppress
from datetime import timedelta
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import Column, Integer, MetaData, String, Table, func, insert, select, text, update
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session

from outbox_core.errors import (
    InvalidMessage,
    MissingTable,
    NoTransaction,
    OptionError,
    OutboxError,
    SchemaMismatch,
    WrongType,
)
from outbox_sqlalchemy import Inbox, make_inbox_table, make_outbox_tables
from tests.places import Place, statements_on

MESSAGE_ID = UUID("0197a3c0-0000-7000-8000-000000000001")
DAY = timedelta(days=1)

metadata = MetaData()
received = make_inbox_table(metadata)
payments = Table("payments", metadata, Column("id", Integer, primary_key=True), Column("of", String(255)))


class Abort(Exception):
    """What makes a test's transaction roll back."""


@pytest.fixture
async def elsewhere(fresh_either: Place) -> AsyncIterator[Place]:
    """A database with an inbox and a handler's own table, whose outbox is of no interest."""
    metadata.create_all(fresh_either.sync_engine)
    yield fresh_either
    if fresh_either.is_postgresql:
        metadata.drop_all(fresh_either.sync_engine)


async def pay(place: Place, message_id: str | UUID, consumer: str = "billing") -> bool:
    """A handler: it receives, and writes only if that says so."""
    async with AsyncSession(place.engine) as session, session.begin():
        if not await Inbox(received).receive(message_id, consumer, session=session):
            return False
        await session.execute(insert(payments).values(of=str(message_id)))
        return True


def paid(place: Place) -> list[str]:
    return [row.of for row in place.rows(payments)]


async def test_the_handlers_writes_happen_once(elsewhere: Place) -> None:
    assert [await pay(elsewhere, MESSAGE_ID) for _ in range(3)] == [True, False, False]

    assert paid(elsewhere) == [str(MESSAGE_ID)]
    assert [(row.consumer, row.message_id) for row in elsewhere.rows(received)] == [("billing", str(MESSAGE_ID))]


async def test_a_uuid_and_its_text_are_one_message(elsewhere: Place) -> None:
    assert await pay(elsewhere, MESSAGE_ID)
    assert not await pay(elsewhere, str(MESSAGE_ID))


async def test_writes_that_are_rolled_back_take_the_record_with_them(elsewhere: Place) -> None:
    with suppress(Abort):
        async with AsyncSession(elsewhere.engine) as session, session.begin():
            assert await Inbox(received).receive("m1", "billing", session=session)
            raise Abort

    assert await pay(elsewhere, "m1")


async def test_a_session_that_is_never_committed_has_received_nothing(elsewhere: Place) -> None:
    async with AsyncSession(elsewhere.engine) as session:
        assert await Inbox(received).receive("m1", "billing", session=session)

    assert elsewhere.rows(received) == []


async def test_a_savepoint_that_is_rolled_back_takes_the_record_with_it(fresh_postgres: Place) -> None:
    metadata.create_all(fresh_postgres.sync_engine)
    async with AsyncSession(fresh_postgres.engine) as session, session.begin():
        with suppress(Abort):
            async with session.begin_nested():
                assert await Inbox(received).receive("m1", "billing", session=session)
                raise Abort
        assert await Inbox(received).receive("m1", "billing", session=session)


async def test_a_connection_is_as_good_as_a_session(elsewhere: Place) -> None:
    async with elsewhere.engine.begin() as connection:
        assert await Inbox(received).receive("m1", "billing", session=connection)
    async with elsewhere.engine.begin() as connection:
        assert not await Inbox(received).receive("m1", "billing", session=connection)


def test_synchronous_code_receives_too(sync_elsewhere: Place) -> None:
    inbox = Inbox(received)
    with Session(sync_elsewhere.sync_engine) as session, session.begin():
        assert inbox.receive_sync("m1", "billing", session=session)
    with sync_elsewhere.sync_engine.begin() as connection:
        assert not inbox.receive_sync("m1", "billing", session=connection)


@pytest.fixture
def sync_elsewhere(sync_place: Place) -> Iterator[Place]:
    metadata.create_all(sync_place.sync_engine)
    yield sync_place
    metadata.drop_all(sync_place.sync_engine)


async def test_receiving_is_one_statement(elsewhere: Place) -> None:
    with statements_on(elsewhere.engine.sync_engine) as sent:
        async with elsewhere.engine.begin() as connection:
            await Inbox(received).receive("m1", "billing", session=connection)

    assert [statement.split()[0] for statement in sent] == ["INSERT"]


@pytest.mark.parametrize("level", ["REPEATABLE READ", "SERIALIZABLE"])
async def test_above_read_committed_a_duplicate_is_a_serialization_failure(fresh_postgres: Place, level: str) -> None:
    metadata.create_all(fresh_postgres.sync_engine)
    strict = fresh_postgres.engine.execution_options(isolation_level=level)
    inbox = Inbox(received)
    async with AsyncSession(strict) as session:
        await session.execute(select(1))  # the snapshot is older than the first delivery
        await session.execute(select(payments))
        assert await pay(fresh_postgres, "m1")

        with pytest.raises(DBAPIError) as refused:
            await inbox.receive("m1", "billing", session=session)
        await session.rollback()

        assert not await inbox.receive("m1", "billing", session=session)

    assert getattr(refused.value.orig, "sqlstate", None) == "40001"


async def test_an_inbox_may_be_part_of_the_outboxs_tables(fresh_either: Place) -> None:
    tables = make_outbox_tables(own := MetaData(), "shop", inbox=True)
    own.create_all(fresh_either.sync_engine)
    await fresh_either.broker(outbox_table=tables).validate_schema()

    async with fresh_either.engine.begin() as connection:
        assert await Inbox(tables).receive("m1", "billing", session=connection)

    assert tables.inbox is not None
    assert len(fresh_either.rows(tables.inbox)) == 1


async def test_an_inbox_may_be_in_a_schema(fresh_postgres: Place) -> None:
    fresh_postgres.run("CREATE SCHEMA shop")
    table = make_inbox_table(own := MetaData(), "seen", schema="shop")
    own.create_all(fresh_postgres.sync_engine)

    async with fresh_postgres.engine.begin() as connection:
        assert await Inbox(table).receive("m1", "billing", session=connection)

    assert len(fresh_postgres.rows(table)) == 1


# Refused


async def test_a_connection_in_autocommit_is_refused(fresh_postgres: Place) -> None:
    metadata.create_all(fresh_postgres.sync_engine)
    engine = fresh_postgres.engine.execution_options(isolation_level="AUTOCOMMIT")
    async with engine.connect() as connection:
        with pytest.raises(
            NoTransaction, match=r"^the connection is in AUTOCOMMIT, so the message would not be atomic"
        ):
            await Inbox(received).receive("m1", "billing", session=connection)

    assert fresh_postgres.rows(received) == []


async def test_what_is_no_session_is_refused(elsewhere: Place) -> None:
    inbox = Inbox(received)
    with pytest.raises(WrongType, match=r"^session must be that of the handler's own writes, got NoneType; both are"):
        await inbox.receive("m1", "billing", session=None)
    with pytest.raises(WrongType, match=r"^session must be an AsyncSession or AsyncConnection, got AsyncEngine"):
        await inbox.receive("m1", "billing", session=elsewhere.engine)
    with Session(elsewhere.sync_engine) as session, pytest.raises(WrongType, match=r"or receive_sync\(\.\.\.\)"):
        await inbox.receive("m1", "billing", session=session)
    async with AsyncSession(elsewhere.engine) as session, elsewhere.engine.connect() as connection:
        for one in (session, connection):
            with pytest.raises(WrongType, match=r"use await publish\(\.\.\.\) or receive\(\.\.\.\)"):
                inbox.receive_sync("m1", "billing", session=one)


async def test_a_bad_id_leaves_the_transaction_usable(elsewhere: Place) -> None:
    bad: Sequence[tuple[Any, Any]] = [("", "billing"), ("m" * 256, "billing"), (7, "billing"), ("m1", ""), ("m1", None)]
    with statements_on(elsewhere.engine.sync_engine) as sent:
        async with elsewhere.engine.begin() as connection:
            for message_id, consumer in bad:
                with pytest.raises(OutboxError):
                    await Inbox(received).receive(message_id, consumer, session=connection)
            await connection.execute(insert(payments).values(of="me"))

    assert len(sent) == 1
    assert paid(elsewhere) == ["me"]


async def test_a_missing_table_is_named(fresh_either: Place) -> None:
    async with fresh_either.engine.connect() as connection:
        with pytest.raises(SchemaMismatch, match=r"^seen does not fit .* create or migrate it first$"):
            await Inbox(make_inbox_table(MetaData(), "seen")).receive("m1", "billing", session=connection)


def test_what_is_no_inbox_table_is_refused() -> None:
    with pytest.raises(WrongType, match=r"^inbox_table must be a Table made by make_inbox_table, got str"):
        Inbox("outbox_inbox")  # type: ignore[arg-type]  # the point
    with pytest.raises(MissingTable, match=r"make them with make_outbox_tables\(metadata, inbox=True\)"):
        Inbox(make_outbox_tables(MetaData()))


def test_a_retention_below_that_of_the_dead_letters_is_refused_at_once() -> None:
    with pytest.raises(OptionError, match=r"got 7 days and 30 days"):
        Inbox(received, retention=7 * DAY, dead_letter_retention=30 * DAY)


# Purging


def thirty_days_pass(place: Place) -> None:
    """What has been received was received 30 days and a little ago."""
    earlier = text("received_at - interval '30 days 1 minute'")
    if not place.is_postgresql:
        earlier = func.strftime("%Y-%m-%d %H:%M:%f000", received.c.received_at, "-2592060 seconds")  # type: ignore[assignment]
    with place.sync_engine.begin() as connection:
        connection.execute(update(received).values(received_at=earlier))


async def test_what_is_older_than_the_retention_is_forgotten(elsewhere: Place) -> None:
    inbox = Inbox(received, retention=30 * DAY, dead_letter_retention=14 * DAY)
    for number in range(3):
        await pay(elsewhere, f"old {number}")
    thirty_days_pass(elsewhere)
    await pay(elsewhere, "new")

    assert await inbox.purge(elsewhere.engine) == 3
    assert await inbox.purge(elsewhere.engine) == 0
    assert [row.message_id for row in elsewhere.rows(received)] == ["new"]


async def test_a_purge_works_in_batches(elsewhere: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("outbox_sqlalchemy.inbox.PURGED_AT_ONCE", 2)
    inbox = Inbox(received, retention=30 * DAY, dead_letter_retention=14 * DAY)
    for number in range(5):
        await pay(elsewhere, f"old {number}")
    thirty_days_pass(elsewhere)
    with statements_on(elsewhere.engine.sync_engine) as sent:
        assert await inbox.purge(elsewhere.engine) == 5

    assert len(sent) == 3
    assert elsewhere.rows(received) == []


def test_synchronous_code_purges_too(sync_elsewhere: Place) -> None:
    inbox = Inbox(received, retention=30 * DAY, dead_letter_retention=14 * DAY)
    with sync_elsewhere.sync_engine.begin() as connection:
        inbox.receive_sync("old", "billing", session=connection)
    thirty_days_pass(sync_elsewhere)

    assert inbox.purge_sync(sync_elsewhere.sync_engine, older_than=31 * DAY) == 0
    assert inbox.purge_sync(sync_elsewhere.sync_engine) == 1


async def test_a_purge_below_the_retention_of_dead_letters_is_refused(elsewhere: Place) -> None:
    await pay(elsewhere, "m1")
    inbox = Inbox(received, dead_letter_retention=14 * DAY)

    with pytest.raises(
        OptionError, match=r"^older_than must not be shorter than dead_letter_retention, got 13 days and 14"
    ):
        await inbox.purge(elsewhere.engine, older_than=13 * DAY)
    with pytest.raises(OptionError, match=r"^this inbox is kept for ever"):
        await inbox.purge(elsewhere.engine)

    assert len(elsewhere.rows(received)) == 1


async def test_a_purge_asks_for_an_engine(elsewhere: Place) -> None:
    inbox = Inbox(received, dead_letter_retention=DAY)
    with pytest.raises(WrongType, match=r"^engine must be an AsyncEngine, got Engine; use purge_sync"):
        await inbox.purge(elsewhere.sync_engine, older_than=DAY)  # type: ignore[arg-type]  # the point
    with pytest.raises(WrongType, match=r"^engine must be an Engine, got AsyncEngine; use await purge"):
        inbox.purge_sync(elsewhere.engine, older_than=DAY)  # type: ignore[arg-type]  # the point


async def test_an_error_of_an_id_is_a_value_error() -> None:
    with pytest.raises(ValueError, match=r"^message_id must not be empty") as caught:
        await Inbox(received).receive("", "billing", session=None)

    assert isinstance(caught.value, InvalidMessage)
