"""The core's port on an `AsyncEngine`: statements on the caller's transactions, and connections of a worker's own.

The engine stays the caller's: it is never disposed, and a worker's connections are made beside its pool, so a pool of
one is as good as a pool of fifty.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from copy import copy
from datetime import timedelta
from functools import cached_property, partial

from sqlalchemy import URL, Connection, make_url
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError, SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine
from sqlalchemy.orm import Session
from sqlalchemy.pool import NullPool

from outbox_core.errors import (
    DatabaseUnavailable,
    NoPermission,
    NoTransaction,
    NotStarted,
    OptionError,
    SchemaMismatch,
    WrongType,
)
from outbox_core.schema import Tables
from outbox_core.sql import Dialect, Maker, Row, SqlStore, Statement, begun, dialect_for
from outbox_core.sql.refusals import (
    GRANTS,
    first_line,
    is_aborted,
    is_forbidden,
    is_login_refused,
    is_schema_refused,
)
from outbox_core.store import Listener, OnCommit
from outbox_sqlalchemy.commits import after_commit
from outbox_sqlalchemy.connections import OwnConnection, cut
from outbox_sqlalchemy.listen import listen_on
from outbox_sqlalchemy.poolers import look_out
from outbox_sqlalchemy.rendering import rendered
from outbox_sqlalchemy.sessions import (
    asynchronous,
    check_same_database,
    describe,
    in_transaction,
    place_of,
    synchronous,
    use_async,
    use_sync,
)

DEADLINE = 10.0  # seconds for any statement of a worker's


class SqlAlchemyStore(SqlStore):
    """`Store` on SQLAlchemy. Without an engine it can publish on sessions and nothing else."""

    def __init__(
        self,
        engine: AsyncEngine | None,
        tables: Tables,
        *,
        notify: bool = True,
        listen_dsn: str | None = None,
        insert_only: bool = False,
        dead_letter_retention: timedelta | None = None,
    ) -> None:
        if engine is not None:
            _check_engine(engine)
        if listen_dsn is not None:
            _check_listen_dsn(listen_dsn, engine)
        if not isinstance(notify, bool):
            raise WrongType("notify", "True or False", notify)
        self.engine = engine
        self._listen_dsn = listen_dsn
        dialect = None if engine is None else dialect_for(engine.dialect.name, tables)
        super().__init__(
            tables, dialect, notify=notify, insert_only=insert_only, dead_letter_retention=dead_letter_retention
        )

    @property
    def name(self) -> str:
        place = "no database" if self.engine is None else describe(self.engine.url)
        return f"{place}/{self.tables.schema + '.' if self.tables.schema else ''}{self.tables.outbox}"

    # On a caller's transaction

    async def run(self, make: Maker, session: object | None) -> Sequence[Sequence[Row]]:
        work = partial(self._run_on, make)
        if session is not None:
            return await use_async(session, work)
        with self._outages():
            async with self._engine.begin() as connection:
                return await connection.run_sync(work)

    @contextmanager
    def _outages(self) -> Iterator[None]:
        """Raise `DatabaseUnavailable` for what says that nobody answers, or not to us."""
        try:
            yield
        except NoPermission:  # an OSError too, as Python has it
            raise
        except (OSError, InterfaceError, OperationalError) as error:
            raise self._unavailable(error) from error
        except Exception as error:
            if _is_refused_login(error):
                raise self._unavailable(error) from error
            raise

    def run_sync(self, make: Maker, session: object) -> Sequence[Sequence[Row]]:
        return use_sync(session, partial(self._run_on, make))

    async def after_commit(self, session: object | None, todo: OnCommit) -> None:
        if session is None:
            await todo.run()
        else:
            await asynchronous(session).run_sync(self._after_commit, todo)

    def after_commit_sync(self, session: object, todo: OnCommit) -> None:
        self._after_commit(synchronous(session), todo)

    def _after_commit(self, session: Session | Connection, todo: OnCommit) -> None:
        check_same_database(place_of(in_transaction(session)), self.engine)
        after_commit(session, todo)

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[AsyncSession]:
        async with AsyncSession(self._engine) as session, session.begin():
            yield session

    async def cutter(self, session: object) -> Callable[[], None]:
        connection = asynchronous(session)
        if isinstance(connection, AsyncSession):
            connection = await connection.connection()
        return partial(cut, (await connection.get_raw_connection()).driver_connection)

    def _run_on(self, make: Maker, connection: Connection) -> Sequence[Sequence[Row]]:
        check_same_database(connection, self.engine)
        statements = make(self._dialect_of(connection))
        try:
            return [_execute(connection, statement) for statement in statements]
        except DBAPIError as error:
            self._refused(error)
            raise

    def _refused(self, error: DBAPIError) -> None:
        """Raise an error of ours for what the database says of the tables, of our rights or of the caller's transaction."""
        if is_aborted(_driver_error(error)):
            raise NoTransaction(
                "the transaction has failed already, so nothing was written; roll it back, or use a savepoint "
                "(session.begin_nested()) around what may fail"
            ) from error
        if is_schema_refused(_driver_error(error)):
            raise SchemaMismatch(
                self.tables.outbox, [f"{first_line(_driver_error(error))}; create or migrate it first"]
            ) from error
        if is_forbidden(_driver_error(error)):
            raise NoPermission(f"{first_line(_driver_error(error))}; {GRANTS}") from error

    def _dialect_of(self, connection: Connection | AsyncEngine) -> Dialect:
        if self.dialect is None:
            self.dialect = dialect_for(connection.dialect.name, self.tables)
        return self.dialect

    @property
    def _engine(self) -> AsyncEngine:
        if self.engine is None:
            raise NotStarted("without a session this needs a database; create the broker with an engine")
        return self.engine

    # Connections of a worker's own

    async def _look(self, make: Maker) -> Sequence[Sequence[Row]]:
        """On a connection of a worker's own: with a deadline, since a worker that starts must not hang, and past poolers."""
        if self._engine.dialect.name == "sqlite":  # a database in memory is nowhere but in the engine's pool
            return await super()._look(make)
        executor = await self.open()
        try:
            with self._outages():
                return await self._ask(executor, make(self._dialect_of(self._engine)))
        finally:
            await executor.close()

    async def _ask(self, executor: "SqlAlchemyExecutor", statements: Sequence[Statement]) -> Sequence[Sequence[Row]]:
        try:
            return [await executor.execute(statement) for statement in statements]
        except DBAPIError as error:
            self._refused(error)
            raise

    async def open(self) -> "SqlAlchemyExecutor":
        engine = self._engine
        if engine.dialect.name == "sqlite" and engine.url.database in (None, "", ":memory:"):
            raise OptionError(
                "a worker needs an SQLite database in a file, since each connection to one in memory is another "
                "database; use sqlite+aiosqlite:///outbox.db"
            )
        return SqlAlchemyExecutor(await self._connect())

    async def listen(self, heard: Callable[[str], None]) -> Listener | None:
        if self._engine.dialect.name != "postgresql":
            return None
        return await listen_on(await self._connect(), self.tables.channel, heard)

    async def _connect(self) -> OwnConnection:
        try:
            return await OwnConnection.open(self._worker_engine())
        except (OSError, SQLAlchemyError, TimeoutError) as error:
            raise self._unavailable(error) from error
        except Exception as error:  # asyncpg raises its own errors for a refused login, outside SQLAlchemy's
            if type(error).__module__.startswith(("asyncpg", "psycopg")):
                raise self._unavailable(error) from error
            raise

    def _worker_engine(self) -> AsyncEngine:
        """What a connection of a worker's is made by; one for each, since an asynchronous pool is for one event loop.

        With `listen_dsn` straight to the database: a sleeping worker holds session locks, which a pooler would leak.
        """
        return self._direct_engine if self._listen_dsn is not None else _beside_its_pool(self._engine)

    @cached_property
    def _direct_engine(self) -> AsyncEngine:
        assert self._listen_dsn is not None, "it was asked for"
        engine = create_async_engine(self._listen_dsn, poolclass=NullPool)
        look_out(engine.sync_engine.pool)
        return engine

    def _unavailable(self, error: BaseException) -> DatabaseUnavailable:
        why = first_line(_driver_error(error))
        return DatabaseUnavailable(
            f"cannot use {self.name}: {why}; check that it runs and that this process may connect"
        )


