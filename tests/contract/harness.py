"""A small handle on each store under test: transactions, links, dead letters, and time that passes on demand."""

import asyncio
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, ExitStack, asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from inspect import isawaitable
from typing import Any
from uuid import UUID

from asgiref.sync import SyncToAsync, sync_to_async
from django.db import connections
from sqlalchemy import DateTime, MetaData, func, select, update
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession

from outbox_core.dispatch import Silence
from outbox_core.memory import MemoryStore, MemoryTransaction
from outbox_core.message import Delivery, NewMessage, PendingMessage
from outbox_core.options import ConsumerOptions
from outbox_core.outcome import Outcome, Vote
from outbox_core.pull import Puller
from outbox_core.slots import Consumer
from outbox_core.store import Band, KeyWant, Link, Settlement, Store, Want
from outbox_django.store import AtomicBlock, DjangoStore
from outbox_sqlalchemy import OutboxTables, SqlAlchemyStore, make_outbox_table, make_outbox_tables
from outbox_sqlalchemy.tables import names_of
from tests.django_databases import added_database, close_connections

METADATA = MetaData()
TABLES = make_outbox_tables(METADATA)
PARKING_TABLES = OutboxTables(make_outbox_table(METADATA, "parking"))
ARCHIVING_TABLES = make_outbox_tables(METADATA, "archiving", archive=True)
RECEIVING_TABLES = make_outbox_tables(METADATA, "receiving", inbox=True)


@dataclass(frozen=True)
class Dead:
    """A dead letter, as every store keeps it."""

    id: int
    message_id: UUID
    queue: str
    key: str | None
    payload: bytes
    timer_id: str | None
    reason: str
    error: str | None
    attempts: int
    deliveries: int
    created_at: datetime
    first_attempt_at: datetime | None
    last_attempt_at: datetime | None
    worker: str


class Outbox(ABC):
    """One empty store."""

    store: Store
    session_argument = "session"  # what its callers call a transaction
    strangers: tuple[object, ...] = ("session", 1, object())  # what is none

    def __init__(self) -> None:
        self._links: list[Link] = []

    @abstractmethod
    def transaction(self) -> AbstractAsyncContextManager[object]:
        """A session that commits on a normal exit and rolls back on an exception."""

    @abstractmethod
    async def publish_sync(self, session: object, *messages: NewMessage) -> list[int | None]:
        """Publish through `insert_sync` on the synchronous side of *session*."""

    @abstractmethod
    async def age(self, seconds: float) -> None:
        """Let everything in the store become older: leases end, schedules come due."""

    @abstractmethod
    async def dead_letters(self) -> list[Dead]:
        """Oldest first."""

    async def borrowed(self) -> int:
        """How many of the application's connections are in use."""
        return 0

    async def publish(self, *messages: NewMessage) -> list[int | None]:
        """Publish in a transaction of the store's own."""
        return await self.store.insert(messages, None)

    async def pending(self, queue: str | None = None) -> list[PendingMessage]:
        return await self.store.fetch_unprocessed(queue, 1_000, None)

    async def redrive(self, **picked: Any) -> int:
        """Redrive with the arguments that matter to a test."""
        every: dict[str, Any] = {"queue": None, "key": None, "ids": None, "reason": None, "limit": None}
        return await self.store.redrive(**{**every, "dry_run": False, "session": None, **picked})

    async def link(self) -> Link:
        """A link that the fixture closes."""
        link = await self.store.connect()
        self._links.append(link)
        return link

    async def close(self) -> None:
        for link in self._links:
            await link.close()


