"""The port over anything that executes text.

An adapter brings three things: how to run statements on a caller's transaction (or a short one of its own), the same
synchronously, and how to open a connection for a worker. Everything else is here, once.
"""

import asyncio
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from datetime import timedelta
from functools import partial
from operator import attrgetter
from typing import Protocol, TypeAlias
from uuid import UUID, uuid4

from outbox_core.errors import InvalidMessage, PastRetention, SchemaMismatch
from outbox_core.inbox import check_span
from outbox_core.message import DeadMessage, Delivery, NewMessage, OutboxStats, PendingMessage, QueueStats, size_of
from outbox_core.outcome import Release
from outbox_core.schema import Tables
from outbox_core.sql import refusals
from outbox_core.sql.dialect import Dialect, Row, Settlements, Statement
from outbox_core.sql.trial import trial
from outbox_core.store import (
    CLAIM_BYTES,
    Armed,
    Band,
    Difference,
    KeyClaim,
    KeyWant,
    Listener,
    OnCommit,
    Settlement,
    Survey,
    Want,
)

Maker: TypeAlias = Callable[[Dialect], Sequence[Statement]]

SETUP_PATIENCE = 10.0  # seconds
SETUP_PAUSE = 0.02
LEAST_PATIENCE = 1.0  # seconds for an extension, however short the lease


class Executor(Protocol):
    """One connection in autocommit, which belongs to nobody else.

    *keeps_settings*: what is set on its session stays there, and is nobody else's.
    """

    keeps_settings: bool = True

    async def execute(self, statement: Statement) -> Sequence[Row]:
        """Run it and return its rows, if any; within a deadline."""

    def together(self) -> AbstractAsyncContextManager[None]:
        """What is executed meanwhile is one transaction."""

    async def close(self) -> None:
        """Never raises, never waits for a dead peer."""


