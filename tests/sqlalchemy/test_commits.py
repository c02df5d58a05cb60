"""After the commit of which transaction, on every kind of session and connection."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncSession, async_scoped_session, async_sessionmaker, create_async_engine
from sqlalchemy.orm import Session, scoped_session, sessionmaker

from outbox_core.errors import NoTransaction, WrongDatabase, WrongType
from outbox_core.schema import Tables
from outbox_sqlalchemy import SqlAlchemyStore
from tests.places import Place

NOWHERE = "postgresql+asyncpg://user:secret@127.0.0.1:1/nowhere"


class Abort(Exception):
    """What makes a block roll back."""


class Todos:
    """What was done, in order."""

    def __init__(self) -> None:
        self.done: list[str] = []

    def __call__(self, name: str, error: Exception | None = None) -> "Todo":
        return Todo(self.done, name, error)


class Todo:
    def __init__(self, done: list[str], name: str, error: Exception | None) -> None:
        self._done, self._name, self._error = done, name, error

    async def run(self) -> None:
        await asyncio.sleep(0)
        self.run_sync()

    def run_sync(self) -> None:
        self._done.append(self._name)
        if self._error is not None:
            raise self._error


@pytest.fixture
def todo() -> Todos:
    return Todos()


@pytest.fixture
async def store() -> AsyncIterator[SqlAlchemyStore]:
    return SqlAlchemyStore(None, Tables())


@pytest.fixture(params=["session", "connection"])
async def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


async def test_a_savepoint_is_released_into_what_is_around_it(
    place: Place, kind: str, store: SqlAlchemyStore, todo: Todos
) -> None:
    async with AsyncSession(place.engine) if kind == "session" else place.engine.connect() as session:
        async with session.begin():
            await store.after_commit(session, todo("outside"))
            async with session.begin_nested():
                await store.after_commit(session, todo("in a savepoint"))
                async with session.begin_nested():
                    await store.after_commit(session, todo("in two"))
            assert todo.done == []
        assert todo.done == ["outside", "in a savepoint", "in two"]


async def test_a_rollback_to_a_savepoint_forgets_what_came_after_it(
    place: Place, kind: str, store: SqlAlchemyStore, todo: Todos
) -> None:
    async with AsyncSession(place.engine) if kind == "session" else place.engine.connect() as session, session.begin():
        await store.after_commit(session, todo("before"))
        with suppress(Abort):
            async with session.begin_nested():
                async with session.begin_nested():
                    await store.after_commit(session, todo("in a savepoint that was released first"))
                await store.after_commit(session, todo("in the savepoint"))
                raise Abort
        await store.after_commit(session, todo("afterwards"))

    assert todo.done == ["before", "afterwards"]


async def test_without_begin_it_is_the_transaction_that_a_publish_would_begin(
    place: Place, kind: str, store: SqlAlchemyStore, todo: Todos
) -> None:
    async with AsyncSession(place.engine) if kind == "session" else place.engine.connect() as session:
        await store.after_commit(session, todo("committed"))
        await session.commit()
        await store.after_commit(session, todo("rolled back"))
        await session.rollback()
        await store.after_commit(session, todo("committed again"))
        await session.commit()
        await store.after_commit(session, todo("closed"))

    assert todo.done == ["committed", "committed again"]


async def test_after_an_error_the_session_goes_on(place: Place, kind: str, store: SqlAlchemyStore, todo: Todos) -> None:
    insert = text("INSERT INTO outbox_queues (queue) VALUES ('kept')")
    async with AsyncSession(place.engine) if kind == "session" else place.engine.connect() as session:
        await session.execute(insert)
        await store.after_commit(session, todo("raises", Abort()))
        with pytest.raises(Abort):
            await session.commit()
        assert (await session.execute(text("SELECT queue FROM outbox_queues"))).all() == [("kept",)]
        await store.after_commit(session, todo("next"))
        await session.commit()

    assert todo.done == ["raises", "next"]


async def test_a_block_raises_what_was_raised_after_its_commit(
    place: Place, kind: str, store: SqlAlchemyStore, todo: Todos
) -> None:
    async with AsyncSession(place.engine) if kind == "session" else place.engine.connect() as session:
        with pytest.raises(Abort):
            async with session.begin():
                await store.after_commit(session, todo("raises", Abort()))
        async with session.begin():
            await store.after_commit(session, todo("next"))

    assert todo.done == ["raises", "next"]


async def test_a_commit_that_fails_is_none(postgres: Place, kind: str, store: SqlAlchemyStore, todo: Todos) -> None:
    postgres.run(
        "DROP TABLE IF EXISTS deferred",
        "CREATE TABLE deferred (id integer UNIQUE DEFERRABLE INITIALLY DEFERRED)",
        "INSERT INTO deferred VALUES (1)",
    )
    async with AsyncSession(postgres.engine) if kind == "session" else postgres.engine.connect() as session:
        await store.after_commit(session, todo("never"))
        await session.execute(text("INSERT INTO deferred VALUES (1)"))
        with pytest.raises(DBAPIError):
            await session.commit()

    assert todo.done == []


async def test_every_kind_of_asynchronous_session(place: Place, store: SqlAlchemyStore, todo: Todos) -> None:
    make = async_sessionmaker(place.engine)
    async with make.begin() as session:
        await store.after_commit(session, todo("sessionmaker"))
    scoped = async_scoped_session(make, scopefunc=asyncio.current_task)
    await store.after_commit(scoped, todo("scoped"))
    await scoped.commit()
    await scoped.remove()
    async with place.engine.begin() as connection:
        await store.after_commit(connection, todo("connection"))
    async with place.engine.begin() as connection, AsyncSession(connection) as session:
        await store.after_commit(session, todo("session on a connection"))
        await session.commit()
    async with AsyncSession(place.engine) as session:
        await session.run_sync(lambda sync: store.after_commit_sync(sync, todo("its synchronous side")))
        await session.commit()

    assert todo.done == ["sessionmaker", "scoped", "connection", "session on a connection", "its synchronous side"]


def test_every_kind_of_synchronous_session(place: Place, store: SqlAlchemyStore, todo: Todos) -> None:
    make = sessionmaker(place.sync_engine)
    with make.begin() as session:
        store.after_commit_sync(session, todo("sessionmaker"))
        nested = session.begin_nested()
        store.after_commit_sync(session, todo("rolled back to a savepoint"))
        nested.rollback()
    scoped = scoped_session(make)
    store.after_commit_sync(scoped, todo("scoped"))
    scoped.commit()
    scoped.remove()
    with place.sync_engine.begin() as connection:
        store.after_commit_sync(connection, todo("connection"))
    with place.sync_engine.connect() as connection, connection.begin():
        store.after_commit_sync(connection, todo("another"))

    assert todo.done == ["sessionmaker", "scoped", "connection", "another"]


async def test_a_session_is_not_connected_by_it(store: SqlAlchemyStore, todo: Todos) -> None:
    async with AsyncSession(create_async_engine(NOWHERE)) as session, session.begin():
        await store.after_commit(session, todo("without a database"))

    assert todo.done == ["without a database"]


async def test_what_would_be_refused_by_an_insert_is_refused(place: Place, store: SqlAlchemyStore, todo: Todos) -> None:
    engine = create_async_engine(NOWHERE)
    with Session(place.sync_engine) as session, pytest.raises(WrongType, match="use publish_sync"):
        await store.after_commit(session, todo("never"))
    async with AsyncSession(engine) as session:
        with pytest.raises(WrongType, match="use await publish"):
            store.after_commit_sync(session, todo("never"))
        with pytest.raises(WrongDatabase, match="the session is on postgresql://127"):
            await SqlAlchemyStore(place.engine, Tables()).after_commit(session, todo("never"))
    async with AsyncSession() as session:
        with pytest.raises(NoTransaction, match="bound to no engine"):
            await store.after_commit(session, todo("never"))
    async with AsyncSession(engine, autobegin=False) as session:
        with pytest.raises(NoTransaction, match="begins no transaction by itself"):
            await store.after_commit(session, todo("never"))
    async with AsyncSession(engine.execution_options(isolation_level="AUTOCOMMIT")) as session:
        with pytest.raises(NoTransaction, match="AUTOCOMMIT"):
            await store.after_commit(session, todo("never"))
    async with AsyncSession(engine, close_resets_only=False) as session:
        await session.close()
        with pytest.raises(NoTransaction, match="cannot be used"):
            await store.after_commit(session, todo("never"))
    async with AsyncSession(engine) as session, session.begin():
        await session.rollback()
        with pytest.raises(NoTransaction, match="cannot be used"):
            await store.after_commit(session, todo("never"))
    with pytest.raises(NoTransaction, match="never opened"):
        await store.after_commit(engine.connect(), todo("never"))
    async with place.engine.connect() as connection:
        await connection.execution_options(isolation_level="AUTOCOMMIT")
        with pytest.raises(NoTransaction, match="AUTOCOMMIT"):
            await store.after_commit(connection, todo("never"))

    assert todo.done == []
