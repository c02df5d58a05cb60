"""`TransactionMiddleware(session_factory)`: the same transaction as `transactional=True`, in sessions of the user's own."""

from collections.abc import AsyncIterator
from typing import Any
from uuid import uuid4

import pytest
from faststream import AckPolicy, BaseMiddleware, FastStream
from sqlalchemy import create_engine, text
from sqlalchemy.ext.asyncio import AsyncSession, async_scoped_session, async_sessionmaker, create_async_engine
from sqlalchemy.orm import Session, sessionmaker

from outbox_core.errors import NoTransaction, OptionError, OutboxError, WrongDatabase, WrongType
from outbox_core.faststream import OutboxBroker as CoreBroker
from outbox_core.memory import MemoryStore
from outbox_sqlalchemy import (
    ConstantRetry,
    NoRetry,
    OutboxBroker,
    OutboxMessage,
    OutboxResponse,
    OutboxRouter,
    OutboxSession,
    TestOutboxBroker,
    TransactionMiddleware,
)
from tests.places import Place, running, until


class ShopSession(AsyncSession):
    """An application's own class."""


@pytest.fixture
async def shop(both: Place) -> AsyncIterator[async_sessionmaker[ShopSession]]:
    """An application's own factory, and a table of its handlers."""
    both.run("DROP TABLE IF EXISTS written", "CREATE TABLE written (body integer)")
    yield async_sessionmaker(both.engine, class_=ShopSession, expire_on_commit=False, info={"tenant": "a"})
    both.run("DROP TABLE written")


def written(place: Place) -> list[int]:
    with place.sync_engine.connect() as connection:
        return list(connection.execute(text("SELECT body FROM written")).scalars())


def queued(place: Place) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for row in place.rows():
        found.setdefault(row.queue, []).append(row.payload.decode())
    return found


async def write(session: AsyncSession, body: int) -> None:
    await session.execute(text("INSERT INTO written VALUES (:body)"), {"body": body})


async def test_writes_messages_and_the_end_of_the_message_are_one_commit(
    both: Place, shop: async_sessionmaker[ShopSession]
) -> None:
    broker = both.broker(middlewares=[TransactionMiddleware(shop)], require_transaction="error")
    seen: list[tuple[type, dict[Any, Any], bool]] = []

    @broker.publisher("replies")
    @broker.subscriber("orders", retry_strategy=ConstantRetry(delay_seconds=0.01))
    async def handle(body: int, message: OutboxMessage, session: OutboxSession) -> OutboxResponse:
        seen.append((type(session), session.info, message.session is session))
        await write(session, message.attempt)
        await broker.publish(message.attempt, "mails")
        if message.attempt == 1:
            raise ValueError("not yet")
        return OutboxResponse(message.attempt, queue="chosen")

    await broker.publish(7, "orders", reply_to="answers", standalone=True)
    async with running(broker):
        await until(lambda: written(both), [2])
        await broker.drained()

    assert seen == [(ShopSession, {"tenant": "a"}, True)] * 2
    assert queued(both) == {"mails": ["2"], "chosen": ["2"], "replies": ["2"], "answers": ["2"]}


async def test_a_lost_lease_takes_all_of_it_back(both: Place, shop: async_sessionmaker[ShopSession]) -> None:
    broker = both.broker(middlewares=[TransactionMiddleware(shop)])

    @broker.publisher("replies")
    @broker.subscriber("orders")
    async def handle(body: int, session: OutboxSession) -> OutboxResponse:
        both.run(f"UPDATE outbox SET acquired_token = '{uuid4().hex}'")  # another worker's
        await broker.publish(body, "mails")
        await write(session, body)
        return OutboxResponse(body, queue="chosen")

    await broker.publish(7, "orders", reply_to="answers")
    async with running(broker):
        await broker.drained()

    assert written(both) == []
    assert queued(both) == {"orders": ["7"]}


async def test_a_batch_is_one_transaction(both: Place, shop: async_sessionmaker[ShopSession]) -> None:
    broker = both.broker(middlewares=[TransactionMiddleware(shop)])

    @broker.subscriber("orders", batch=True, retry_strategy=NoRetry())
    async def handle(bodies: list[int], session: OutboxSession) -> None:
        for body in bodies:
            await write(session, body)

    await broker.publish_batch(1, 2, 3, queue="orders")
    async with running(broker):
        await broker.drained()

    assert written(both) == [1, 2, 3]