class SqlStore(ABC):
    """`Store` on a dialect's statements."""

    dialect: Dialect | None  # None until a session says which database it is

    def __init__(
        self,
        tables: Tables,
        dialect: Dialect | None,
        *,
        notify: bool = True,
        insert_only: bool = False,
        dead_letter_retention: timedelta | None = None,
    ) -> None:
        if dead_letter_retention is not None:
            check_span("dead_letter_retention", dead_letter_retention)
        self.tables = tables
        self.dialect = dialect
        self._notify = notify
        self._insert_only = insert_only
        self._retention = dead_letter_retention

    @property
    @abstractmethod
    def name(self) -> str: ...

    @abstractmethod
    async def run(self, make: Maker, session: object | None) -> Sequence[Sequence[Row]]:
        """Run what *make* makes for the session's database, in the caller's transaction or one of its own."""

    @abstractmethod
    def run_sync(self, make: Maker, session: object) -> Sequence[Sequence[Row]]:
        """The same on a synchronous session."""

    @abstractmethod
    async def after_commit(self, session: object | None, todo: OnCommit) -> None: ...

    @abstractmethod
    def after_commit_sync(self, session: object, todo: OnCommit) -> None: ...

    @abstractmethod
    def transaction(self) -> AbstractAsyncContextManager[object]: ...

    @abstractmethod
    async def open(self) -> Executor:
        """A new connection for a worker, not from the application's pool."""

    @abstractmethod
    async def listen(self, heard: Callable[[str], None]) -> Listener | None: ...

    # Publishing

    async def insert(self, messages: Sequence[NewMessage], session: object | None) -> list[int | None]:
        self._check_insertable(messages)
        return self._ids(messages, await self.run(partial(self._insert, messages), session))

    def insert_sync(self, messages: Sequence[NewMessage], session: object) -> list[int | None]:
        self._check_insertable(messages)
        return self._ids(messages, self.run_sync(partial(self._insert, messages), session))

    def _insert(self, messages: Sequence[NewMessage], dialect: Dialect) -> Sequence[Statement]:
        return dialect.insert(messages, wake=self._notify and dialect.notifies, blindly=self._insert_only)

    def _check_insertable(self, messages: Sequence[NewMessage]) -> None:
        for message in messages if self._insert_only else ():
            if message.timer_conflict != "ignore":
                raise InvalidMessage(
                    f"timer_conflict={message.timer_conflict!r} looks at the timer that is there and changes it, and this "
                    "publisher may only INSERT; use one without insert_only, whose role may SELECT and UPDATE"
                )

    def _ids(self, messages: Sequence[NewMessage], answers: Sequence[Sequence[Row]]) -> list[int | None]:
        return [None] * len(messages) if self._insert_only else _ids_in_order(messages, answers)

    async def complete(self, deliveries: Sequence[Delivery], session: object) -> set[int]:
        acked = Settlements(acked=deliveries)
        answers = await self.run(lambda dialect: dialect.settle(acked, worker=""), session)
        return {row[0] for rows in answers for row in rows}

    async def cancel_timer(self, queue: str, timer_id: str, session: object | None) -> bool:
        return bool(await self._one(lambda dialect: dialect.cancel_timer(queue, timer_id), session))

    def is_conflict(self, error: Exception) -> bool:
        return refusals.is_conflict(error)

    # Operating

    async def fetch_unprocessed(self, queue: str | None, limit: int, session: object | None) -> list[PendingMessage]:
        readers: list[Callable[[Row], PendingMessage]] = []

        def look(dialect: Dialect) -> Statement:
            readers.append(dialect.read_pending)
            return dialect.fetch_unprocessed(queue, limit)

        return [readers[0](row) for row in await self._one(look, session)]

    async def fetch_dead_letters(
        self, queue: str | None, reason: str | None, limit: int, session: object | None
    ) -> list[DeadMessage]:
        readers: list[Callable[[Row], DeadMessage]] = []

        def look(dialect: Dialect) -> Sequence[Statement]:
            readers.append(dialect.read_dead)
            return dialect.fetch_dead_letters(queue, reason, limit)

        answers = await self.run(look, session)
        return [readers[0](row) for rows in answers for row in rows][:limit]

    async def find(self, id: int | UUID, session: object | None) -> list[PendingMessage | DeadMessage]:
        dialects: list[Dialect] = []

        def look(dialect: Dialect) -> Sequence[Statement]:
            dialects.append(dialect)
            return [dialect.find_unprocessed(id), *dialect.find_dead_letters(id)]

        live, *dead = await self.run(look, session)
        dialect = dialects[0]
        return [*map(dialect.read_pending, live), *(dialect.read_dead(row) for rows in dead for row in rows)]

    async def redrive(
        self,
        *,
        queue: str | None,
        key: str | None,
        ids: Sequence[int] | None,
        reason: str | None,
        limit: int | None,
        dry_run: bool,
        session: object | None,
    ) -> int:
        if self._retention is not None:
            await self._check_age(queue, key, ids, reason, self._retention, session)
        counts = await self.run(
            lambda dialect: dialect.redrive(queue, key, ids, reason, limit, dry_run=dry_run), session
        )
        return sum(int(rows[0][0]) for rows in counts if rows)

    async def _check_age(
        self,
        queue: str | None,
        key: str | None,
        ids: Sequence[int] | None,
        reason: str | None,
        retention: timedelta,
        session: object | None,
    ) -> None:
        """Whoever received a message may forget it once no dead letter of it can come back; see `outbox_core.inbox`."""
        answers = await self.run(lambda dialect: dialect.past_retention(queue, key, ids, reason, retention), session)
        for id, message_id, its_queue, age in (row for rows in answers for row in rows):
            raise PastRetention(id, UUID(int=_key(message_id)), its_queue, timedelta(seconds=int(age)), retention)

    async def release_key(self, queue: str, key: str, session: object | None) -> bool:
        answers = await self.run(lambda dialect: dialect.release_key(queue, key), session)
        return bool(answers[-1][0][0])

    async def purge_dead_letters(
        self, older_than: timedelta, queue: str | None, limit: int, session: object | None
    ) -> int:
        return len(await self._one(lambda dialect: dialect.purge_dead_letters(older_than, queue, limit), session))

    async def stats(self) -> OutboxStats:
        answers = [list(rows) for rows in await self.run(self._stats, None)]
        live = {row[0]: row for row in answers.pop(0)}
        blocked = {row[0]: row[1] for row in answers.pop(0)}
        dead: dict[str, int] = {}
        if self.tables.dead_letters is not None:
            dead = {row[0]: row[1] for row in answers.pop(0)}
        paused = {row[0] for row in answers.pop(0)} if self.tables.queues is not None else set()
        return OutboxStats(
            {queue: _queue_stats(queue, live, blocked, dead, paused) for queue in sorted({*live, *dead, *paused})}
        )

    def _stats(self, dialect: Dialect) -> Sequence[Statement]:
        statements = [dialect.stats(), dialect.blocked_keys()]
        if self.tables.dead_letters is not None:
            statements.append(dialect.dead_counts())
        if self.tables.queues is not None:
            statements.append(dialect.paused_queues())
        return statements

    async def queues(self) -> list[str]:
        return [row[0] for row in (await self._look(lambda dialect: [dialect.queues()]))[0]]

    async def set_paused(self, queue: str, paused: bool, session: object | None) -> None:
        await self._one(lambda dialect: dialect.set_paused(queue, paused), session)

    async def differences(self) -> Mapping[str, Sequence[Difference]]:
        found: dict[str, Sequence[Difference]] = {}
        for table in self.tables.described():
            answers = await self._look(partial(_catalogue, table))
            assert self.dialect is not None, "a store that can run by itself knows its database"
            if differences := self.dialect.read_catalogue(table, answers):
                found[table] = [one._replace(needed=table != self.tables.inbox) for one in differences]
        return found

    # Receiving

    async def receive(self, message_id: str, consumer: str, session: object) -> bool:
        """Record a message from elsewhere in the session's transaction; False if *consumer* has it already.

        While another transaction that has recorded it is open, this waits for its end, and then says what came of it.
        """
        with self._inbox_refused():
            return bool(await self._one(lambda dialect: dialect.receive(message_id, consumer), session))

    def receive_sync(self, message_id: str, consumer: str, session: object) -> bool:
        with self._inbox_refused():
            return bool(self.run_sync(lambda dialect: [dialect.receive(message_id, consumer)], session)[0])

    async def purge_inbox(self, older_than: timedelta, limit: int, session: object | None) -> int:
        """Forget up to *limit* messages that were received more than *older_than* ago, oldest first; how many."""
        with self._inbox_refused():
            return len(await self._one(lambda dialect: dialect.purge_inbox(older_than, limit), session))

    def purge_inbox_sync(self, older_than: timedelta, limit: int, session: object) -> int:
        with self._inbox_refused():
            return len(self.run_sync(lambda dialect: [dialect.purge_inbox(older_than, limit)], session)[0])

    @contextmanager
    def _inbox_refused(self) -> Iterator[None]:
        """What the database says of a table was said of the inbox."""
        try:
            yield
        except SchemaMismatch as error:
            assert self.tables.inbox is not None, "otherwise there is no statement"
            raise SchemaMismatch(self.tables.inbox, error.differences) from error.__cause__

    async def _look(self, make: Maker) -> Sequence[Sequence[Row]]:
        """What a worker wants to know before it begins, in no transaction of anybody's."""
        return await self.run(make, None)

    async def _one(self, make: Callable[[Dialect], Statement], session: object | None) -> Sequence[Row]:
        return (await self.run(lambda dialect: [make(dialect)], session))[0]

    # Working

    async def connect(self) -> "SqlLink":
        executor = await self.open()
        assert self.dialect is not None, "a store that can open connections knows its database"
        try:
            for statement in self.dialect.setup() if executor.keeps_settings else ():
                await _insist(executor, statement)
        except BaseException:
            await executor.close()
            raise
        return SqlLink(executor, self.dialect)


