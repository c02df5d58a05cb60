"""`Depends(get_session)` shared by the handler, what it publishes, and the end of its message: one commit."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Annotated, Any
from uuid import uuid4

import pytest
from fastapi import BackgroundTasks, Depends, FastAPI, Request
from faststream.exceptions import RejectMessage
from sqlalchemy import event, text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession, async_sessionmaker

from outbox_core.errors import OptionError
from outbox_fastapi import OutboxBroker, OutboxMessage, OutboxResponse, OutboxRouter
from outbox_sqlalchemy import ConstantRetry, NoRetry, TransactionMiddleware
from tests.conflicts import POINTS, Point, conflict, effects
from tests.places import Place, until

SOON = ConstantRetry(delay_seconds=0.01)


@pytest.fixture
def written(both: Place) -> Callable[[], list[int]]:
    """What handlers wrote into a table of their own, and is committed."""
    both.run("DROP TABLE IF EXISTS written", "CREATE TABLE written (body integer)")

    def rows() -> list[int]:
        with both.sync_engine.connect() as connection:
            return list(connection.execute(text("SELECT body FROM written ORDER BY body")).scalars())

    return rows


class Application:
    """A FastAPI application with a router, and the usual dependency: a session that commits when it closes."""

    def __init__(self, place: Place) -> None:
        self.place = place
        self.sessions = async_sessionmaker(place.engine, expire_on_commit=False)
        self.router = OutboxRouter(place.engine, outbox_table=place.tables, logger=None)
        self.commits = 0
        event.listen(place.engine.sync_engine, "commit", self._count)

    def _count(self, connection: object) -> None:
        self.commits += 1

    async def session(self) -> AsyncIterator[AsyncSession]:
        async with self.sessions() as session, session.begin():
            yield session

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Started until nothing is due, or longer."""
        app = FastAPI()
        app.include_router(self.router)
        async with asyncio.timeout(10), app.router.lifespan_context(app):
            self.commits = 0
            yield
            await self.router.broker.drained()

    def queued(self) -> dict[str, list[str]]:
        """What is committed in the outbox, by queue."""
        found: dict[str, list[str]] = {}
        for row in self.place.rows():
            found.setdefault(row.queue, []).append(row.payload.decode())
        return found


async def write(session: AsyncSession | AsyncConnection, body: int) -> None:
    await session.execute(text("INSERT INTO written VALUES (:body)"), {"body": body})


@pytest.fixture
def app(both: Place) -> Application:
    return Application(both)


@pytest.fixture
def contended_app(contended: Place) -> Application:
    return Application(contended)


async def test_one_commit_ends_all_of_it(app: Application, written: Callable[[], list[int]]) -> None:
    router = app.router

    @router.publisher("replies")
    @router.subscriber("orders", transactional=True)
    async def handle(
        body: int, message: OutboxMessage, broker: OutboxBroker, session: Annotated[AsyncSession, Depends(app.session)]
    ) -> OutboxResponse:
        assert message.session is session
        await write(session, body)
        await broker.publish("in the session", "mails", session=session)
        await broker.publish("without one", "mails")
        return OutboxResponse("chosen", queue="chosen", session=session)

    await router.broker.publish(1, "orders")
    async with app.running():
        await until(written, [1])
        await router.broker.drained()
        assert app.commits == 1
    assert app.queued() == {"mails": ["in the session", "without one"], "chosen": ["chosen"], "replies": ["chosen"]}


async def test_a_failure_takes_all_of_it_back_and_tries_again(
    app: Application, written: Callable[[], list[int]]
) -> None:
    router = app.router

    @router.publisher("replies")
    @router.subscriber("orders", transactional=True, retry_strategy=SOON)
    async def handle(
        body: int, message: OutboxMessage, session: Annotated[AsyncSession, Depends(app.session)]
    ) -> OutboxResponse:
        await write(session, message.attempt)
        if message.attempt < 3:
            await router.broker.publish("too early", "mails", session=session)
            raise ValueError("not yet")
        return OutboxResponse("done", session=session)

    await router.broker.publish(1, "orders")
    async with app.running():
        await until(written, [3])
    assert app.queued() == {"replies": ["done"]}


