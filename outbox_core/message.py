"""A message on its way in (`NewMessage`) and on its way out (`Delivery`).

A delivery is one claim of one row. Handlers see it through their framework's message; what they vote is recorded here and
written later, many at a time. The first vote stands.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import islice
from typing import Literal, NamedTuple, TypeAlias
from uuid import UUID

from outbox_core.json_reader import read_json_text
from outbox_core.outcome import Vote

TimerConflict: TypeAlias = Literal["ignore", "extend", "replace"]
Completion: TypeAlias = Literal["asked", "committed", "unknown"]
Line: TypeAlias = tuple[str, str]  # a queue and a key: messages that wait for each other


MOST_NAMED = 20  # messages in one record


class UnreadableHeaders(dict[str, str]):
    """Stands for headers that are no JSON object, in a row that somebody wrote by hand; its handler must not start."""


def read_headers(text: str) -> Mapping[str, str]:
    """The headers of a row. One bad row must not fail the claim that has found it together with good ones."""
    try:
        found = read_json_text(text)
    except (TypeError, ValueError, RecursionError):
        return UnreadableHeaders()
    return found if isinstance(found, dict) else UnreadableHeaders()


class NewMessage(NamedTuple):
    """An encoded, checked message that a store can insert as it is.

    `delay`: seconds from the statement's time on the database's clock; `available_at`: an instant; neither: at once.
    `has_new_id`: its id was made for it.
    """

    message_id: UUID
    payload: bytes
    headers: str
    queue: str
    key: str | None = None
    priority: int = 0
    delay: float | None = None
    available_at: datetime | None = None
    timer_id: str | None = None
    timer_conflict: TimerConflict = "ignore"
    has_new_id: bool = False

    @property
    def envelope(self) -> tuple[object, ...]:
        """What it has in common with others of its publish: everything but id, payload and headers."""
        return self[3:]

    @property
    def may_conflict(self) -> bool:
        """Whether there may be a row that takes its place: of its id, or of its timer."""
        return not self.has_new_id or self.timer_id is not None


@dataclass(slots=True, kw_only=True, eq=False, repr=False)
class Delivery:
    """A row that is ours until its lease ends.

    `attempts` and `deliveries` are what the row says: handler runs that failed, and handler runs that had begun, before
    this one. `created`, `first_attempt`, `due` and `claimed` are moments of the database's clock, in seconds since 1970
    (exact to the microsecond), because making four datetimes costs as much as reading the rest of a row; the properties
    make them. `claimed` is the time of the claim. `suspect` marks a row whose last owner went away without
    a word: its handler may be what killed it. `lease_ends` is in seconds of this process's monotonic clock and is only
    used to stop trusting the lease early, never to extend it. `session` is the transaction in which its handler runs and
    which completes it, if it has one; `completion` is how far that has come.
    """

    id: int
    message_id: UUID
    queue: str
    key: str | None
    payload: bytes
    headers: Mapping[str, str]
    priority: int
    attempts: int
    deliveries: int
    created: float
    first_attempt: float | None
    due: float
    claimed: float
    token: UUID
    suspect: bool = False
    lease_ends: float = 0.0
    begun: bool = field(default=False, init=False)  # counted in the row before its handler started
    lease_lost: bool = field(default=False, init=False)
    acked: bool = field(default=False, init=False)  # decided, if not yet written: the next of its key may begin
    vote: Vote | None = field(default=None, init=False)
    session: object | None = field(default=None, init=False)
    completion: Completion | None = field(default=None, init=False)

    def __repr__(self) -> str:
        """Which message it is, for logs and dead letters, which are no place for bodies and headers."""
        return f"Delivery(id={self.id}, queue={self.queue!r}, message_id={str(self.message_id)!r})"

    @property
    def created_at(self) -> datetime:
        return datetime.fromtimestamp(self.created, UTC)

    @property
    def first_attempt_at(self) -> datetime | None:
        return None if self.first_attempt is None else datetime.fromtimestamp(self.first_attempt, UTC)

    @property
    def due_at(self) -> datetime:
        return datetime.fromtimestamp(self.due, UTC)

    @property
    def claimed_at(self) -> datetime:
        return datetime.fromtimestamp(self.claimed, UTC)

    @property
    def line(self) -> Line | None:
        """What orders it; None for a message without a key."""
        return None if self.key is None else (self.queue, self.key)

    @property
    def still_suspect(self) -> bool:
        """Whether nothing here has cleared it; given back, the next worker must deliver it alone as well."""
        return self.suspect and not self.begun

    def cast(self, vote: Vote) -> bool:
        """Record *vote* unless there is one already; say whether it was taken."""
        if self.vote is not None:
            return False
        self.vote = vote
        return True


def size_of(deliveries: Iterable[Delivery]) -> int:
    """The bytes of their payloads."""
    return sum([len(delivery.payload) for delivery in deliveries])


def named(deliveries: Collection[Delivery]) -> str:
    """The messages for a log, without what is in them."""
    some = [f"message {one.id} ({one.message_id}) in {one.queue!r}" for one in islice(deliveries, MOST_NAMED)]
    more = f" and {len(deliveries) - MOST_NAMED} more" if len(deliveries) > MOST_NAMED else ""
    return f"{', '.join(some)}{more}"


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredMessage:
    """What a look without a lease sees of every message, live or dead. Times are the database's and aware."""

    id: int
    message_id: UUID
    queue: str
    key: str | None
    payload: bytes
    headers: Mapping[str, str]
    priority: int
    timer_id: str | None
    attempts_count: int
    deliveries_count: int
    created_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class PendingMessage(StoredMessage):
    """A row of the outbox table."""

    next_attempt_at: datetime
    leased: bool
    failure_reason: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class DeadMessage(StoredMessage):
    """A dead letter. `parked`: it stays in the outbox table, which its `id` is of; then nobody noted the `worker`."""

    first_attempt_at: datetime | None
    last_attempt_at: datetime | None
    failed_at: datetime | None
    reason: str
    error: str | None
    worker: str | None
    parked: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueStats:
    """One queue at one moment. `oldest_age` is in seconds, of the oldest message that is due; None if none is.

    `blocked_keys`: keys that a dead message halts, and those whose first message waits for another attempt while others wait
    behind it.
    """

    queue: str
    ready: int = 0
    scheduled: int = 0
    leased: int = 0
    blocked_keys: int = 0
    dead: int = 0
    oldest_age: float | None = None
    paused: bool = False


@dataclass(frozen=True, slots=True)
class OutboxStats:
    """All queues that have rows, dead letters or a pause, by name."""

    queues: Mapping[str, QueueStats]

    def __getitem__(self, queue: str) -> QueueStats:
        """The queue's figures; zeros for a queue that has nothing."""
        return self.queues.get(queue, QueueStats(queue=queue))

    def __iter__(self) -> Iterator[str]:
        """The queues' names. Without this, Python would look for them under 0, 1, 2 and so on, and find all of them."""
        return iter(self.queues)
