"""The port in a dictionary: the reference reading of what every store does, and what tests use.

One process, one event loop (a worker's heartbeat aside), no I/O. The clock is an argument, so a lease ends when a test says
so. A transaction (`store.begin()`) sees nothing of its own until it commits, which is all that publishing needs.
"""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from itertools import accumulate, count, takewhile
from typing import Any
from uuid import UUID, uuid4

from outbox_core.errors import WrongType
from outbox_core.message import (
    DeadMessage,
    Delivery,
    NewMessage,
    OutboxStats,
    PendingMessage,
    QueueStats,
    read_headers,
    size_of,
)
from outbox_core.outcome import Ack, DeadLetter, Release, Retry
from outbox_core.store import (
    CLAIM_BYTES,
    Armed,
    Band,
    Difference,
    KeyClaim,
    KeyWant,
    OnCommit,
    Settlement,
    Survey,
    Want,
)


@dataclass(slots=True, kw_only=True)
class _Row:
    id: int
    message: NewMessage
    created_at: datetime
    due_at: datetime
    token: UUID | None = None
    leased_until: datetime | None = None
    deliveries: int = 0
    attempts: int = 0
    first_attempt_at: datetime | None = None
    failed_at: datetime | None = None
    parked: DeadLetter | None = None  # dead, and keeping its key waiting

    def renew(self, message: NewMessage, due_at: datetime) -> None:
        """Give a timer new content: no failures, and no lease whose holder could still settle it."""
        self.message, self.due_at = message, due_at
        self.attempts = self.deliveries = 0
        self.first_attempt_at = self.token = self.leased_until = None


@dataclass(slots=True, kw_only=True)
class MemoryDeadLetter:
    """A dead letter as the memory store keeps it."""

    id: int
    row: _Row
    reason: str
    error: str | None
    failed_at: datetime
    worker: str | None

    @property
    def message(self) -> NewMessage:
        return self.row.message


class MemoryTransaction:
    """Messages that exist when it commits."""

    def __init__(self, store: "MemoryStore") -> None:
        self._store = store
        self._pending: list[Callable[[], object]] = []
        self.published: dict[int, NewMessage] = {}
        self.todo: list[OnCommit] = []  # afterwards

    def add(self, change: Callable[[], object]) -> None:
        self._pending.append(change)

    def commit(self) -> None:
        """Let everything published in it exist, in order, and do what was to be done then."""
        for todo in self._committed():
            todo.run_sync()

    async def commit_async(self) -> None:
        """The same, waiting for what is done."""
        for todo in self._committed():
            await todo.run()

    def _committed(self) -> list[OnCommit]:
        pending, self._pending = self._pending, []
        todo, self.todo = self.todo, []
        self.published.clear()
        for change in pending:
            change()
        return todo

    def rollback(self) -> None:
        """Forget it."""
        self._pending.clear()
        self.published.clear()
        self.todo.clear()