class SqlAlchemyExecutor:
    """Runs statements on one connection of a worker's own, each within a deadline."""

    def __init__(self, connection: OwnConnection) -> None:
        self._connection = connection
        self.keeps_settings = not connection.pooled

    async def execute(self, statement: Statement) -> Sequence[Row]:
        """A statement that takes too long, or that nobody waits for any more, costs its connection.

        Cancelling it would not end it: psycopg asks the server to, and gives it ten seconds to answer.
        """
        running = asyncio.create_task(self._execute(statement))
        try:
            await asyncio.wait([running], timeout=DEADLINE)
        finally:
            if not running.done():
                self._connection.cut()
                running.cancel()
                await asyncio.gather(running, return_exceptions=True)
        if running.cancelled():
            raise TimeoutError(f"no answer within {DEADLINE:g} s")
        return running.result()

    async def _execute(self, statement: Statement) -> Sequence[Row]:
        return await self._connection.fetch(statement.text, statement.parameters)

    def together(self) -> AbstractAsyncContextManager[None]:
        return begun(self)

    async def close(self) -> None:
        await self._connection.close()


def _beside_its_pool(engine: AsyncEngine) -> AsyncEngine:
    """One that connects as *engine* does, listeners included, and waits for nobody who has all of its connections."""
    twin = copy(engine.sync_engine)
    twin.pool = twin.pool.recreate()  # as `Engine.dispose` does
    look_out(twin.pool)
    return AsyncEngine(twin)


