"""`TestOutboxBroker` and transactions: a handler runs once the session that was published on has committed."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from unittest.mock import AsyncMock, MagicMock, create_autospec

import pytest
from anyio import to_thread
from anyio.from_thread import start_blocking_portal
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import Session

from outbox_core.errors import CannotEncode, NoTransaction, NotStarted, WrongType
from outbox_core.faststream import OutboxBroker as CoreBroker
from outbox_core.memory import MemoryStore
from outbox_sqlalchemy import OutboxBroker, OutboxResponse, TestOutboxBroker
from tests.places import Place, until


class Abort(Exception):
    """What makes a block roll back."""


def called_with(handler: object) -> list[object]:
    return [call.args[0] for call in handler.mock.call_args_list]  # type: ignore[attr-defined]


@pytest.fixture
def broker() -> OutboxBroker:
    """Without an engine: publishing on a session needs none."""
    return OutboxBroker(logger=None)


@pytest.fixture
async def session() -> AsyncIterator[AsyncSession]:
    """On a server that does not run: a test of handlers needs none."""
    async with AsyncSession(create_async_engine("postgresql+asyncpg://user:secret@127.0.0.1:1/nowhere")) as session:
        yield session


async def test_the_handler_has_run_when_the_block_is_left(broker: OutboxBroker, session: AsyncSession) -> None:
    @broker.subscriber("orders")
    async def handle(body: int) -> None:
        await asyncio.sleep(0)

    async with TestOutboxBroker(broker):
        async with session.begin():
            assert isinstance(await broker.publish(1, "orders", session=session), int)
            await broker.publish_batch(2, 3, queue="orders", session=session)
            await asyncio.sleep(0.01)
            handle.mock.assert_not_called()

        assert called_with(handle) == [1, 2, 3]


async def test_the_handler_has_run_when_the_commit_returns(broker: OutboxBroker, session: AsyncSession) -> None:
    @broker.subscriber("orders")
    async def handle(body: int) -> None: ...

    async with TestOutboxBroker(broker):
        await broker.publish(1, "orders", session=session)
        await session.commit()
        await broker.publish(2, "orders", session=session)
        await session.rollback()
        await broker.publish(3, "orders", session=session)

        handle.mock.assert_called_once_with(1)


async def test_the_handler_sees_what_was_committed(both: Place) -> None:
    both.run("CREATE TABLE IF NOT EXISTS written (body integer)", "DELETE FROM written")
    broker = both.broker()
    seen: list[list[int]] = []

    @broker.subscriber("orders")
    async def handle(body: int) -> None:
        async with AsyncSession(both.engine) as own:
            seen.append(list(await own.scalars(text("SELECT body FROM written"))))

    async with TestOutboxBroker(broker):
        async with AsyncSession(both.engine) as session, session.begin():
            await session.execute(text("INSERT INTO written VALUES (7)"))
            await broker.publish(1, "orders", session=session)
        assert seen == [[7]]

        async with both.engine.begin() as connection:
            await connection.execute(text("INSERT INTO written VALUES (8)"))
            await broker.publish(1, "orders", session=connection)
        assert seen == [[7], [7, 8]]

        with suppress(Abort):
            async with AsyncSession(both.engine) as session, session.begin():
                await session.execute(text("INSERT INTO written VALUES (9)"))
                await broker.publish(1, "orders", session=session)
                raise Abort
        with suppress(Abort):
            async with both.engine.begin() as connection:
                await broker.publish(1, "orders", session=connection)
                raise Abort
        assert seen == [[7], [7, 8]]
    assert both.rows() == []
    both.run("DROP TABLE written")


async def test_a_rollback_to_a_savepoint_takes_its_messages_back(place: Place) -> None:
    broker = place.broker()

    @broker.subscriber("orders")
    async def handle(body: int) -> None: ...

    async with TestOutboxBroker(broker):
        async with AsyncSession(place.engine) as session, session.begin():
            await broker.publish(1, "orders", session=session)
            with suppress(Abort):
                async with session.begin_nested():
                    await broker.publish(2, "orders", session=session)
                    raise Abort
            async with session.begin_nested():
                await broker.publish(3, "orders", session=session)

        assert called_with(handle) == [1, 3]


async def test_a_chain_waits_for_the_commit_of_each_handler(broker: OutboxBroker, session: AsyncSession) -> None:
    order: list[str] = []

    @broker.subscriber("orders")
    async def ship(body: int) -> OutboxResponse:
        own = AsyncSession(session.bind)
        await broker.publish(body, "mails", session=own)
        order.append("published")
        await own.commit()
        order.append("committed")
        async with own.begin():
            await broker.publish(body, "mails", session=own)
            await own.rollback()
        return OutboxResponse(body, queue="letters", session=session)

    @broker.subscriber("mails")
    async def mail(body: int) -> None:
        order.append("mailed")

    @broker.subscriber("letters")
    async def write(body: int) -> None:
        order.append("written")

    async with TestOutboxBroker(broker):
        await broker.publish(1, "orders")
        assert order == ["published", "mailed", "committed"]
        await session.commit()

    assert order == ["published", "mailed", "committed", "written"]


async def test_what_a_handler_raises_comes_out_of_the_commit(broker: OutboxBroker, session: AsyncSession) -> None:
    @broker.subscriber("orders")
    async def handle(body: int) -> None:
        if body < 0:
            raise ValueError(body)

    async with TestOutboxBroker(broker):
        await broker.publish(-1, "orders", session=session)
        with pytest.raises(ValueError, match="-1"):
            await session.commit()
        with pytest.raises(ValueError, match="-2"):
            async with session.begin():
                await broker.publish(-2, "orders", session=session)
        async with session.begin():
            await broker.publish(3, "orders", session=session)

        handle.mock.assert_called_with(3)


async def test_the_checks_of_production_fail_the_test(broker: OutboxBroker, session: AsyncSession) -> None:
    @broker.subscriber("orders")
    async def handle(body: int) -> None: ...

    async with TestOutboxBroker(broker):
        for stranger in (object(), "session", Session(), session.bind):
            with pytest.raises(WrongType):
                await broker.publish(1, "orders", session=stranger)
        with pytest.raises(NoTransaction):
            await broker.publish(1, "orders", session=AsyncSession())
        with pytest.raises(WrongType):
            broker.publish_sync(1, "orders", session=session)
        with pytest.raises(WrongType):
            broker.publish_sync(1, "orders", session=None)
        with pytest.raises(CannotEncode):
            await broker.publish(object(), "orders", session=session)
        await session.commit()

        handle.mock.assert_not_called()


async def test_a_mock_has_no_transaction_so_its_messages_are_handled_at_once(broker: OutboxBroker) -> None:
    @broker.subscriber("orders")
    async def handle(body: int) -> None: ...

    async with TestOutboxBroker(broker):
        await broker.publish(1, "orders", session=AsyncMock())
        await broker.publish(2, "orders", session=AsyncMock(spec=AsyncSession))
        await broker.publish(3, "orders", session=create_autospec(AsyncSession, instance=True))
        await broker.publish_batch(4, queue="orders", session=MagicMock())

        assert called_with(handle) == [1, 2, 3, 4]


async def test_a_broker_without_a_store_has_no_sessions() -> None:
    broker = CoreBroker(logger=None)

    @broker.subscriber("orders")
    async def handle(body: int) -> None: ...

    async with TestOutboxBroker(broker):
        await broker.publish(1, "orders")
        with pytest.raises(NotStarted):
            await broker.publish(2, "orders", session=object())

        handle.mock.assert_called_once_with(1)


async def test_the_memory_stores_transactions_count_too() -> None:
    store = MemoryStore()
    broker = CoreBroker(store, logger=None)

    @broker.subscriber("orders")
    async def handle(body: int) -> None: ...

    async with TestOutboxBroker(broker):
        async with store.transaction() as transaction:
            await broker.publish(1, "orders", session=transaction)
            handle.mock.assert_not_called()
        handle.mock.assert_called_once_with(1)
        with suppress(Abort), store.begin() as transaction:
            broker.publish_sync(2, "orders", session=transaction)
            raise Abort
        with store.begin() as transaction:
            broker.publish_sync(3, "orders", session=transaction)

        await until(lambda: called_with(handle), [1, 3])


# Synchronous sessions


async def test_in_a_thread_the_synchronous_commit_waits_for_the_handler(place: Place) -> None:
    broker = place.broker()
    loop = asyncio.get_running_loop()

    @broker.subscriber("orders")
    async def handle(body: int) -> None:
        assert asyncio.get_running_loop() is loop
        await asyncio.sleep(0.01)
        if body < 0:
            raise ValueError(body)

    def place_orders(first: int) -> None:
        with Session(place.sync_engine) as session:
            broker.publish_sync(first, "orders", session=session)
            handle.mock.assert_not_called()
            session.commit()
            handle.mock.assert_called_once_with(first)
            broker.publish_sync(0, "orders", session=session)
            session.rollback()
        with place.sync_engine.begin() as connection:
            broker.publish_batch_sync(first + 1, first + 2, queue="orders", session=connection)
        with pytest.raises(ValueError, match="-7"), place.sync_engine.begin() as connection:
            broker.publish_sync(-7, "orders", session=connection)
        assert called_with(handle) == [first, first + 1, first + 2, -7]

    for in_thread in (asyncio.to_thread, to_thread.run_sync):
        async with TestOutboxBroker(broker):
            await in_thread(place_orders, 10)  # type: ignore[operator]
    assert place.rows() == []


async def test_in_the_event_loops_thread_the_handler_runs_when_the_test_awaits(place: Place) -> None:
    broker = place.broker()

    @broker.subscriber("orders")
    async def handle(body: int) -> None:
        await asyncio.sleep(0)

    async with TestOutboxBroker(broker):
        with Session(place.sync_engine) as session:
            assert isinstance(broker.publish_sync(1, "orders", session=session), int)
            with pytest.raises(CannotEncode):
                broker.publish_sync(object(), "orders", session=session)
            session.commit()
            handle.mock.assert_not_called()
            broker.publish_sync(2, "orders", session=session)
            session.rollback()
        await handle.wait_call(5)

        handle.mock.assert_called_once_with(1)
    assert place.rows() == []


async def test_a_test_does_not_end_before_its_late_handlers(place: Place) -> None:
    broker = place.broker()
    done: list[int] = []

    @broker.subscriber("orders")
    async def handle(body: int) -> None:
        await asyncio.sleep(0.05)
        if body < 0:
            raise ValueError(body)
        done.append(body)
        with place.sync_engine.begin() as connection:
            broker.publish_sync(-body, "orders", session=connection)

    with pytest.raises(ValueError, match="-1"):  # noqa: PT012  the block's end is what raises
        async with TestOutboxBroker(broker):
            with place.sync_engine.begin() as connection:
                broker.publish_sync(1, "orders", session=connection)
    assert done == [1]


async def test_a_test_that_fails_does_not_wait_for_its_late_handlers(place: Place) -> None:
    broker = place.broker()

    @broker.subscriber("orders")
    async def handle(body: int) -> None:
        await asyncio.Event().wait()

    with pytest.raises(Abort):  # noqa: PT012  the block's end is what raises
        async with TestOutboxBroker(broker):
            with place.sync_engine.begin() as connection:
                broker.publish_sync(1, "orders", session=connection)
            await asyncio.sleep(0)
            raise Abort


async def test_a_loop_in_another_thread_publishes_in_memory_too(place: Place) -> None:
    """As under Starlette's TestClient, which blocks the test meanwhile."""
    broker = place.broker()

    @broker.subscriber("orders")
    async def handle(body: int) -> None: ...

    def publish(body: int) -> None:
        with place.sync_engine.begin() as connection:
            broker.publish_sync(body, "orders", session=connection)

    async def application() -> list[object]:
        publish(1)
        await to_thread.run_sync(publish, 2)
        await broker.publish(3, "orders")
        return called_with(handle)

    async with TestOutboxBroker(broker):
        with start_blocking_portal() as portal:
            assert portal.call(application) == [2, 3]
        await until(lambda: called_with(handle), [2, 3, 1])


async def test_the_synchronous_side_of_an_asynchronous_session_waits(
    broker: OutboxBroker, session: AsyncSession
) -> None:
    @broker.subscriber("orders")
    async def handle(body: int) -> None: ...

    async with TestOutboxBroker(broker):
        await session.run_sync(lambda sync: broker.publish_sync(1, "orders", session=sync))
        handle.mock.assert_not_called()
        await session.commit()

        handle.mock.assert_called_once_with(1)


async def test_a_synchronous_handler_publishes_on_a_synchronous_session(place: Place) -> None:
    broker = place.broker()

    @broker.subscriber("orders")
    def ship(body: int) -> OutboxResponse:
        with Session(place.sync_engine) as session, session.begin():
            broker.publish_sync(body, "mails", session=session)
        collect.mock.assert_called_once_with(body)
        return OutboxResponse(body + 1, queue="mails")

    @broker.subscriber("mails")
    async def collect(body: int) -> None: ...

    async with TestOutboxBroker(broker):
        await broker.publish(1, "orders")

        assert called_with(collect) == [1, 2]