class SqlLink:
    """`Link` on one executor."""

    def __init__(self, executor: Executor, dialect: Dialect) -> None:
        self._executor = executor
        self._dialect = dialect
        self._holds_locks = False

    async def claim(
        self, wants: Sequence[Want], *, total: int, lease: float, most_bytes: int = CLAIM_BYTES
    ) -> list[Delivery]:
        token, suspect = uuid4(), uuid4()
        statement = self._dialect.claim(
            wants, total=total, most_bytes=most_bytes, lease=lease, token=token, suspect=suspect
        )
        rows = await self._executor.execute(statement)
        deliveries = [self._dialect.read_delivery(row, suspect) for row in rows]
        deliveries.sort(key=_age)
        if len(wants) > 1:
            place = {want.band: number for number, want in enumerate(wants)}
            deliveries.sort(key=lambda delivery: place[Band(delivery.queue, delivery.priority)])
        return deliveries

    async def claim_keyed(self, want: KeyWant, *, lease: float) -> KeyClaim:
        looked = await self._executor.execute(self._dialect.look_at_keys(want))
        lengths, after, due_in = self._dialect.read_keys(looked)
        if not lengths:
            return KeyClaim([], after, due_in)
        deliveries, full_at = await self._claim_keys(want, _runs(want, lengths), lease)
        return KeyClaim(deliveries, after if full_at in (None, [*lengths][-1]) else full_at, due_in)

    async def _claim_keys(
        self, want: KeyWant, runs: Mapping[str, int], lease: float
    ) -> tuple[list[Delivery], str | None]:
        """The messages, and at which key they had all the bytes that were wanted, None if they had fewer."""
        token, suspect, queue = uuid4(), uuid4(), want.queue
        rows = await self._executor.execute(
            self._dialect.claim_keys(queue, runs, most_bytes=want.most_bytes, lease=lease, token=token, suspect=suspect)
        )
        place = {key: number for number, key in enumerate(runs)}
        deliveries = [self._dialect.read_delivery(row, suspect) for row in rows]
        deliveries.sort(key=lambda delivery: (place[delivery.key or ""], delivery.id))
        full_at = deliveries[-1].key if size_of(deliveries) >= want.most_bytes else None
        if deliveries and self._dialect.claims_collide:
            deliveries = await self._unrivalled(queue, deliveries, token, suspect)
        return deliveries, full_at

    async def _unrivalled(self, queue: str, deliveries: list[Delivery], token: UUID, suspect: UUID) -> list[Delivery]:
        """Give back the keys of which somebody else has a message.

        Two claims that begin before either has committed do not see each other; each looks again when it has, so that at
        least the later one sees the other.
        """
        keys = sorted({delivery.key for delivery in deliveries if delivery.key is not None})
        rows = await self._executor.execute(self._dialect.rivals(queue, keys, token=token, suspect=suspect))
        contested = {row[0] for row in rows}
        back = [delivery for delivery in deliveries if delivery.key in contested]
        if back:
            await self.settle([Settlement(delivery, Release()) for delivery in back], worker="")
        return [delivery for delivery in deliveries if delivery.key not in contested]

    async def survey(self, queues: Sequence[str]) -> Survey:
        return self._dialect.read_survey(await self._executor.execute(self._dialect.survey(queues)))

    async def arm(self, queues: Sequence[str]) -> Armed:
        await self.disarm()
        self._holds_locks = True  # whatever comes of it
        states = {row[0] for row in await self._executor.execute(self._dialect.arm(queues))}
        if "publishing" in states:
            await self.disarm()
            return "publishing"
        self._holds_locks = "armed" in states
        return "proxied" if "proxied" in states else "armed"

    async def disarm(self) -> None:
        if self._holds_locks:
            await self._executor.execute(self._dialect.disarm())
            self._holds_locks = False

    async def begin(self, delivery: Delivery) -> bool:
        return bool(await self._executor.execute(self._dialect.begin(delivery)))

    async def extend(self, deliveries: Sequence[Delivery], lease: float) -> set[int]:
        # SQLite waits for whoever writes, with a patience of its own, and meanwhile nobody else can claim.
        patience = max(LEAST_PATIENCE, lease / 4) if self._dialect.remote else None
        async with asyncio.timeout(patience):
            return await self._ids([self._dialect.extend(deliveries, lease)])

    async def ours(self, deliveries: Sequence[Delivery]) -> set[int]:
        return await self._ids([self._dialect.ours(deliveries)])

    async def settle(self, settlements: Sequence[Settlement], *, worker: str) -> set[int]:
        park = self._dialect.tables.dead_letters is None
        statements = self._dialect.settle(Settlements.of(settlements, park=park), worker=worker)
        if not self._dialect.settles_in_transaction or len(statements) < 2:
            return await self._ids(statements)
        async with self._executor.together():
            return await self._ids(statements)

    async def _ids(self, statements: Sequence[Statement]) -> set[int]:
        return {row[0] for statement in statements for row in await self._executor.execute(statement)}

    async def try_out(self) -> None:
        for statement in trial(self._dialect):
            await self._executor.execute(statement)

    async def notify(self, payload: str) -> None:
        await self._executor.execute(self._dialect.notify(payload))

    async def ping(self) -> None:
        await self._executor.execute(Statement("SELECT 1", {}))

    async def close(self) -> None:
        await self._executor.close()


