"""The core's port on Django's connections.

Publishing and operating happen on the caller's connection, in its transaction. A worker's statements run on connections of
its own, made from the same settings.
"""

from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AbstractContextManager, asynccontextmanager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial

from asgiref.sync import async_to_sync
from django.db import DatabaseError, InterfaceError, OperationalError, connections, router
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.transaction import TransactionManagementError, atomic

from outbox_core.errors import DatabaseUnavailable, NoPermission, SchemaMismatch, WrongType
from outbox_core.schema import Tables
from outbox_core.sql import Dialect, Maker, Row, SqlStore, dialect_for
from outbox_core.sql.refusals import GRANTS, first_line, is_forbidden, is_read_only, is_schema_refused
from outbox_core.sql.store import SqlLink
from outbox_core.store import Link, Listener, OnCommit
from outbox_django.connections import BorrowedConnection, OwnConnection, cut, database_settings
from outbox_django.errors import ReadOnlyDatabase
from outbox_django.lanes import Lane, current_lane, in_thread, in_threads
from outbox_django.listen import listen_on
from outbox_django.settings import outbox_settings
from outbox_django.statements import execute


@dataclass(slots=True, eq=False)
class AtomicBlock:
    """A transaction that is open in a lane; what `session` is while a transactional handler runs."""

    alias: str
    lane: Lane
    connection: BaseDatabaseWrapper | None = None  # the lane's, in whose thread alone it is used

    @contextmanager
    def opened(self) -> Iterator[None]:
        """`atomic()`, in the lane's thread."""
        with atomic(using=self.alias):
            self.connection = connections[self.alias]
            yield