async def test_of_a_router_it_is_for_the_routers_handlers_alone(
    both: Place, shop: async_sessionmaker[ShopSession]
) -> None:
    router = OutboxRouter(middlewares=[TransactionMiddleware(shop)])
    broker = both.broker()
    sessions: dict[str, type] = {}

    @router.subscriber("inside")
    async def inside(body: int, message: OutboxMessage) -> None:
        sessions["inside"] = type(message.session)

    @broker.subscriber("outside")
    async def outside(body: int, message: OutboxMessage) -> None:
        sessions["outside"] = type(message.session)

    broker.include_router(router)
    await broker.publish(1, "inside")
    await broker.publish(1, "outside")
    async with running(broker):
        await broker.drained()

    assert sessions == {"inside": ShopSession, "outside": type(None)}


async def test_a_function_may_make_the_sessions(both: Place, shop: async_sessionmaker[ShopSession]) -> None:
    def tenants_session() -> AsyncSession:
        return shop(info={"tenant": "b"})

    broker = both.broker(middlewares=[TransactionMiddleware(tenants_session)])
    tenants: list[str] = []

    @broker.subscriber("orders")
    async def handle(body: int, session: OutboxSession) -> None:
        tenants.append(session.info["tenant"])
        await write(session, body)

    await broker.publish(7, "orders")
    async with running(broker):
        await broker.drained()

    assert (tenants, written(both)) == (["b"], [7])


async def test_a_function_that_makes_no_session_is_named(both: Place, shop: async_sessionmaker[ShopSession]) -> None:
    broker = both.broker(middlewares=[TransactionMiddleware(lambda: "session")])  # type: ignore[arg-type, return-value]  # refused

    @broker.subscriber("orders", retry_strategy=NoRetry())
    async def handle(body: int) -> None: ...

    await broker.publish(7, "orders")
    async with running(broker):
        await broker.drained()

    (letter,) = both.rows(both.tables.dead_letters)
    assert letter.last_exception == "WrongType: what session_factory returns must be an AsyncSession, got str"


async def test_other_middlewares_are_within_the_transaction(both: Place, shop: async_sessionmaker[ShopSession]) -> None:
    class Auditing(BaseMiddleware):
        async def consume_scope(self, call_next: Any, msg: Any) -> Any:
            await write(msg.session, 100)
            return await call_next(msg)

    broker = both.broker(middlewares=[Auditing, TransactionMiddleware(shop)])

    @broker.subscriber("orders", retry_strategy=NoRetry())
    async def handle(body: int, session: OutboxSession) -> None:
        await write(session, body)
        if body == 2:
            raise ValueError

    await broker.publish_batch(1, 2, queue="orders")
    async with running(broker):
        await broker.drained()

    assert written(both) == [100, 1]


async def test_a_test_broker_has_the_transaction_too(both: Place, shop: async_sessionmaker[ShopSession]) -> None:
    broker = both.broker(middlewares=[TransactionMiddleware(shop)])

    @broker.subscriber("orders")
    async def handle(body: int, session: OutboxSession) -> None:
        await write(session, body)
        if body == 2:
            raise ValueError("two")

    async with TestOutboxBroker(broker):
        await broker.publish(1, "orders")
        with pytest.raises(ValueError, match="two"):
            await broker.publish(2, "orders")

    assert written(both) == [1]


async def test_a_subscriber_without_a_handler_is_pulled_without_one(
    both: Place, shop: async_sessionmaker[ShopSession]
) -> None:
    broker = both.broker(middlewares=[TransactionMiddleware(shop)])
    subscriber = broker.subscriber("orders")

    await broker.publish(7, "orders")
    async with running(broker):
        message = await subscriber.get_one(timeout=5)
        assert message is not None
        assert message.session is None
        await message.ack()

    assert queued(both) == {}


# What cannot be meant