_age = attrgetter("due", "id")


@asynccontextmanager
async def begun(executor: Executor, begin: str = "BEGIN IMMEDIATE") -> AsyncIterator[None]:
    """`Executor.together` by statements, on a connection in autocommit."""
    await executor.execute(Statement(begin, {}))
    try:
        yield
        await executor.execute(Statement("COMMIT", {}))
    except BaseException:
        await executor.execute(Statement("ROLLBACK", {}))
        raise


def _runs(want: KeyWant, lengths: Mapping[str, int]) -> dict[str, int]:
    """How many messages to claim of each key: as many as were found, and more where they leave room."""
    room = want.limit - sum(lengths.values())
    more = max(0, room) // max(1, len(lengths))
    runs = {key: min(want.run, length + more) for key, length in lengths.items()}
    if room < 0:  # only the last key can have brought more than was wanted
        last = [*lengths][-1]
        runs[last] += room
    return runs


async def _insist(executor: Executor, statement: Statement) -> None:
    """Run *statement*, again and again while SQLite refuses it: it never waits to change its journal, busy or not."""
    async with asyncio.timeout(SETUP_PATIENCE):
        while True:
            try:
                await executor.execute(statement)
            except Exception as error:
                if "database is locked" not in str(error):
                    raise
            else:
                return
            await asyncio.sleep(SETUP_PAUSE)