class MemoryOutbox(Outbox):
    def __init__(self) -> None:
        super().__init__()
        self._ahead = timedelta(0)
        self.store: MemoryStore = MemoryStore(clock=lambda: datetime.now(UTC) + self._ahead)

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[MemoryTransaction]:
        with self.store.begin() as transaction:
            yield transaction

    async def publish_sync(self, session: object, *messages: NewMessage) -> list[int | None]:
        return self.store.insert_sync(messages, session)

    async def age(self, seconds: float) -> None:
        self._ahead += timedelta(seconds=seconds)

    async def dead_letters(self) -> list[Dead]:
        return [
            Dead(
                id=letter.id,
                message_id=letter.message.message_id,
                queue=letter.message.queue,
                key=letter.message.key,
                payload=letter.message.payload,
                timer_id=letter.message.timer_id,
                reason=letter.reason,
                error=letter.error,
                attempts=letter.row.attempts,
                deliveries=letter.row.deliveries,
                created_at=letter.row.created_at,
                first_attempt_at=letter.row.first_attempt_at,
                last_attempt_at=letter.failed_at,
                worker=letter.worker,
            )
            for letter in self.store.dead_letters
        ]


class SqlOutbox(Outbox):
    """A store in a database, into which the test looks through an engine."""

    def __init__(self, engine: AsyncEngine, tables: OutboxTables) -> None:
        super().__init__()
        self.engine = engine
        self.tables = tables

    async def age(self, seconds: float) -> None:
        async with self.engine.begin() as connection:
            for table in filter(lambda table: table is not None, self.tables):
                times = [column for column in table.c if isinstance(column.type, DateTime)]
                await connection.execute(
                    update(table).values({column: self._earlier(column, seconds) for column in times})
                )

    def _earlier(self, column: Any, seconds: float) -> Any:
        if self.engine.dialect.name == "sqlite":
            return func.strftime("%Y-%m-%d %H:%M:%f000", column, f"-{seconds} seconds")
        return column - timedelta(seconds=seconds)

    async def dead_letters(self) -> list[Dead]:
        table = self.tables.dead_letters
        assert table is not None
        async with self.engine.connect() as connection:
            rows = await connection.execute(select(table).order_by(table.c.id))
            return [
                Dead(
                    id=row.id,
                    message_id=row.message_id,
                    queue=row.queue,
                    key=row.key,
                    payload=row.payload,
                    timer_id=row.timer_id,
                    reason=row.failure_reason,
                    error=row.last_exception,
                    attempts=row.attempts_count,
                    deliveries=row.deliveries_count,
                    created_at=_aware(row.created_at),
                    first_attempt_at=_aware(row.first_attempt_at),
                    last_attempt_at=_aware(row.last_attempt_at),
                    worker=row.worker,
                )
                for row in rows
            ]

    async def clear(self) -> None:
        async with self.engine.begin() as connection:
            for table in filter(lambda table: table is not None, self.tables):
                await connection.execute(table.delete())

    async def archived(self) -> list[bytes]:
        """The payloads in the archive, oldest first."""
        table = self.tables.archive
        assert table is not None
        async with self.engine.connect() as connection:
            return list(await connection.scalars(select(table.c.payload).order_by(table.c.id)))

    async def close(self) -> None:
        await super().close()
        await self.engine.dispose()


class SqlAlchemyOutbox(SqlOutbox):
    def __init__(self, engine: AsyncEngine, tables: OutboxTables, **options: Any) -> None:
        super().__init__(engine, tables)
        self.store: SqlAlchemyStore = SqlAlchemyStore(engine, names_of(tables), **options)

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[AsyncSession]:
        async with AsyncSession(self.engine) as session, session.begin():
            yield session

    async def publish_sync(self, session: object, *messages: NewMessage) -> list[int | None]:
        assert isinstance(session, AsyncSession)
        return await session.run_sync(lambda sync: self.store.insert_sync(messages, sync))

    async def borrowed(self) -> int:
        return self.engine.pool.checkedout()