class DjangoStore(SqlStore):
    """`Store` on one alias of `settings.DATABASES`. A session is an alias, an `AtomicBlock`, or None for this one's.

    As everywhere in Django, what runs on an alias takes part in the transaction that the current thread has open on it;
    without one it is committed at once.
    """

    def __init__(
        self,
        alias: str | None = None,
        tables: Tables | None = None,
        *,
        notify: bool = True,
        listen_alias: str | None = None,
        conn_max_age: float | None = None,
        insert_only: bool = False,
    ) -> None:
        self._alias = alias
        self._listen_alias = listen_alias
        self._conn_max_age = conn_max_age
        self._dialects: dict[str, Dialect] = {}
        settings = outbox_settings()
        super().__init__(
            tables or settings.tables,
            None,
            notify=notify,
            insert_only=insert_only,
            dead_letter_retention=settings.dead_letter_retention,
        )

    @property
    def alias(self) -> str:
        """The alias that was given, or where the routers write the model; looked up when it is needed."""
        if self._alias is None:
            from outbox_django.models import OutboxMessage

            return router.db_for_write(OutboxMessage)
        return self._alias

    @alias.setter
    def alias(self, alias: str) -> None:
        self._alias = alias
        self.dialect = None

    @property
    def name(self) -> str:
        given = database_settings(self.alias)
        place = f"{given.get('HOST') or ''}:{given['PORT']}" if given.get("PORT") else given.get("HOST") or ""
        schema = f"{self.tables.schema}." if self.tables.schema else ""
        return f"{_vendor(given['ENGINE'])}://{place}/{given['NAME']}/{schema}{self.tables.outbox}"

    # On the caller's connection

    def run_sync(self, make: Maker, session: object) -> Sequence[Sequence[Row]]:
        connection = self.connection(session)
        statements = make(self._dialect_of(connection))
        with self._named_errors(connection), _all_or_none(connection, len(statements)):
            return [execute(connection, statement) for statement in statements]

    async def run(self, make: Maker, session: object | None) -> Sequence[Sequence[Row]]:
        if isinstance(session, AtomicBlock):
            with session.lane.entered():
                return await in_thread(self.run_sync, make, session)
        return await in_thread(self._run_in_passing, make, session)

    async def after_commit(self, session: object | None, todo: OnCommit) -> None:
        with session.lane.entered() if isinstance(session, AtomicBlock) else nullcontext():
            waits = await in_thread(self._waits_for_commit, session, todo)
        if not waits:
            await todo.run()

    def after_commit_sync(self, session: object, todo: OnCommit) -> None:
        if not self._waits_for_commit(session, todo):
            _finish(todo)

    def _waits_for_commit(self, session: object | None, todo: OnCommit) -> bool:
        """By Django's own means, so that its test cases, which never commit, treat it as they treat all that waits."""
        connection = self.connection(session)
        waits = in_atomic(connection)
        if waits:
            connection.on_commit(partial(_finish, todo))
        return waits

    async def _look(self, make: Maker) -> Sequence[Sequence[Row]]:
        """On a connection with deadlines: a worker that starts must not hang where its database accepts and is silent."""
        connection = await self.open()
        try:
            return [await connection.execute(statement) for statement in make(self._dialect_of(self.connection(None)))]
        finally:
            await connection.close()

    def _run_in_passing(self, make: Maker, session: object | None) -> Sequence[Sequence[Row]]:
        """Outside a lane nobody looks after a connection that stays, so that it is left as it was."""
        connection = self.connection(session)
        was_open = connection.connection is not None
        try:
            return self._run_operation(make, session)
        finally:
            if not was_open and current_lane() is None and connection.autocommit:
                connection.close()

    def _run_operation(self, make: Maker, session: object | None) -> Sequence[Sequence[Row]]:
        try:
            return self.run_sync(make, session)
        except (InterfaceError, OperationalError) as error:
            if session is None:
                raise self._unavailable(error) from error
            raise

    def connection(self, session: object) -> BaseDatabaseWrapper:
        """The current thread's connection for *session*."""
        match session:
            case None:
                alias = self.alias
            case str():
                alias = session
            case AtomicBlock():
                alias = session.alias
            case _:
                raise WrongType("using", "the alias of a database", session)
        database_settings(alias)
        return connections[alias]

    def _dialect_of(self, connection: BaseDatabaseWrapper) -> Dialect:
        vendor = connection.vendor
        if vendor not in self._dialects:
            self._dialects[vendor] = dialect_for(vendor, self.tables)
        if self.dialect is None and connection.alias == self.alias:
            self.dialect = self._dialects[vendor]
        return self._dialects[vendor]

    @contextmanager
    def _named_errors(self, connection: BaseDatabaseWrapper) -> Iterator[None]:
        """What the database says about its tables or itself, with the way out."""
        try:
            yield
        except TransactionManagementError:  # its cause is what broke the transaction, which was not ours
            raise
        except DatabaseError as error:
            cause = error.__cause__ or error
            if is_schema_refused(cause):
                way_out = outbox_settings().way_out(connection.alias)
                raise SchemaMismatch(self.tables.outbox, [f"{first_line(cause)}; {way_out}"]) from error
            if is_forbidden(cause):
                raise NoPermission(f"{first_line(cause)}; {GRANTS}") from error
            if is_read_only(cause):
                raise ReadOnlyDatabase(
                    f"database {connection.alias!r} takes no writes ({first_line(cause)}); pass using= the alias of the "
                    "primary, or have a database router send the outbox there"
                ) from error
            raise

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[AtomicBlock]:
        """`atomic()` in the current lane, or in one for this transaction alone."""
        lane = current_lane()
        own = Lane(self._conn_max_age) if lane is None else None
        block = AtomicBlock(self.alias, lane or own)  # type: ignore[arg-type]  # one of them is there
        try:
            with block.lane.entered():
                async with in_threads(block.opened()):
                    yield block
        finally:
            if own is not None:
                await own.close()

    async def cutter(self, session: object) -> Callable[[], None]:
        return partial(cut, session.connection if isinstance(session, AtomicBlock) else None)

    # Connections of a worker's own

    async def open(self) -> OwnConnection:
        alias = self._listen_alias or self.alias
        self._dialect_of(self.connection(self.alias))
        try:
            return await OwnConnection.open(alias)
        except (OSError, TimeoutError, InterfaceError, OperationalError) as error:
            raise self._unavailable(error) from error

    async def listen(self, heard: Callable[[str], None]) -> Listener | None:
        return await listen_on(self._listen_alias or self.alias, self.tables.channel, heard)

    def borrowed_link(self) -> Link:
        """A link on the caller's own connection, which stays the caller's."""
        return SqlLink(BorrowedConnection(self.alias), self._dialect_of(self.connection(None)))

    def _unavailable(self, error: BaseException) -> DatabaseUnavailable:
        return DatabaseUnavailable(
            f"cannot use {self.name}: {first_line(error.__cause__ or error)}; check that it runs and that this process "
            "may connect"
        )


class DirectStore(DjangoStore):
    """The same without waiting: all happens in the calling thread, for `outbox_core.waiting.drive`, without an event loop."""

    async def run(self, make: Maker, session: object | None) -> Sequence[Sequence[Row]]:
        return self._run_operation(make, session)

    async def _look(self, make: Maker) -> Sequence[Sequence[Row]]:
        return await self.run(make, None)


class InlineStore(DjangoStore):
    """A transactional handler has its `atomic()` on the caller's connection, where that may be a savepoint."""

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[str]:  # type: ignore[override]  # a session may be an alias as well
        async with in_threads(atomic(using=self.alias)):
            yield self.alias


def _all_or_none(connection: BaseDatabaseWrapper, statements: int) -> AbstractContextManager[None]:
    return atomic(using=connection.alias) if statements > 1 else nullcontext()


def in_atomic(connection: BaseDatabaseWrapper) -> bool:
    """Whether an `atomic()` is open; the one that Django's TestCase opens does not count."""
    return any(not getattr(block, "_from_testcase", False) for block in connection.atomic_blocks)


def _finish(todo: OnCommit) -> None:
    """In a thread of the event loop's that waits meanwhile, or in a loop of its own where there is none."""
    async_to_sync(todo.run)()


def _vendor(engine: str) -> str:
    return engine.rpartition(".")[2]