async def test_a_lost_lease_takes_all_of_it_back(app: Application, written: Callable[[], list[int]]) -> None:
    handled = asyncio.Event()

    @app.router.publisher("replies")
    @app.router.subscriber("orders", transactional=True)
    async def handle(body: int, session: Annotated[AsyncSession, Depends(app.session)]) -> str:
        app.place.run(f"UPDATE outbox SET acquired_token = '{uuid4().hex}'")  # another worker's
        await write(session, body)
        handled.set()
        return "nobody reads this"

    await app.router.broker.publish(1, "orders")
    async with app.running():
        await handled.wait()
    assert written() == []
    assert app.queued() == {"orders": ["1"]}


async def test_a_vote_against_takes_all_of_it_back(app: Application, written: Callable[[], list[int]]) -> None:
    @app.router.subscriber("orders", transactional=True)
    async def handle(body: int, session: Annotated[AsyncSession, Depends(app.session)]) -> None:
        await write(session, body)
        raise RejectMessage

    await app.router.broker.publish(1, "orders")
    async with app.running():
        await until(app.queued, {})
    assert written() == []
    assert [row.failure_reason for row in app.place.rows(app.place.tables.dead_letters)] == ["rejected"]


async def test_a_dependency_that_does_not_commit_is_committed(
    app: Application, written: Callable[[], list[int]]
) -> None:
    async def bare() -> AsyncIterator[AsyncSession]:
        async with app.sessions() as session:
            yield session

    @app.router.subscriber("orders", transactional=True)
    async def handle(body: int, session: Annotated[AsyncSession, Depends(bare)]) -> None:
        await write(session, body)

    await app.router.broker.publish(1, "orders")
    async with app.running():
        await until(app.queued, {})
    assert written() == [1]


async def test_a_dependency_may_give_a_connection(app: Application, written: Callable[[], list[int]]) -> None:
    async def connection() -> AsyncIterator[AsyncConnection]:
        async with app.place.engine.begin() as connection:
            yield connection

    @app.router.subscriber("orders", transactional=True)
    async def handle(body: int, connection: Annotated[AsyncConnection, Depends(connection)]) -> None:
        await write(connection, body)

    await app.router.broker.publish(1, "orders")
    async with app.running():
        await until(app.queued, {})
    assert written() == [1]


async def test_a_session_deep_among_the_dependencies_is_the_one(
    app: Application, written: Callable[[], list[int]]
) -> None:
    class Orders:
        def __init__(self, session: Annotated[AsyncSession, Depends(app.session)]) -> None:
            self.session = session

    async def service(orders: Annotated[Orders, Depends()]) -> Orders:
        return orders

    @app.router.subscriber("orders", transactional=True)
    async def handle(body: int, orders: Annotated[Orders, Depends(service)], message: OutboxMessage) -> None:
        assert orders.session is message.session
        await write(orders.session, body)

    await app.router.broker.publish(1, "orders")
    async with app.running():
        await until(app.queued, {})
        assert app.commits == 1
    assert written() == [1]


async def test_the_sessions_dependency_sees_the_application_and_the_headers(
    app: Application, written: Callable[[], list[int]]
) -> None:
    seen: list[Any] = []

    async def by_request(request: Request) -> AsyncIterator[AsyncSession]:
        seen.append((request.headers["tenant"], request.state.broker is app.router.broker, type(request.app)))
        async with app.sessions() as session, session.begin():
            yield session

    @app.router.subscriber("orders", transactional=True)
    async def handle(body: int, session: Annotated[AsyncSession, Depends(by_request)]) -> None:
        await write(session, body)

    await app.router.broker.publish(1, "orders", headers={"tenant": "a"})
    async with app.running():
        await until(app.queued, {})
    assert seen == [("a", True, FastAPI)]
    assert written() == [1]


