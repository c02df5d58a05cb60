"""What a database must be able to say: the list of statements, each as text with `:name` parameters.

A dialect is pure: it returns text and parameters, and reads rows. Adapters hand over a connection that executes text and
render `:name` in their driver's style; no statement contains a colon otherwise, nor a percent sign.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cached_property, lru_cache
from hashlib import blake2b
from typing import Any, ClassVar, NamedTuple, TypeAlias
from uuid import UUID

from outbox_core.errors import UnsupportedDatabase
from outbox_core.message import DeadMessage, Delivery, NewMessage, PendingMessage, read_headers
from outbox_core.outcome import Ack, DeadLetter, Outcome, Release, Retry
from outbox_core.schema import Tables
from outbox_core.store import Band, Difference, KeyWant, Settlement, Survey, Want

Row: TypeAlias = Sequence[Any]

# What a timer with new content forgets: its failures, and a lease that has ended, lest its holder settles the new content.
ANEW = (
    ("attempts_count", "0"),
    ("deliveries_count", "0"),
    ("first_attempt_at", "NULL"),
    ("last_attempt_at", "NULL"),
    ("acquired_token", "NULL"),
    ("leased_until", "NULL"),
    ("held_key", "NULL"),
)

MAX_HOPS = 2_000  # keys that one look passes; a few microseconds each, and the next look goes on from there


@dataclass(frozen=True, slots=True)
class Statement:
    """One statement, ready for any driver."""

    text: str
    parameters: Mapping[str, object]


class KeyLook(NamedTuple):
    """What a look at keys has found: how many messages may be claimed of each, at least, and the rest as in `KeyClaim`."""

    lengths: dict[str, int]
    after: str | None
    due_in: float | None


class Dialect(ABC):
    """The statements of one database on one set of tables."""

    name: ClassVar[str]
    notifies: ClassVar[bool]  # whether publishers can wake workers through this database
    remote: ClassVar[bool]  # whether there is a network in between, which may fall silent

    def __init__(self, tables: Tables) -> None:
        self.tables = tables
        self.outbox = tables.sql(tables.outbox)

    # Publishing

    @abstractmethod
    def insert(self, messages: Sequence[NewMessage], *, wake: bool, blindly: bool = False) -> Sequence[Statement]:
        """Insert all messages; rows of `id, message_id` come back for those that were inserted or changed a timer.

        The message id is the message's own, whatever the timer's row goes by; NULL for those that cannot conflict, which are
        all inserted, with ids that grow with their place.

        One statement for any number of messages that share queue, key, priority and schedule. *wake*: also notify, if a
        sleeping worker has armed the queue. *blindly*: read no column, so that a role which may only INSERT can run it;
        what comes back means nothing.
        """

    @abstractmethod
    def cancel_timer(self, queue: str, timer_id: str) -> Statement: ...

    # A worker's link

    @abstractmethod
    def setup(self) -> Sequence[Statement]:
        """What a new connection of a worker's is told first."""

    @abstractmethod
    def claim(
        self, wants: Sequence[Want], *, total: int, most_bytes: int, lease: float, token: UUID, suspect: UUID
    ) -> Statement: ...

    @abstractmethod
    def read_delivery(self, row: Row, suspect: UUID) -> Delivery: ...

    @abstractmethod
    def look_at_keys(self, want: KeyWant) -> Statement:
        """One row; see `read_keys`.

        It stops when it has found as many messages as are wanted, `KeyWant.depth` of a key at most, or has passed `MAX_HOPS`
        keys. Of the last key it may find more than are wanted.
        """

    @abstractmethod
    def read_keys(self, rows: Sequence[Row]) -> KeyLook: ...

    @abstractmethod
    def claim_keys(
        self, queue: str, runs: Mapping[str, int], *, most_bytes: int, lease: float, token: UUID, suspect: UUID
    ) -> Statement:
        """Lease the first messages of each key, as many as *runs* says, in rows of a delivery as `claim` returns them.

        Key after key until the payloads have reached *most_bytes*; a run that would go on then ends there.
        """

    @property
    @abstractmethod
    def claims_collide(self) -> bool:
        """Whether two claims can take messages of one key without seeing each other; see `rivals`."""

    def rivals(self, queue: str, keys: Sequence[str], *, token: UUID, suspect: UUID) -> Statement:
        """Rows of those among *keys* that somebody else has a message of, or that are halted."""
        raise NotImplementedError(f"claims never collide on {self.name}")

    @abstractmethod
    def survey(self, queues: Sequence[str]) -> Statement:
        """Rows of `queue, priority or None, seconds until due or None, paused, keyed`; see `read_survey`."""

    def read_survey(self, rows: Sequence[Row]) -> Survey:
        paused = frozenset(row[0] for row in rows if row[1] is None and row[3])
        dues = [row[2] for row in rows if row[1] is not None and row[2] is not None and row[0] not in paused]
        return Survey(
            bands=tuple(Band(row[0], row[1]) for row in rows if row[1] is not None),
            due_in=min(dues, default=None),
            keyed=frozenset(row[0] for row in rows if row[1] is None and row[4]),
            paused=paused,
        )

    @abstractmethod
    def extend(self, deliveries: Sequence[Delivery], lease: float) -> Statement: ...

    @abstractmethod
    def ours(self, deliveries: Sequence[Delivery]) -> Statement: ...

    @abstractmethod
    def begin(self, delivery: Delivery) -> Statement: ...

    @abstractmethod
    def settle(self, settlements: "Settlements", *, worker: str) -> Sequence[Statement]:
        """At most four statements for any batch; each returns the ids that were ours, in rows of one."""

    @property
    @abstractmethod
    def settles_in_transaction(self) -> bool:
        """Whether the statements of a settlement only make sense together."""

    def arm(self, queues: Sequence[str]) -> Statement:
        raise NotImplementedError(f"{self.name} cannot notify")

    def disarm(self) -> Statement:
        raise NotImplementedError(f"{self.name} cannot notify")

    def notify(self, payload: str) -> Statement:
        raise NotImplementedError(f"{self.name} cannot notify")

    # Operating

    @abstractmethod
    def fetch_unprocessed(self, queue: str | None, limit: int) -> Statement: ...

    @abstractmethod
    def find_unprocessed(self, id: int | UUID) -> Statement:
        """The same by row id or message id, without what is parked."""

    def read_pending(self, row: Row) -> PendingMessage:
        return PendingMessage(
            **self._read_stored(row),
            next_attempt_at=self.read_moment(row[11]),
            leased=bool(row[12]),
            failure_reason=row[13],
        )

    def fetch_dead_letters(self, queue: str | None, reason: str | None, limit: int) -> Sequence[Statement]:
        """Of each table that can have some, latest first; see `read_dead`."""
        where = """(CAST(:queue AS text) IS NULL OR queue = CAST(:queue AS text))
                  AND (CAST(:reason AS text) IS NULL OR failure_reason = CAST(:reason AS text))"""
        parameters = {"queue": queue, "reason": reason, "limit": limit}
        return [
            Statement(f"{source} AND {where} ORDER BY id DESC LIMIT CAST(:limit AS bigint)", parameters)
            for source in self._dead_sources
        ]

    def find_dead_letters(self, id: int | UUID) -> Sequence[Statement]:
        where, parameters = self.identified(id)
        return [Statement(f"{source} AND {where} ORDER BY id", parameters) for source in self._dead_sources]

    @cached_property
    def _dead_sources(self) -> Sequence[str]:
        columns = """id, message_id, queue, key, payload, CAST(headers AS text), priority, timer_id, attempts_count,
                     deliveries_count, created_at, first_attempt_at, last_attempt_at"""
        parked = f"""SELECT {columns}, last_attempt_at, failure_reason, last_exception, NULL, 1
                     FROM {self.outbox} WHERE failure_reason IS NOT NULL"""
        if self.tables.dead_letters is None:
            return [parked]
        moved = f"""SELECT {columns}, failed_at, failure_reason, last_exception, worker, 0
                    FROM {self.tables.sql(self.tables.dead_letters)} WHERE failure_reason IS NOT NULL"""
        return [parked, moved]

    def read_dead(self, row: Row) -> DeadMessage:
        return DeadMessage(
            **self._read_stored(row),
            first_attempt_at=None if row[11] is None else self.read_moment(row[11]),
            last_attempt_at=None if row[12] is None else self.read_moment(row[12]),
            failed_at=None if row[13] is None else self.read_moment(row[13]),
            reason=row[14],
            error=row[15],
            worker=row[16],
            parked=bool(row[17]),
        )

    def _read_stored(self, row: Row) -> dict[str, Any]:
        """The columns with which all rows of a look begin."""
        return {
            "id": row[0],
            "message_id": self.read_uuid(row[1]),
            "queue": row[2],
            "key": row[3],
            "payload": bytes(row[4]),
            "headers": read_headers(row[5]),
            "priority": row[6],
            "timer_id": row[7],
            "attempts_count": row[8],
            "deliveries_count": row[9],
            "created_at": self.read_moment(row[10]),
        }

    @abstractmethod
    def identified(self, id: int | UUID) -> tuple[str, Mapping[str, object]]:
        """A condition that holds for the rows of that row id or message id."""

    @abstractmethod
    def read_uuid(self, value: Any) -> UUID: ...

    @abstractmethod
    def read_moment(self, value: Any) -> datetime: ...

    @abstractmethod
    def redrive(
        self,
        queue: str | None,
        key: str | None,
        ids: Sequence[int] | None,
        reason: str | None,
        limit: int | None,
        *,
        dry_run: bool,
    ) -> Sequence[Statement]:
        """What comes back are counts, in rows of one, whose sum is how many."""

    def past_retention(
        self,
        queue: str | None,
        key: str | None,
        ids: Sequence[int] | None,
        reason: str | None,
        older_than: timedelta,
    ) -> Sequence[Statement]:
        """The first of those that `redrive` would put back and that failed longer ago: `id, message_id, queue, seconds`."""
        texts = [self._first_past("last_attempt_at", self._parked)]
        if self.tables.dead_letters is not None:
            texts.append(self._first_past("failed_at", self._unparked(self.tables.sql(self.tables.dead_letters))))
        parameters = {**self._filter(queue, key, ids, reason), "age": older_than.total_seconds()}
        return [Statement(text, parameters) for text in texts]

    @abstractmethod
    def _filter(
        self, queue: str | None, key: str | None, ids: Sequence[int] | None, reason: str | None
    ) -> dict[str, object]:
        """The parameters of `_parked` and `_unparked`."""

    @property
    @abstractmethod
    def _parked(self) -> str:
        """FROM and WHERE of those that `redrive` would put back from the outbox table."""

    @abstractmethod
    def _unparked(self, table: str) -> str:
        """FROM and WHERE of those that it would put back from the *table* of the dead letters."""

    @abstractmethod
    def _first_past(self, failed_at: str, of: str) -> str:
        """The first *of* those by id for whose column *failed_at* more than `:age` seconds have passed."""

    @abstractmethod
    def release_key(self, queue: str, key: str) -> Sequence[Statement]:
        """The last statement's only row is how many were given up."""

    @abstractmethod
    def purge_dead_letters(self, older_than: timedelta, queue: str | None, limit: int) -> Statement: ...

    @abstractmethod
    def stats(self) -> Statement:
        """Rows of `queue, ready, scheduled, leased, parked, oldest_age`."""

    @abstractmethod
    def blocked_keys(self) -> Statement:
        """Rows of `queue, count`."""

    # Hops from one name to the next, one index probe each, instead of reading every row for a DISTINCT; once through the
    # messages without a key and once through those with one, since each kind has its own index.
    def queues(self) -> Statement:
        """Rows of `queue`, by name."""
        return Statement(
            f"""WITH RECURSIVE {self._names("unkeyed", "IS NULL")}, {self._names("keyed", "IS NOT NULL")}
                SELECT queue FROM unkeyed WHERE queue IS NOT NULL
                UNION
                SELECT queue FROM keyed WHERE queue IS NOT NULL
                ORDER BY queue""",
            {},
        )

    def _names(self, kind: str, key: str) -> str:
        first = f"""SELECT message.queue FROM {self.outbox} AS message
                    WHERE message.failure_reason IS NULL AND message.key {key}"""
        by_name = "ORDER BY message.queue LIMIT 1"
        return f"""{kind} (queue) AS (
                SELECT ({first} {by_name})
                UNION ALL
                SELECT ({first} AND message.queue > {kind}.queue {by_name}) FROM {kind} WHERE {kind}.queue IS NOT NULL
            )"""

    @abstractmethod
    def dead_counts(self) -> Statement:
        """Rows of `queue, count` of the dead-letter table."""

    @abstractmethod
    def paused_queues(self) -> Statement: ...

    @abstractmethod
    def set_paused(self, queue: str, paused: bool) -> Statement: ...

    # Receiving

    def receive(self, message_id: str, consumer: str) -> Statement:
        """A row of `id` if the message is recorded now; none if it has been. Waits for whoever is recording it."""
        return Statement(
            f"""INSERT INTO {self.tables.need("receive", "inbox")} (consumer, message_id)
                VALUES (:consumer, :message_id)
                ON CONFLICT (consumer, message_id) DO NOTHING
                RETURNING id""",
            {"consumer": consumer, "message_id": message_id},
        )

    @abstractmethod
    def purge_inbox(self, older_than: timedelta, limit: int) -> Statement: ...

    # Drift

    @abstractmethod
    def catalogue(self, table: str) -> Sequence[Statement]:
        """What `read_catalogue` needs to know about the live table."""

    @abstractmethod
    def read_catalogue(self, table: str, answers: Sequence[Sequence[Row]]) -> Sequence[Difference]:
        """The differences between the live table and its description."""


