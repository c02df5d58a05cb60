"""With an archive table, what was handled is kept instead of deleted."""

import asyncio

import pytest
from faststream import AckPolicy
from sqlalchemy import MetaData, Table, select
from sqlalchemy.ext.asyncio import AsyncEngine

from outbox_sqlalchemy import OutboxBroker, OutboxTables, make_outbox_tables

metadata = MetaData()
tables = make_outbox_tables(metadata, archive=True)


@pytest.fixture(autouse=True)
async def created(any_engine: AsyncEngine) -> None:
    async with any_engine.begin() as connection:
        await connection.run_sync(metadata.create_all)


async def test_a_handled_message_moves_to_the_archive_with_its_identity(any_engine: AsyncEngine) -> None:
    broker, done = OutboxBroker(any_engine, outbox_table=tables), asyncio.Event()

    @broker.subscriber("orders")
    async def handle(body: str) -> None:
        done.set()

    await broker.publish("hello", "orders", message_id="0198c0de-0000-7000-8000-000000000001", key="k")
    async with broker, asyncio.timeout(5):
        await broker.start()
        await done.wait()

    async with any_engine.connect() as connection:
        rows = (await connection.execute(select(archive_of(tables)))).mappings().all()
    (row,) = rows
    assert str(row["message_id"]) == "0198c0de-0000-7000-8000-000000000001"
    assert (row["queue"], row["key"], row["payload"]) == ("orders", "k", b"hello")
    assert row["archived_at"] is not None
    assert await broker.fetch_unprocessed() == []


async def test_a_dead_letter_does_not_move_to_the_archive(any_engine: AsyncEngine) -> None:
    broker, failed = OutboxBroker(any_engine, outbox_table=tables, logger=None), asyncio.Event()

    @broker.subscriber("orders", ack_policy=AckPolicy.REJECT_ON_ERROR)
    async def handle(body: str) -> None:
        failed.set()
        raise ValueError("no")

    await broker.publish("hello", "orders")
    async with broker, asyncio.timeout(5):
        await broker.start()
        await failed.wait()

    async with any_engine.connect() as connection:
        assert (await connection.execute(select(archive_of(tables)))).all() == []
    assert (await broker.stats())["orders"].dead == 1


def archive_of(tables: OutboxTables) -> Table:
    assert tables.archive is not None
    return tables.archive