async def test_a_dependency_that_keeps_exceptions_to_itself_hides_no_failure(
    app: Application, written: Callable[[], list[int]]
) -> None:
    async def silent() -> AsyncIterator[AsyncSession]:
        async with app.sessions() as session:
            try:
                yield session
                await session.commit()
            except Exception:
                await session.rollback()

    @app.router.subscriber("orders", transactional=True, retry_strategy=SOON)
    async def handle(body: int, message: OutboxMessage, session: Annotated[AsyncSession, Depends(silent)]) -> None:
        await write(session, message.attempt)
        if message.attempt == 1:
            raise ValueError("not yet")

    await app.router.broker.publish(1, "orders")
    async with app.running():
        await until(written, [2])
    assert app.queued() == {}


async def test_a_batch_is_one_transaction(app: Application, written: Callable[[], list[int]]) -> None:
    @app.router.subscriber("orders", transactional=True, batch=True)
    async def handle(bodies: list[int], session: Annotated[AsyncSession, Depends(app.session)]) -> None:
        for body in bodies:
            await write(session, body)

    await app.router.broker.publish_batch(1, 2, 3, queue="orders")
    async with app.running():
        await until(app.queued, {})
        assert app.commits == 1
    assert written() == [1, 2, 3]


async def test_without_a_session_among_the_dependencies_it_is_the_messages(
    app: Application, written: Callable[[], list[int]]
) -> None:
    @app.router.subscriber("orders", transactional=True)
    async def handle(body: int, message: OutboxMessage) -> None:
        await write(message.session, body)

    await app.router.broker.publish(1, "orders")
    async with app.running():
        await until(app.queued, {})
        assert app.commits == 1
    assert written() == [1]


async def test_an_override_of_the_session_is_the_one_that_is_committed(
    app: Application, written: Callable[[], list[int]]
) -> None:
    async def other() -> AsyncIterator[AsyncSession]:
        async with app.sessions(info={"mine": True}) as session:
            yield session

    class Overrides:
        dependency_overrides = {app.session: other}  # noqa: RUF012  what FastAPI's applications have

    app.router = OutboxRouter(
        app.place.engine, outbox_table=app.place.tables, logger=None, dependency_overrides_provider=Overrides()
    )

    @app.router.subscriber("orders", transactional=True)
    async def handle(body: int, session: Annotated[AsyncSession, Depends(app.session)]) -> None:
        assert session.info == {"mine": True}
        await write(session, body)

    await app.router.broker.publish(1, "orders")
    async with app.running():
        await until(app.queued, {})
    assert written() == [1]


async def test_without_transactional_a_response_on_the_session_is_committed_with_the_writes(
    app: Application, written: Callable[[], list[int]]
) -> None:
    """The row is inserted before the dependency closes, which commits both; a peer loses the row and keeps the writes."""
    fail = [True]

    async def session() -> AsyncIterator[AsyncSession]:
        async with app.sessions() as session, session.begin():
            yield session
            if fail and fail.pop():
                raise ValueError("the commit did not go well")

    @app.router.subscriber("orders", retry_strategy=SOON)
    async def handle(
        body: int, message: OutboxMessage, session: Annotated[AsyncSession, Depends(session)]
    ) -> OutboxResponse:
        await write(session, message.attempt)
        return OutboxResponse(f"attempt {message.attempt}", queue="mails", session=session)

    await app.router.broker.publish(1, "orders")
    async with app.running():
        await until(written, [2])
        await until(app.queued, {"mails": ["attempt 2"]})


# Conflicts with other transactions