@dataclass(frozen=True, slots=True)
class Settlements:
    """A batch sorted by what is to be written, each part by id: locks are taken in one order everywhere.

    `parked`: the dead that stay in the outbox table, because they halt their key or there is no other table.
    """

    acked: Sequence[Delivery] = ()
    moved: Sequence[tuple[Delivery, Retry | Release]] = ()
    dead: Sequence[tuple[Delivery, DeadLetter]] = ()
    parked: Sequence[tuple[Delivery, DeadLetter]] = ()

    @classmethod
    def of(cls, batch: Sequence[Settlement], *, park: bool = False) -> "Settlements":
        """*park*: there is no table for dead letters."""
        acked: list[Delivery] = []
        moved: list[tuple[Delivery, Retry | Release]] = []
        dead: list[tuple[Delivery, DeadLetter]] = []
        parked: list[tuple[Delivery, DeadLetter]] = []
        for delivery, outcome in sorted(batch, key=lambda settlement: settlement.delivery.id):
            if isinstance(outcome, Ack):
                acked.append(delivery)
            elif isinstance(outcome, DeadLetter):
                (parked if park or outcome.halts else dead).append((delivery, outcome))
            else:
                moved.append((delivery, outcome))
        return cls(acked, moved, dead, parked)


def counts(delivery: Delivery, outcome: Outcome) -> tuple[int, int]:
    """What a settlement adds to `attempts_count` and to `deliveries_count`: a failure, and a start not in the row yet."""
    match outcome:
        case Retry(failed=True):
            return 1, int(not delivery.begun)
        case DeadLetter(reason=reason) if reason != "max_deliveries":
            return 1, int(not delivery.begun)
        case _:  # acked, given back, snoozed: a message may wait for something as often as it likes
            return 0, 0


@lru_cache(maxsize=1_000)
def wake_lock(channel: str, queue: str) -> int:
    """The advisory lock that says whether a worker sleeps on *queue*: 64 bits, the same in every process."""
    return int.from_bytes(blake2b(f"{channel}:{queue}".encode(), digest_size=8).digest(), "big", signed=True)


def same_envelope(messages: Sequence[NewMessage]) -> Sequence[Sequence[NewMessage]]:
    """Runs of messages that one statement can insert: all alike but for id, payload and headers, and no timers."""
    runs: list[list[NewMessage]] = []
    for message in messages:
        if runs and message.timer_id is None and message.envelope == runs[-1][0].envelope:
            runs[-1].append(message)
        else:
            runs.append([message])
    return runs


def dialect_for(name: str, tables: Tables) -> Dialect:
    """The dialect of a database by SQLAlchemy's and Django's name for it."""
    from outbox_core.sql.postgresql import PostgreSQL
    from outbox_core.sql.sqlite import SQLite

    known: dict[str, type[Dialect]] = {"postgresql": PostgreSQL, "sqlite": SQLite}
    if name not in known:
        raise UnsupportedDatabase(f"no outbox statements for {name!r}; supported: {', '.join(known)}")
    return known[name](tables)
