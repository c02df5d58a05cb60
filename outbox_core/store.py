"""The port: how the rest of the library reaches the rows.

`Store` is what publishers and operators use, on a transaction of the caller's or a short one of its own. `Link` is one
live connection of a worker's own, never from the application's pool; its statements are transactions of their own.
`Listener` hears that something was published.

Every store passes `tests/contract/`. `outbox_core.memory` is the reference to read; `outbox_core.sql` implements the port
for everything that executes text.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from datetime import timedelta
from typing import Literal, NamedTuple, Protocol, TypeAlias
from uuid import UUID

from outbox_core.message import DeadMessage, Delivery, NewMessage, OutboxStats, PendingMessage
from outbox_core.outcome import Outcome

Armed: TypeAlias = Literal["armed", "proxied", "publishing"]

CLAIM_BYTES = 16 * 2**20  # of payloads: so much in one claim, and so much that waits for a slot, give or take a message
PURGED_AT_ONCE = 5_000  # rows that a purge of many deletes in a transaction, so that none holds its locks for long


class Band(NamedTuple):
    """The messages of one queue and one priority: what one ordered index scan covers."""

    queue: str
    priority: int = 0


@dataclass(frozen=True, slots=True)
class Want:
    """Claim at most *limit* from *band*; skip what was due before *since* (a hint that saves dead index entries).

    *since* is a delivery's `due`.
    """

    band: Band
    limit: int
    since: float | None = None


MAX_DEPTH = 8  # messages; if the first fails, the others were claimed for nothing


@dataclass(frozen=True, slots=True)
class KeyWant:
    """Claim at most *limit* messages with a key from *queue*, at most *run* of each key, going on after the key *after*.

    None: begin with the first key. *keys*: of so many keys, where there are as many, since only one message of each can be
    handled at a time; None: of as many as can be. More messages of fewer keys cost less. *most_bytes*: nothing more once the
    payloads have reached so many, in the middle of a key as well; what was left of it comes behind what was taken.
    """

    queue: str
    limit: int
    run: int
    after: str | None = None
    keys: int | None = None
    most_bytes: int = CLAIM_BYTES

    @property
    def depth(self) -> int:
        """How many messages to take of each key before there is no other key."""
        return max(1, min(self.run, MAX_DEPTH, self.limit // (self.keys or self.limit)))


class KeyClaim(NamedTuple):
    """What a claim of keys brought.

    `deliveries`: key after key, each key's by id. `after`: the key after which the next claim goes on, None where this one
    has come to the last key. `due_in`: seconds until the first message of one of the keys that it looked at becomes due, None
    if none of them waits; it may have looked beyond `after`.
    """

    deliveries: list[Delivery]
    after: str | None
    due_in: float | None


@dataclass(frozen=True, slots=True)
class Survey:
    """What lies in the queues, without a lease.

    `bands`: those that have rows without a key. `due_in`: seconds until the next of these becomes due that no worker has and
    no pause holds back; negative if one has become due within the last second, None if there is none of either kind.
    `keyed`: queues that have rows with a key. `paused`: queues that no worker may claim from.
    """

    bands: tuple[Band, ...]
    due_in: float | None
    keyed: frozenset[str]
    paused: frozenset[str]


class Settlement(NamedTuple):
    """One delivery's end, to be written if its lease token is still the row's."""

    delivery: Delivery
    outcome: Outcome


class Difference(NamedTuple):
    """One way in which a live table is not the described one. *fatal*: messages could not be published, handled or
    received.

    *missing_table*: there is no such table, and this is the only difference. *needed*: by a worker, which has no use for an
    inbox.
    """

    text: str
    fatal: bool
    missing_table: bool = False
    needed: bool = True


class Link(Protocol):
    """A worker's own connection. Its methods are called one at a time; any exception makes the caller replace it."""

    async def claim(
        self, wants: Sequence[Want], *, total: int, lease: float, most_bytes: int = CLAIM_BYTES
    ) -> list[Delivery]:
        """Lease up to *total* due messages without a key for *lease* seconds, by want, then oldest first.

        None more once their payloads have reached *most_bytes*: so the first one always comes, and an answer with fewer bytes
        has left nothing behind because of its size. What is left is as it was.

        Concurrent claims never return the same row. Rows whose lease has ended come back as suspects.
        """

    async def claim_keyed(self, want: KeyWant, *, lease: float) -> KeyClaim:
        """Lease of each key the messages that come first, as long as they are due; none of a key of which any is leased.

        So at any moment at most one claim has messages of a key, and it has the first ones by id. A key whose first message
        is not due, or which is halted, is passed over.
        """

    async def survey(self, queues: Sequence[str]) -> Survey:
        """Look at *queues* without a lease."""

    async def arm(self, queues: Sequence[str]) -> Armed:
        """Ask publishers of *queues* to notify, until `disarm` or the end of the link.

        `armed`: what was published without a notification can be seen by the next claim, and what is published later
        will be notified. `proxied`: the same holds as long as another worker sleeps; ask again soon. `publishing`: a
        transaction that will not notify is still open; look again very soon.
        """

    async def disarm(self) -> None:
        """Publishers need not notify: this worker is awake and looks by itself. Does nothing if not armed."""

    async def begin(self, delivery: Delivery) -> bool:
        """Count a delivery before its handler starts. False: the lease is lost. Repeating it counts once."""

    async def extend(self, deliveries: Sequence[Delivery], lease: float) -> set[int]:
        """Extend the leases to *lease* seconds from now; return the ids that were still ours.

        It waits for no other transaction: a row that one has locked is left as it is, and is not among them. A database
        that is silent is given up early enough for another try.
        """

    async def ours(self, deliveries: Sequence[Delivery]) -> set[int]:
        """The ids that are still ours, locked or not, as far as anything is committed. Changes nothing."""

    async def settle(self, settlements: Sequence[Settlement], *, worker: str) -> set[int]:
        """Write all outcomes; return the ids that were still ours. Nothing is changed for the others.

        Repeating it after an unknown answer is safe.
        """

    async def try_out(self) -> None:
        """Do all of this on no message, so that the database says now what it would refuse later; it changes nothing."""

    async def notify(self, payload: str) -> None:
        """Send *payload* on the wake-up channel; used to prove that listening works."""

    async def ping(self) -> None:
        """A round trip."""

    async def close(self) -> None:
        """Give the connection up; never raises, never waits for a dead peer."""