@pytest.mark.parametrize("point", POINTS)
async def test_a_transaction_that_lost_against_another_is_run_again_as_a_whole(
    contended_app: Application, point: Point
) -> None:
    app, router, url = contended_app, contended_app.router, contended_app.place.url
    conflict(url, point, times=2)
    sessions: list[tuple[AsyncSession, bool, int]] = []
    done: list[str] = []

    @router.publisher("replies")
    @router.subscriber("orders", transactional=True, retry_strategy=NoRetry())
    async def handle(
        body: int,
        message: OutboxMessage,
        tasks: BackgroundTasks,
        session: Annotated[AsyncSession, Depends(app.session)],
    ) -> OutboxResponse:
        sessions.append((session, message.session is session, message.attempt))
        await session.execute(text("INSERT INTO effects (n) VALUES (:n)"), {"n": body})
        await router.broker.publish(body, "mails")
        if point == "a statement of the handler's":
            tasks.add_task(done.append, "in the background")
        return OutboxResponse(body, queue="chosen", session=session)

    await router.broker.publish(7, "orders", reply_to="answers")
    async with app.running():
        await until(lambda: effects(url), [7])

    assert [(same, attempt) for _, same, attempt in sessions] == [(True, 1)] * 3
    assert len({id(session) for session, _, _ in sessions}) == 3
    assert app.queued() == {"mails": ["7"], "chosen": ["7"], "replies": ["7"], "answers": ["7"]}
    assert app.place.rows(app.place.tables.dead_letters) == []
    assert done == (["in the background"] if point == "a statement of the handler's" else [])


@pytest.mark.parametrize("keeps_it", [False, True], ids=["raised as another", "kept"])
async def test_a_conflict_is_one_whatever_the_sessions_dependency_makes_of_it(
    contended_app: Application, keeps_it: bool
) -> None:
    app, url = contended_app, contended_app.place.url
    conflict(url, "the commit", times=1)
    attempts: list[int] = []

    async def translating() -> AsyncIterator[AsyncSession]:
        async with app.sessions() as session:
            try:
                yield session
                await session.commit()
            except Exception as error:
                await session.rollback()
                if not keeps_it:
                    raise RuntimeError("the shop is closed") from error

    @app.router.subscriber("orders", transactional=True, retry_strategy=SOON)
    async def handle(body: int, message: OutboxMessage, session: Annotated[AsyncSession, Depends(translating)]) -> None:
        attempts.append(message.attempt)
        await session.execute(text("INSERT INTO effects (n) VALUES (:n)"), {"n": body})

    await app.router.broker.publish(7, "orders")
    async with app.running():
        await until(lambda: effects(url), [7])

    assert attempts == [1, 1]
    assert app.queued() == {}


# Sessions of a factory


async def test_a_middleware_may_open_the_session(app: Application, written: Callable[[], list[int]]) -> None:
    app.router = OutboxRouter(
        app.place.engine,
        outbox_table=app.place.tables,
        logger=None,
        middlewares=[TransactionMiddleware(async_sessionmaker(app.place.engine, info={"mine": True}))],
    )

    @app.router.publisher("replies")
    @app.router.subscriber("orders")
    async def handle(body: int, message: OutboxMessage) -> int:
        assert message.session.info == {"mine": True}
        await write(message.session, body)
        return body

    await app.router.broker.publish(7, "orders")
    async with app.running():
        await until(written, [7])
        await app.router.broker.drained()
        assert app.commits == 1
    assert app.queued() == {"replies": ["7"]}


async def test_a_middleware_beside_a_session_that_the_handler_depends_on_is_refused(app: Application) -> None:
    app.router = OutboxRouter(
        app.place.engine,
        outbox_table=app.place.tables,
        logger=None,
        middlewares=[TransactionMiddleware(app.sessions)],
    )

    @app.router.subscriber("orders")
    async def handle(body: int, session: Annotated[AsyncSession, Depends(app.session)]) -> None: ...

    with pytest.raises(OptionError, match="depend on a session, and a TransactionMiddleware opens another one"):
        async with app.running():
            pass
