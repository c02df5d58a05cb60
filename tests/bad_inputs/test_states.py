"""The right call at the wrong time: in a transaction that has failed, on another event loop, in a forked process."""

import asyncio
import multiprocessing
import os
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session

from outbox_core.errors import NoTransaction, NotStarted
from outbox_sqlalchemy import OutboxBroker
from tests.places import Place

FAILED = (
    "the transaction has failed already, so nothing was written; roll it back, or use a savepoint "
    "(session.begin_nested()) around what may fail"
)


@pytest.mark.parametrize("place", ["asyncpg", "psycopg"], indirect=True)
async def test_a_transaction_that_has_failed_is_named(place: Place) -> None:
    async with AsyncSession(place.engine) as session:
        with pytest.raises(DBAPIError):
            await session.execute(text("SELECT 1 / 0"))
        with pytest.raises(NoTransaction) as refused:
            await place.broker().publish(1, "orders", session=session)
        await session.rollback()
        await place.broker().publish(2, "orders", session=session)
        await session.commit()

    assert str(refused.value) == FAILED
    assert [row.payload for row in place.rows()] == [b"2"]


@pytest.mark.parametrize("place", ["asyncpg", "psycopg"], indirect=True)
async def test_what_may_fail_in_a_savepoint_leaves_the_transaction_usable(place: Place) -> None:
    async with AsyncSession(place.engine) as session, session.begin():
        with pytest.raises(DBAPIError):
            async with session.begin_nested():
                await session.execute(text("SELECT 1 / 0"))
        await place.broker().publish(1, "orders", session=session)

    assert [row.payload for row in place.rows()] == [b"1"]


@pytest.mark.parametrize("sync_place", ["asyncpg"], indirect=True)
def test_so_is_one_of_synchronous_code(sync_place: Place) -> None:
    with Session(sync_place.sync_engine) as session:
        with pytest.raises(DBAPIError):
            session.execute(text("SELECT 1 / 0"))
        with pytest.raises(NoTransaction, match=r"^the transaction has failed already"):
            sync_place.broker().publish_sync(1, "orders", session=session)


def consuming(place: Place) -> OutboxBroker:
    broker = place.broker()

    @broker.subscriber("orders")
    async def handle(body: int) -> None: ...

    return broker


async def start(broker: OutboxBroker) -> str:
    try:
        await broker.start()
    except NotStarted as refused:
        return str(refused)
    return "started"


async def test_a_running_broker_does_not_start_on_another_event_loop(place: Place) -> None:
    broker = consuming(place)
    async with broker:
        await broker.start()
        said = await asyncio.to_thread(asyncio.run, start(broker))

    assert said == (
        f"this broker was started on another event loop, in process {os.getpid()}, and this is {os.getpid()}; stop it "
        "there before you start it here, or make one for each"
    )


def start_in_child(broker: OutboxBroker, answers: Any) -> None:
    answers.put((os.getpid(), asyncio.run(start(broker))))


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded, use of fork:DeprecationWarning")
@pytest.mark.parametrize("place", ["asyncpg"], indirect=True)
async def test_a_broker_that_was_running_when_its_process_forked_does_not_start(place: Place) -> None:
    forking = multiprocessing.get_context("fork")
    answers = forking.SimpleQueue()
    broker = consuming(place)
    async with broker:
        await broker.start()
        child = forking.Process(target=start_in_child, args=(broker, answers))
        child.start()
        await asyncio.to_thread(child.join, 10)
        pid, said = answers.get()

    assert f"in process {os.getpid()}, and this is {pid}; stop it there" in said


def test_a_broker_that_has_stopped_starts_on_another_event_loop(idle_place: Place) -> None:
    async def life(broker: OutboxBroker) -> bool:
        async with broker:
            await broker.start()
            running = broker.running
        await idle_place.engine.dispose()
        return running

    broker = consuming(idle_place)

    assert [asyncio.run(life(broker)) for _ in range(2)] == [True, True]