def _catalogue(table: str, dialect: Dialect) -> Sequence[Statement]:
    return dialect.catalogue(table)


def _ids_in_order(messages: Sequence[NewMessage], answers: Sequence[Sequence[Row]]) -> list[int | None]:
    if len(messages) == 1:
        return [row[0] for rows in answers for row in rows] or [None]
    new = iter([id for rows in answers for id in sorted(row[0] for row in rows if row[1] is None)])
    ids = {_key(row[1]): row[0] for rows in answers for row in rows if row[1] is not None}
    return [ids.pop(message.message_id.int, None) if message.may_conflict else next(new, None) for message in messages]


def _key(message_id: object) -> int:
    return message_id.int if isinstance(message_id, UUID) else int(str(message_id).replace("-", ""), 16)


def _queue_stats(
    queue: str, live: Mapping[str, Row], blocked: Mapping[str, int], dead: Mapping[str, int], paused: set[str]
) -> QueueStats:
    _, ready, scheduled, leased, parked, oldest = live.get(queue, (queue, 0, 0, 0, 0, None))
    return QueueStats(
        queue=queue,
        ready=ready,
        scheduled=scheduled,
        leased=leased,
        blocked_keys=blocked.get(queue, 0),
        dead=parked + dead.get(queue, 0),
        oldest_age=oldest,
        paused=queue in paused,
    )