@pytest.mark.parametrize(
    ("factory", "text"),
    [
        (None, "got NoneType"),
        ("sessionmaker", "got str"),
        (sessionmaker(), "got sessionmaker; handlers are awaited, and their session with them"),
        (Session(), "got Session; handlers are awaited"),
        (create_engine("sqlite://"), "got Engine; handlers are awaited"),
        (create_async_engine("sqlite+aiosqlite://"), r"got AsyncEngine; pass async_sessionmaker\(engine\)"),
        (AsyncSession(), "got AsyncSession; each message has a session of its own"),
        (async_scoped_session(async_sessionmaker(), int), "got async_scoped_session; pass its session_factory"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_makes_no_sessions_is_refused(factory: Any, text: str) -> None:
    with pytest.raises(WrongType, match=rf"^session_factory must be an async_sessionmaker, or a function .*{text}"):
        TransactionMiddleware(factory)


def test_a_dependency_that_yields_a_session_is_no_factory() -> None:
    async def get_session() -> AsyncIterator[AsyncSession]:
        yield AsyncSession()

    with pytest.raises(WrongType, match="got function; pass what it makes its sessions with"):
        TransactionMiddleware(get_session)  # type: ignore[arg-type]  # refused


async def refused(broker: CoreBroker) -> OutboxError:
    """What the start says."""
    async with broker:
        with pytest.raises(OutboxError) as error:
            await broker.start()
        assert not broker.running
    return error.value


async def test_transactional_too_is_refused(place: Place) -> None:
    broker = place.broker(middlewares=[TransactionMiddleware(async_sessionmaker(place.engine))])

    @broker.subscriber("orders", transactional=True)
    async def handle(body: int) -> None: ...

    error = await refused(broker)
    assert isinstance(error, OptionError)
    assert str(error) == "subscriber of orders has transactional=True and a TransactionMiddleware; choose one"


@pytest.mark.parametrize("of_the_broker", [False, True])
async def test_ack_first_is_refused(place: Place, of_the_broker: bool) -> None:
    policy = {"ack_policy": AckPolicy.ACK_FIRST}
    middleware = TransactionMiddleware(async_sessionmaker(place.engine))
    broker: OutboxBroker = place.broker(middlewares=[middleware], **(policy if of_the_broker else {}))

    @broker.subscriber("orders", **({} if of_the_broker else policy))  # type: ignore[arg-type]  # one of many options
    async def handle(body: int) -> None: ...

    assert "cannot be transactional with AckPolicy.ACK_FIRST" in str(await refused(broker))


async def test_two_of_them_are_refused(place: Place) -> None:
    new_session = async_sessionmaker(place.engine)
    broker = place.broker(middlewares=[TransactionMiddleware(new_session)])
    router = OutboxRouter(middlewares=[TransactionMiddleware(new_session)])

    @router.subscriber("orders")
    async def handle(body: int) -> None: ...

    broker.include_router(router)
    assert "subscriber of orders has 2 TransactionMiddlewares" in str(await refused(broker))


async def test_sessions_of_another_database_are_refused(place: Place) -> None:
    elsewhere = create_async_engine("sqlite+aiosqlite:///elsewhere.db")
    broker = place.broker(middlewares=[TransactionMiddleware(async_sessionmaker(elsewhere))])

    @broker.subscriber("orders")
    async def handle(body: int) -> None: ...

    assert isinstance(await refused(broker), WrongDatabase)


async def test_sessions_in_autocommit_are_refused(place: Place) -> None:
    engine = place.engine.execution_options(isolation_level="AUTOCOMMIT")
    broker = place.broker(middlewares=[TransactionMiddleware(async_sessionmaker(engine))])

    @broker.subscriber("orders")
    async def handle(body: int) -> None: ...

    assert isinstance(await refused(broker), NoTransaction)


async def test_an_outbox_that_is_not_sqlalchemys_is_refused(place: Place) -> None:
    broker = CoreBroker(
        MemoryStore(), middlewares=[TransactionMiddleware(async_sessionmaker(place.engine))], logger=None
    )

    @broker.subscriber("orders")
    async def handle(body: int) -> None: ...

    assert "this broker is on a MemoryStore; use transactional=True" in str(await refused(broker))


async def test_it_runs_in_an_application(both: Place, shop: async_sessionmaker[ShopSession]) -> None:
    broker = both.broker(middlewares=[TransactionMiddleware(shop)])
    app = FastStream(broker, logger=None)

    @broker.subscriber("orders")
    async def handle(body: int, session: OutboxSession) -> None:
        await write(session, body)
        app.exit()

    await broker.publish(7, "orders")
    await app.run()

    assert written(both) == [7]