class MemoryStore:
    """`Store` without a database. Lost with the process."""

    name = "memory"

    def __init__(self, clock: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        self._clock = clock
        self.lock = threading.Lock()  # for who changes leases: a worker's heartbeat does from a thread of its own
        self._ids = count(1)
        self._rows: dict[int, _Row] = {}
        self._dead: dict[int, MemoryDeadLetter] = {}
        self._paused: set[str] = set()
        self._listeners: list[Callable[[str], None]] = []

    @contextmanager
    def begin(self) -> Iterator[MemoryTransaction]:
        """A transaction that commits on a normal exit and rolls back on an exception."""
        transaction = MemoryTransaction(self)
        try:
            yield transaction
        except BaseException:
            transaction.rollback()
            raise
        transaction.commit()

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[MemoryTransaction]:
        transaction = MemoryTransaction(self)
        yield transaction  # an exception leaves nothing to forget
        await transaction.commit_async()

    async def complete(self, deliveries: Sequence[Delivery], session: object) -> set[int]:
        ours = [row for delivery in deliveries if (row := self._held(delivery)) is not None]
        for row in ours:
            _transaction(session).add(partial(self._rows.pop, row.id, None))
        return {row.id for row in ours}

    async def cutter(self, session: object) -> Callable[[], None]:
        return lambda: None

    def is_conflict(self, error: Exception) -> bool:
        return False  # nobody waits for anybody here

    @property
    def dead_letters(self) -> list[MemoryDeadLetter]:
        """By id, oldest first."""
        return list(self._dead.values())

    # Publishing

    async def insert(self, messages: Sequence[NewMessage], session: object | None) -> list[int | None]:
        return self.insert_sync(messages, session)

    def insert_sync(self, messages: Sequence[NewMessage], session: object | None) -> list[int | None]:
        if session is None:
            return [self._insert(message, next(self._ids)) for message in messages]
        transaction = _transaction(session)
        return [self._insert_at_commit(message, transaction) for message in messages]

    async def after_commit(self, session: object | None, todo: OnCommit) -> None:
        if session is None:
            await todo.run()
        else:
            _transaction(session).todo.append(todo)

    def after_commit_sync(self, session: object | None, todo: OnCommit) -> None:
        if session is None:
            todo.run_sync()
        else:
            _transaction(session).todo.append(todo)

    def _insert_at_commit(self, message: NewMessage, transaction: "MemoryTransaction") -> int | None:
        id = next(self._ids)
        transaction.add(lambda: self._insert(message, id))
        for published, its in transaction.published.items():
            if _same(its, message):
                return published if _changes(its, message) else None
        if (row := self._conflicting(message)) is not None:
            return row.id if _changes(row.message, message) and not self._leased(row) else None
        transaction.published[id] = message
        return id

    def _insert(self, message: NewMessage, id: int) -> int | None:
        if (existing := self._conflicting(message)) is not None:
            return self._resolve(existing, message)
        now = self._clock()
        self._rows[id] = _Row(id=id, message=message, created_at=now, due_at=self._due(message))
        self._tell(message.queue)
        return id

    def _due(self, message: NewMessage) -> datetime:
        return message.available_at or self._clock() + timedelta(seconds=message.delay or 0)

    def _conflicting(self, message: NewMessage) -> _Row | None:
        return next((row for row in self._rows.values() if _conflict(row, message)), None)

    def _resolve(self, row: _Row, message: NewMessage) -> int | None:
        if not _changes(row.message, message) or self._leased(row):
            return None
        due = self._due(message)
        if message.timer_conflict == "replace":
            row.renew(message._replace(message_id=row.message.message_id), due)
        elif due > row.due_at:
            row.renew(row.message._replace(payload=message.payload, headers=message.headers), due)
        return row.id

    async def cancel_timer(self, queue: str, timer_id: str, session: object | None) -> bool:
        for id, row in self._rows.items():
            if _timer(row.message) == (queue, timer_id) and not self._leased(row) and row.parked is None:
                self._change(session, partial(self._rows.pop, id, None))
                return True
        return False

    # Operating

    async def fetch_unprocessed(self, queue: str | None, limit: int, session: object | None) -> list[PendingMessage]:
        rows = [row for row in self._rows.values() if queue in (None, row.message.queue)]
        return [self._pending(row) for row in rows[:limit]]

    async def fetch_dead_letters(
        self, queue: str | None, reason: str | None, limit: int, session: object | None
    ) -> list[DeadMessage]:
        latest = reversed(self._dead.values())
        picked = [one for one in latest if queue in (None, one.message.queue) and reason in (None, one.reason)]
        return [_dead_message(letter) for letter in picked[:limit]]

    async def find(self, id: int | UUID, session: object | None) -> list[PendingMessage | DeadMessage]:
        live = [self._pending(row) for row in self._rows.values() if id in (row.id, row.message.message_id)]
        dead = [_dead_message(one) for one in self._dead.values() if id in (one.id, one.message.message_id)]
        return [*live, *dead]

    def _pending(self, row: _Row) -> PendingMessage:
        return PendingMessage(
            **_stored(row.id, row),
            next_attempt_at=row.due_at,
            leased=self._leased(row),
            failure_reason=None if row.parked is None else row.parked.reason,
        )

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
        halting = [
            row
            for row in self._rows.values()
            if row.parked is not None
            and queue in (None, row.message.queue)
            and key in (None, row.message.key)
            and reason in (None, row.parked.reason)
            and ids is None
        ][:limit]
        if not dry_run:
            for row in halting:
                self._change(session, partial(self._wake, row))
        live = {row.message.message_id for row in self._rows.values()}
        picked = [
            letter
            for letter in self._dead.values()
            if queue in (None, letter.message.queue)
            and key in (None, letter.message.key)
            and reason in (None, letter.reason)
            and (ids is None or letter.id in ids)
            and letter.message.message_id not in live
        ][: None if limit is None else limit - len(halting)]
        oldest = {letter.message.message_id: letter for letter in reversed(picked)}
        if not dry_run:
            self._change(session, lambda: self._put_back(reversed(oldest.values())))
        return len(halting) + len(oldest)

    def _wake(self, row: _Row) -> None:
        """Let a message that halts its key be tried again, in its old place."""
        row.renew(row.message._replace(timer_id=None), self._clock())
        row.parked = None
        self._tell(row.message.queue)

    async def release_key(self, queue: str, key: str, session: object | None) -> bool:
        halting = [row for row in self._line(queue, key) if row.parked is not None]
        for row in halting:
            self._change(session, partial(self._give_up, row))
        return bool(halting)

    def _give_up(self, row: _Row) -> None:
        dead, row.parked = row.parked, None
        assert dead is not None, "it halts its key"
        del self._rows[row.id]
        self._bury(row, dead, None)
        self._tell(row.message.queue)

    def _bury(self, row: _Row, dead: DeadLetter, worker: str | None) -> None:
        id = next(self._ids)
        self._dead[id] = MemoryDeadLetter(
            id=id,
            row=row,
            reason=dead.reason,
            error=dead.error,
            failed_at=row.failed_at or self._clock(),
            worker=worker,
        )

    def _put_back(self, letters: Iterable[MemoryDeadLetter]) -> None:
        for letter in letters:
            if self._dead.pop(letter.id, None) is not None:
                id, message = next(self._ids), letter.message._replace(timer_id=None)
                self._rows[id] = _Row(id=id, message=message, created_at=letter.row.created_at, due_at=self._clock())
                self._tell(message.queue)

    async def purge_dead_letters(
        self, older_than: timedelta, queue: str | None, limit: int, session: object | None
    ) -> int:
        before = self._clock() - older_than
        old = [
            id
            for id, letter in self._dead.items()
            if letter.failed_at < before and queue in (None, letter.message.queue)
        ]
        for id in old[:limit]:
            self._change(session, partial(self._dead.pop, id, None))
        return len(old[:limit])

    async def stats(self) -> OutboxStats:
        names = {row.message.queue for row in self._rows.values()} | self._paused
        names |= {letter.message.queue for letter in self._dead.values()}
        return OutboxStats({queue: self._queue_stats(queue) for queue in sorted(names)})

    def _queue_stats(self, queue: str) -> QueueStats:
        now = self._clock()
        rows = [row for row in self._rows.values() if row.message.queue == queue]
        parked = sum(row.parked is not None for row in rows)
        ready = [row for row in rows if not self._leased(row) and row.due_at <= now and row.parked is None]
        leased = sum(self._leased(row) for row in rows)
        return QueueStats(
            queue=queue,
            ready=len(ready),
            scheduled=len(rows) - len(ready) - leased - parked,
            leased=leased,
            blocked_keys=sum(
                self._is_blocked(queue, key) for key in {row.message.key for row in rows} if key is not None
            ),
            dead=parked + sum(letter.message.queue == queue for letter in self._dead.values()),
            oldest_age=(now - min(row.due_at for row in ready)).total_seconds() if ready else None,
            paused=queue in self._paused,
        )

    def _is_blocked(self, queue: str, key: str) -> bool:
        """Whether messages of the key wait behind one that has failed and is not due, or is dead and halts them."""
        line = self._line(queue, key)
        if any(row.parked is not None for row in line):
            return True
        first, *others = line
        return first.attempts > 0 and first.due_at > self._clock() and bool(others)

    async def queues(self) -> list[str]:
        return sorted({row.message.queue for row in self._rows.values() if row.parked is None})

    async def set_paused(self, queue: str, paused: bool, session: object | None) -> None:
        self._change(session, lambda: (self._paused.add if paused else self._paused.discard)(queue))

    async def differences(self) -> Mapping[str, Sequence[Difference]]:
        return {}

    # Working

    async def connect(self) -> "MemoryLink":
        return MemoryLink(self)

    async def listen(self, heard: Callable[[str], None]) -> "MemoryListener":
        self._listeners.append(heard)
        return MemoryListener(self, heard)

    def _tell(self, payload: str) -> None:
        for heard in [*self._listeners]:
            heard(payload)

    def _held(self, delivery: Delivery) -> _Row | None:
        """Its row if that is still ours. A suspect that was given back has a token, and no lease."""
        row = self._rows.get(delivery.id)
        ours = row is not None and row.token == delivery.token and row.leased_until is not None
        return row if ours else None

    def _line(self, queue: str, key: str) -> list[_Row]:
        """The messages of a key in order, those included that halt it."""
        rows = (row for row in self._rows.values() if (row.message.queue, row.message.key) == (queue, key))
        return sorted(rows, key=lambda row: row.id)

    def _keys(self, queue: str) -> list[str]:
        keys = {row.message.key for row in self._rows.values() if row.message.queue == queue and row.parked is None}
        return sorted(key for key in keys if key is not None)

    def _leased(self, row: _Row) -> bool:
        return row.leased_until is not None and row.leased_until > self._clock()

    def _change(self, session: object | None, change: Callable[[], object]) -> None:
        if session is None:
            change()
        else:
            _transaction(session).add(change)


class MemoryLink:
    """`Link` on the store's dictionary."""

    def __init__(self, store: MemoryStore) -> None:
        self._store = store

    async def claim(
        self, wants: Sequence[Want], *, total: int, lease: float, most_bytes: int = CLAIM_BYTES
    ) -> list[Delivery]:
        token, now = uuid4(), self._store._clock()
        claimed: list[Delivery] = []
        with self._store.lock:
            for want in wants:
                due = _within(most_bytes - size_of(claimed), self._due_rows(want, now))
                due = due[: min(want.limit, total - len(claimed))]
                claimed += [self._lease(row, token, now, lease) for row in due]
        return claimed

    def _due_rows(self, want: Want, now: datetime) -> list[_Row]:
        rows = [
            row
            for row in self._store._rows.values()
            if (row.message.queue, row.message.priority) == (want.band.queue, want.band.priority)
            and row.message.key is None
            and row.due_at <= now
            and (want.since is None or want.since <= row.due_at.timestamp())
            and not self._store._leased(row)
        ]
        return sorted(rows, key=lambda row: (row.due_at, row.id))

    async def claim_keyed(self, want: KeyWant, *, lease: float) -> KeyClaim:
        token, now = uuid4(), self._store._clock()
        claimed: list[Delivery] = []
        dues: list[datetime] = []
        keys = [key for key in self._store._keys(want.queue) if want.after is None or key > want.after]
        for place, key in enumerate(keys, 1):
            line = self._store._line(want.queue, key)
            startable = list(takewhile(lambda row: row.due_at <= now, line))
            if not startable and line[0].due_at > now:
                dues.append(line[0].due_at)
            if any(row.parked is not None or self._store._leased(row) for row in line):
                continue
            most = min(want.run, want.limit - len(claimed))
            run = _within(want.most_bytes - size_of(claimed), startable[:most])
            with self._store.lock:
                claimed += [self._lease(row, token, now, lease) for row in run]
            full = len(claimed) >= want.limit or size_of(claimed) >= want.most_bytes
            if full and place < len(keys):
                return KeyClaim(claimed, key, _first(dues, now))
        return KeyClaim(claimed, None, _first(dues, now))

    def _lease(self, row: _Row, token: UUID, now: datetime, lease: float) -> Delivery:
        suspect = row.token is not None
        row.token, row.leased_until = token, now + timedelta(seconds=lease)
        return Delivery(
            id=row.id,
            message_id=row.message.message_id,
            queue=row.message.queue,
            key=row.message.key,
            payload=row.message.payload,
            headers=read_headers(row.message.headers),
            priority=row.message.priority,
            attempts=row.attempts,
            deliveries=row.deliveries,
            created=row.created_at.timestamp(),
            first_attempt=None if row.first_attempt_at is None else row.first_attempt_at.timestamp(),
            due=row.due_at.timestamp(),
            claimed=now.timestamp(),
            token=token,
            suspect=suspect,
        )

    async def survey(self, queues: Sequence[str]) -> Survey:
        now = self._store._clock()
        live = [row for row in self._store._rows.values() if row.message.queue in queues and row.parked is None]
        keyed = frozenset(row.message.queue for row in live if row.message.key is not None)
        rows = [row for row in live if row.message.key is None]
        bands = sorted({(row.message.queue, -row.message.priority) for row in rows})
        paused = frozenset(self._store._paused.intersection(queues))
        recently = now - timedelta(seconds=1)
        waiting = [row for row in rows if row.token is None and row.message.queue not in paused]
        dues = [row.due_at for row in waiting if row.due_at > recently]
        return Survey(
            bands=tuple(Band(queue, -priority) for queue, priority in bands),
            due_in=_first(dues, now),
            keyed=keyed,
            paused=paused,
        )

    async def arm(self, queues: Sequence[str]) -> Armed:
        return "armed"

    async def disarm(self) -> None:
        pass

    async def begin(self, delivery: Delivery) -> bool:
        row = self._store._held(delivery)
        if row is not None:
            row.deliveries = delivery.deliveries + 1
        return row is not None

    async def extend(self, deliveries: Sequence[Delivery], lease: float) -> set[int]:
        with self._store.lock:
            ours = self._ours(deliveries)
            for row in ours:
                row.leased_until = self._store._clock() + timedelta(seconds=lease)
        return {row.id for row in ours}

    async def ours(self, deliveries: Sequence[Delivery]) -> set[int]:
        return {row.id for row in self._ours(deliveries)}

    def _ours(self, deliveries: Sequence[Delivery]) -> list[_Row]:
        rows = (self._store._held(delivery) for delivery in deliveries)
        return [row for row in rows if row is not None]

    async def settle(self, settlements: Sequence[Settlement], *, worker: str) -> set[int]:
        ours = set()
        with self._store.lock:
            for settlement in settlements:
                row = self._store._held(settlement.delivery)
                if row is not None:
                    self._settle(row, settlement, worker)
                    ours.add(row.id)
        return ours

    def _settle(self, row: _Row, settlement: Settlement, worker: str) -> None:
        now = self._store._clock()
        delivery = settlement.delivery
        begun = 0 if delivery.begun else 1
        match settlement.outcome:
            case Ack():
                del self._store._rows[row.id]
            case Release():
                row.token = delivery.token if delivery.still_suspect else None
                row.leased_until = None
            case Retry(delay, failed):
                row.token = row.leased_until = None
                row.due_at = now + timedelta(seconds=delay)
                if failed:
                    row.deliveries += begun
                    row.attempts += 1
                    row.first_attempt_at = row.first_attempt_at or now
            case DeadLetter() as dead:
                if dead.reason != "max_deliveries":
                    row.deliveries += begun
                    row.attempts += 1
                row.first_attempt_at = row.first_attempt_at or now
                row.failed_at = now
                if dead.halts:
                    row.parked, row.token, row.leased_until = dead, None, None
                else:
                    del self._store._rows[row.id]
                    self._store._bury(row, dead, worker)

    async def try_out(self) -> None:
        pass

    async def notify(self, payload: str) -> None:
        self._store._tell(payload)

    async def ping(self) -> None:
        pass

    async def close(self) -> None:
        pass


class MemoryListener:
    """`Listener` on the store's own calls."""

    def __init__(self, store: MemoryStore, heard: Callable[[str], None]) -> None:
        self._store = store
        self._heard = heard

    async def closed(self) -> None:
        await asyncio.Event().wait()

    async def close(self) -> None:
        if self._heard in self._store._listeners:
            self._store._listeners.remove(self._heard)


def _transaction(session: object) -> MemoryTransaction:
    if not isinstance(session, MemoryTransaction):
        raise WrongType("session", "a MemoryTransaction or None", session, "use store.begin()")
    return session


def _timer(message: NewMessage) -> tuple[str, str] | None:
    return None if message.timer_id is None else (message.queue, message.timer_id)


def _conflict(row: _Row, message: NewMessage) -> bool:
    if row.parked is not None:
        return row.message.message_id == message.message_id
    return _same(row.message, message)


def _same(one: NewMessage, other: NewMessage) -> bool:
    return one.message_id == other.message_id or (one.timer_id is not None and _timer(one) == _timer(other))


def _first(dues: Sequence[datetime], now: datetime) -> float | None:
    return (min(dues) - now).total_seconds() if dues else None


def _within(most_bytes: int, rows: Sequence[_Row]) -> list[_Row]:
    """The first of *rows*, until their payloads have reached *most_bytes*."""
    before = accumulate((len(row.message.payload) for row in rows), initial=0)
    return [row for row, size in zip(rows, before, strict=False) if size < most_bytes]


def _changes(timer: NewMessage, message: NewMessage) -> bool:
    """Whether *message* is to change *timer*, with which it conflicts, instead of yielding to it."""
    return message.timer_conflict != "ignore" and message.timer_id is not None and _timer(timer) == _timer(message)


def _dead_message(letter: MemoryDeadLetter) -> DeadMessage:
    return DeadMessage(
        **_stored(letter.id, letter.row),
        first_attempt_at=letter.row.first_attempt_at,
        last_attempt_at=letter.failed_at,
        failed_at=letter.failed_at,
        reason=letter.reason,
        error=letter.error,
        worker=letter.worker,
    )


def _stored(id: int, row: _Row) -> dict[str, Any]:
    return {
        "id": id,
        "message_id": row.message.message_id,
        "queue": row.message.queue,
        "key": row.message.key,
        "payload": row.message.payload,
        "headers": read_headers(row.message.headers),
        "priority": row.message.priority,
        "timer_id": row.message.timer_id,
        "attempts_count": row.attempts,
        "deliveries_count": row.deliveries,
        "created_at": row.created_at,
    }