class DjangoOutbox(SqlOutbox):
    session_argument = "using"
    strangers = (b"session", 1, object())  # any str is an alias

    def __init__(self, engine: AsyncEngine, tables: OutboxTables, **options: Any) -> None:
        super().__init__(engine, tables)
        self._database = ExitStack()
        self._alias = self._database.enter_context(added_database("outbox", engine.url))
        self.store: DjangoStore = DjangoStore(self._alias, names_of(tables), **options)

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[AtomicBlock]:
        async with self.store.transaction() as session:
            # What the test does meanwhile without the session is not for the transaction's lane.
            token = SyncToAsync.thread_sensitive_context.set(None)  # type: ignore[arg-type]  # as good as never set
            try:
                yield session
            finally:
                SyncToAsync.thread_sensitive_context.reset(token)

    async def publish_sync(self, session: object, *messages: NewMessage) -> list[int | None]:
        assert isinstance(session, AtomicBlock)
        with session.lane.entered():
            return await sync_to_async(self.store.insert_sync)(messages, session)

    async def borrowed(self) -> int:
        return await sync_to_async(lambda: int(connections[self._alias].connection is not None))()

    async def close(self) -> None:
        await super().close()
        await close_connections(self._alias)
        self._database.close()


def _aware(moment: datetime) -> datetime:
    """SQLite's times are in UTC and do not say so."""
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment


async def claim(link: Link, queue: str = "orders", *, limit: int = 100, lease: float = 30.0) -> list[Delivery]:
    """Claim from the one queue at priority 0."""
    return await link.claim([Want(Band(queue), limit)], total=limit, lease=lease)


async def claim_keyed(
    link: Link,
    queue: str = "orders",
    *,
    limit: int = 100,
    run: int = 100,
    after: str | None = None,
    lease: float = 30.0,
) -> list[Delivery]:
    """Claim what has a key from the one queue."""
    return (await link.claim_keyed(KeyWant(queue, limit, run, after), lease=lease)).deliveries


async def settle(link: Link, delivery: Delivery, outcome: Outcome) -> set[int]:
    """Settle one delivery as worker "w1"."""
    return await link.settle([Settlement(delivery, outcome)], worker="w1")


def bodies(messages: Sequence[Delivery | PendingMessage]) -> list[str]:
    """The payloads as text, in order."""
    return [message.payload.decode() for message in messages]


def consumer(
    handle: Callable[[Delivery], Awaitable[object]],
    queues: str | Sequence[str] = "orders",
    *,
    silence: Silence = "ack",
    ack_first: bool = False,
    **options: Any,
) -> Consumer:
    """A consumer whose handler takes one delivery, and which looks often."""

    async def handle_one(deliveries: Sequence[Delivery]) -> None:
        (delivery,) = deliveries
        await handle(delivery)

    its = ConsumerOptions.of(queues, {"max_fetch_interval": 0.1, **options})
    return Consumer(its, handle_one, silence=silence, ack_first=ack_first)


def batch_consumer(handle: Callable[[Sequence[Delivery]], Awaitable[object]], **options: Any) -> Consumer:
    """A consumer whose handler takes a batch."""
    return Consumer(ConsumerOptions.of("orders", {"max_fetch_interval": 0.1, "batch": True, **options}), handle)


def puller(queues: str | Sequence[str] = "orders", **options: Any) -> Puller:
    """A puller that looks often."""
    return Puller(ConsumerOptions.of(queues, {"max_fetch_interval": 0.1, **options}))


async def pulled(its: Puller) -> Delivery:
    """A message that comes in time."""
    delivery = await its.pull(10.0)
    assert delivery is not None
    return delivery


async def vote(its: Puller, delivery: Delivery, vote: Vote) -> None:
    """What a framework's message does."""
    delivery.cast(vote)
    await its.settle(delivery)


async def until(condition: Callable[[], object | Awaitable[object]], *, within: float = 10.0) -> None:
    """Return once *condition* holds; `TimeoutError` if it does not in *within* seconds."""
    async with asyncio.timeout(within):
        while not await _holds(condition):  # noqa: ASYNC110  no event tells of a row
            await asyncio.sleep(0.005)


async def _holds(condition: Callable[[], object | Awaitable[object]]) -> bool:
    answer = condition()
    return bool(await answer if isawaitable(answer) else answer)