class Listener(Protocol):
    """Hears what publishers notify."""

    async def closed(self) -> None:
        """Return when nothing more will be heard."""

    async def close(self) -> None:
        """Stop listening; never raises."""


class OnCommit(Protocol):
    """What is to be done once a transaction has committed."""

    async def run(self) -> None:
        """Do it."""

    def run_sync(self) -> None:
        """Do it from synchronous code, where nothing can be awaited."""


class Store(Protocol):
    """One outbox, as publishers, operators and workers see it. *session* is the adapter's; None: a transaction of its own."""

    @property
    def name(self) -> str:
        """Database and table for logs and errors, without credentials."""

    async def insert(self, messages: Sequence[NewMessage], session: object | None) -> list[int | None]:
        """Insert all or nothing; the row ids in order, None where a live timer or the same message id exists."""

    def insert_sync(self, messages: Sequence[NewMessage], session: object) -> list[int | None]:
        """The same on a synchronous session, without an event loop."""

    async def after_commit(self, session: object | None, todo: OnCommit) -> None:
        """Do *todo* when a message inserted here and now would begin to exist, and never if it would not.

        That is once the transaction of *session* has committed, before the commit returns, which raises what *todo* raises;
        where there is no transaction, it is at once. Nothing is sent to the database.
        """

    def after_commit_sync(self, session: object, todo: OnCommit) -> None:
        """The same on a synchronous session, without an event loop."""

    def transaction(self) -> AbstractAsyncContextManager[object]:
        """A transaction for a handler, to be passed as *session*; it commits on a normal exit, otherwise it rolls back."""

    async def complete(self, deliveries: Sequence[Delivery], session: object) -> set[int]:
        """Ack *deliveries* in the transaction of *session*; the ids that were still ours.

        If one was not, the caller rolls back: what its handler wrote is somebody else's to write.
        """

    async def cutter(self, session: object) -> Callable[[], None]:
        """What ends, when called on the event loop, the wait of whatever waits for the server on *session*.

        Its transaction is lost then. Where nothing can wait for a server, it does nothing.
        """

    def is_conflict(self, error: Exception) -> bool:
        """Whether *error* is the database's choice of one transaction among several, so that another try may go well."""

    async def cancel_timer(self, queue: str, timer_id: str, session: object | None) -> bool:
        """Delete the live timer unless a worker holds it; say whether there was one."""

    async def fetch_unprocessed(self, queue: str | None, limit: int, session: object | None) -> list[PendingMessage]:
        """The oldest *limit* rows by id, leased or not, without leasing them."""

    async def fetch_dead_letters(
        self, queue: str | None, reason: str | None, limit: int, session: object | None
    ) -> list[DeadMessage]:
        """The latest *limit* dead letters, those that are parked in the outbox table first."""

    async def find(self, id: int | UUID, session: object | None) -> list[PendingMessage | DeadMessage]:
        """Everything with that row id, in the outbox table and among the dead letters, or with that message id."""

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
        """Put dead letters back with their message ids and fresh counters; how many (or would be, on a dry run).

        At most *limit*, oldest first. One whose message id is live again stays dead, for that is the same message. One that
        halts its key keeps its place before the others of the key; it has no id among the dead letters, so *ids* leaves it.
        """

    async def release_key(self, queue: str, key: str, session: object | None) -> bool:
        """Give up the dead message that halts *key*, so that the next one can be claimed; say whether there was one."""

    async def purge_dead_letters(
        self, older_than: timedelta, queue: str | None, limit: int, session: object | None
    ) -> int:
        """Delete dead letters that failed more than *older_than* ago; how many."""

    async def stats(self) -> OutboxStats:
        """Counts by queue at one moment."""

    async def queues(self) -> list[str]:
        """The queues that have messages, dead ones aside, by name; cheap whatever their number."""

    async def set_paused(self, queue: str, paused: bool, session: object | None) -> None:
        """Stop or resume every worker's claiming from *queue*; repeating it changes nothing."""

    async def differences(self) -> Mapping[str, Sequence[Difference]]:
        """What the live tables lack or have too much of, by table; empty if they fit."""

    async def connect(self) -> Link:
        """A new link on a connection of its own."""

    async def listen(self, heard: Callable[[str], None]) -> Listener | None:
        """Listen on a connection of its own; None if this store cannot."""