def _check_engine(engine: object) -> None:
    if not isinstance(engine, AsyncEngine):
        raise WrongType("engine", "an AsyncEngine", engine, 'use create_async_engine("postgresql+asyncpg://…") for it')


def _check_listen_dsn(dsn: object, engine: AsyncEngine | None) -> None:
    """What is wrong with it would be seen by a worker only, and then as a connection that is down."""
    if not isinstance(dsn, str | URL):
        raise WrongType("listen_dsn", "a str", dsn)
    try:
        dialect = make_url(dsn).get_dialect(_is_async=True)
    except (ImportError, ValueError, SQLAlchemyError) as error:
        raise OptionError(f"listen_dsn must be a URL that create_async_engine takes: {type(error).__name__}") from None
    if not dialect.is_async:
        raise OptionError(f"listen_dsn must name an asynchronous driver, got {dialect.name}+{dialect.driver}")
    if engine is not None and dialect.name != engine.dialect.name:
        raise OptionError(
            f"listen_dsn must lead to the engine's database, got {dialect.name} for {engine.dialect.name}"
        )


def _execute(connection: Connection, statement: Statement) -> Sequence[Row]:
    """In the driver's own words, which SQLAlchemy passes on for less, and shows to whoever listens all the same."""
    sql = rendered(statement.text, connection.dialect)
    result = connection.exec_driver_sql(sql.text, sql.values(statement.parameters))
    if result.cursor is None:  # nothing comes back
        return ()
    rows: Sequence[Row] = result.cursor.fetchall()  # the driver's own rows, which are as good
    result.close()
    return rows


def _is_refused_login(error: Exception) -> bool:
    """What asyncpg raises for one is no `OperationalError`, and before SQLAlchemy 2.1 it is not even SQLAlchemy's."""
    return type(error).__module__.startswith("asyncpg") or is_login_refused(_driver_error(error))


def _driver_error(error: BaseException) -> BaseException:
    return getattr(error, "orig", None) or error
