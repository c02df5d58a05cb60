"""What an outbox may answer and what must be in it, in plain lists: written from the contract and not from any store.

`Expected` is told what was asked and what came back. It asserts that the answer is allowed, and knows from then on what
there is. Its clock moves only when a test says so, in steps that no two delays add up to; real seconds between are nothing.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import takewhile
from uuid import UUID

from outbox_core.message import Delivery, NewMessage, OutboxStats, PendingMessage
from outbox_core.outcome import Ack, DeadLetter, Outcome, Release, Retry
from outbox_core.store import Band, KeyClaim, KeyWant, Survey, Want
from tests.contract.harness import Dead

SLACK = 30.0  # seconds that an example may take; all differences between times of the model are longer


@dataclass(slots=True, kw_only=True, eq=False)
class Message:
    """A live message, or one that is dead and halts its key (*reason*)."""

    id: int
    message_id: UUID
    queue: str
    key: str | None
    priority: int
    payload: bytes
    timer_id: str | None
    due: float
    attempts: int = 0
    deliveries: int = 0
    owner: UUID | None = None  # the last claim's token, until that is settled
    leased_until: float = 0.0
    suspect: bool = False  # to whom it was delivered as one, or will be
    reason: str | None = None
    failed_at: float = 0.0

    def begin_anew(self) -> None:
        self.attempts = self.deliveries = 0
        self.owner, self.suspect, self.reason = None, False, None

    @property
    def facts(self) -> tuple[object, ...]:
        """What a live and a dead message have in common, by which a store is compared."""
        content = (self.message_id, self.queue, self.key, self.payload, self.timer_id)
        return (*content, self.attempts, self.deliveries, self.reason)


class Expected:
    """One outbox."""

    def __init__(self) -> None:
        self.now = 0.0
        self.live: dict[int, Message] = {}
        self.dead: list[Message] = []  # the dead letters, oldest first
        self.paused: set[str] = set()
        self.known: list[UUID] = []  # every message id that was ever published
        self.published = self.acked = self.cancelled = self.purged = 0
        self._last_id = 0

    # What there is

    def compare(self, pending: Sequence[PendingMessage], dead: Sequence[Dead]) -> None:
        """Nothing is lost: every message is live with its true counts, or a dead letter with its history, or settled."""
        assert self.published == len(self.live) + len(self.dead) + self.acked + self.cancelled + self.purged
        assert {one.id: _seen(one) for one in pending} == {
            id: (*message.facts, message.priority, self.is_leased(message)) for id, message in self.live.items()
        }
        assert [_buried(one) for one in dead] == [message.facts for message in self.dead]
        timers = [(one.queue, one.timer_id) for one in pending if one.timer_id and not one.failure_reason]
        assert len(timers) == len(set(timers)), "a live timer is unique in its queue"

    def is_leased(self, message: Message) -> bool:
        return message.owner is not None and message.leased_until > self.now

    def owned(self, delivery: Delivery) -> Message | None:
        """The message, if nobody has claimed or settled it since *delivery*."""
        message = self.live.get(delivery.id)
        return message if message is not None and message.owner == delivery.token else None

    def line(self, queue: str, key: str | None) -> list[Message]:
        """Everything of one key in order, what halts it included."""
        return sorted((one for one in self.live.values() if (one.queue, one.key) == (queue, key)), key=_id)

    @property
    def halting(self) -> list[Message]:
        return [one for one in self.live.values() if one.reason]

    def is_held(self, line: Iterable[Message]) -> bool:
        return any(self.is_leased(one) or one.reason for one in line)

    # Publishing

    def publish(self, message: NewMessage, id: int | None) -> None:
        """*id* is what the store has answered."""
        conflicting = self.conflicting(message)
        if conflicting is None:
            assert id is not None
            self._exists(message, id)
        elif conflicting.timer_id is None or message.timer_conflict == "ignore" or self.is_leased(conflicting):
            assert id is None
        else:
            assert id == conflicting.id
            self._change(conflicting, message)

    def _exists(self, message: NewMessage, id: int) -> None:
        assert id > self._last_id, "ids follow the order of publishing"
        self._last_id = id
        self.published += 1
        self.known.append(message.message_id)
        self.live[id] = Message(
            id=id,
            message_id=message.message_id,
            queue=message.queue,
            key=message.key,
            priority=message.priority,
            payload=message.payload,
            timer_id=message.timer_id,
            due=self.due(message),
        )

    def _change(self, timer: Message, message: NewMessage) -> None:
        if message.timer_conflict == "replace":
            timer.key, timer.priority = message.key, message.priority
        elif self.due(message) <= timer.due:
            return
        timer.payload, timer.due = message.payload, self.due(message)
        timer.begin_anew()

    def conflicting(self, message: NewMessage) -> Message | None:
        """The live message that holds its id or its timer."""
        for one in self.live.values():
            its_timer = (one.queue, one.timer_id) == (message.queue, message.timer_id) and not one.reason
            if one.message_id == message.message_id or (message.timer_id is not None and its_timer):
                return one
        return None

    def due(self, message: NewMessage) -> float:
        return self.now + (message.delay or 0.0)

    def cancel_timer(self, queue: str, timer_id: str, answer: bool) -> None:
        held = [one for one in self.live.values() if (one.queue, one.timer_id) == (queue, timer_id) and not one.reason]
        free = [one for one in held if not self.is_leased(one)]
        assert answer == bool(free)
        for one in free:
            del self.live[one.id]
            self.cancelled += 1

    # Claiming

    def claim(
        self, wants: Sequence[Want], total: int, most_bytes: int, lease: float, answer: Sequence[Delivery]
    ) -> None:
        """As much as was wanted of what is due and free, by want, the oldest of each, until there are bytes enough."""
        places = [want.band for want in wants]
        asked = [places.index(Band(one.queue, one.priority)) for one in answer]
        assert asked == sorted(asked)
        assert _bytes(answer[:-1]) < most_bytes
        last = asked[-1] if _bytes(answer) >= most_bytes else len(wants)  # the want in which it was enough
        left = total
        for place, want in enumerate(wants):
            due = [one for one in self._free_band(want.band) if one.due <= self.now]
            claimed = [one for one in answer if Band(one.queue, one.priority) == want.band]
            most = 0 if place > last else min(want.limit, len(due), left)
            assert len(claimed) == most or (place == last and len(claimed) < most)
            left -= len(claimed)
            dues = [self._lease(one, lease).due for one in claimed]
            assert dues == sorted(dues)
            ids = {one.id for one in claimed}
            assert all(max(dues, default=0.0) <= one.due for one in due if one.id not in ids), "the oldest come first"

    def _free_band(self, band: Band) -> list[Message]:
        return [
            one
            for one in self.live.values()
            if Band(one.queue, one.priority) == band and one.key is None and not one.reason and not self.is_leased(one)
        ]

    def claim_keyed(self, want: KeyWant, lease: float, answer: KeyClaim) -> None:
        """Of each free key its first messages; every free key that was passed has its turn."""
        keys = sorted({one.key for one in self.live.values() if one.queue == want.queue and one.key is not None})
        looked = [key for key in keys if want.after is None or key > want.after]
        passed = [key for key in looked if answer.after is None or key <= answer.after]
        lines = {key: self.line(want.queue, key) for key in looked}
        startable = {key: self._startable(lines[key]) for key in passed}
        assert _bytes(answer.deliveries[:-1]) < want.most_bytes
        last = answer.deliveries[-1].key if _bytes(answer.deliveries) >= want.most_bytes else None
        claimed: dict[str, list[int]] = {}
        for one in answer.deliveries:
            claimed.setdefault(one.key or "", []).append(one.id)
        assert list(claimed) == [key for key in passed if startable[key]], "one claim at a time has a key"
        assert len(answer.deliveries) <= want.limit
        enough = want.limit >= want.run * len(claimed)
        for key, ids in claimed.items():
            assert ids == [one.id for one in startable[key]][: len(ids)], "its first messages, by id"
            assert len(ids) <= want.run
            assert not enough or key == last or len(ids) == min(want.run, len(startable[key]))
        self._compare_due_in(lines, passed, answer.due_in)
        for one in answer.deliveries:
            self._lease(one, lease)

    def _startable(self, line: list[Message]) -> list[Message]:
        return [] if self.is_held(line) else list(takewhile(lambda one: one.due <= self.now, line))

    def _compare_due_in(self, lines: dict[str, list[Message]], passed: list[str], due_in: float | None) -> None:
        """A halted key may be counted or not, since nobody waits for its time; nor need one that was not passed."""
        firsts = [(next((one for one in line if not one.reason), None), key) for key, line in lines.items()]
        waiting = [(one.due - self.now, key) for one, key in firsts if one is not None and one.due > self.now]
        certain = [seconds for seconds, key in waiting if key in passed and not any(one.reason for one in lines[key])]
        if due_in is None:
            assert not certain
        else:
            assert any(_near(due_in, seconds) for seconds, _ in waiting)
            assert due_in <= min(certain, default=due_in)

    def _lease(self, delivery: Delivery, lease: float) -> Message:
        message = self.live[delivery.id]
        assert not self.is_leased(message), "it has one owner"
        assert (delivery.message_id, delivery.queue, delivery.key, delivery.payload, delivery.priority) == (
            message.message_id,
            message.queue,
            message.key,
            message.payload,
            message.priority,
        )
        assert (delivery.attempts, delivery.deliveries) == (message.attempts, message.deliveries)
        assert (delivery.first_attempt_at is not None) == (message.attempts > 0)
        message.suspect = message.suspect or message.owner is not None
        assert delivery.suspect == message.suspect, "a suspect is one whose last owner went away without a word"
        assert delivery.token != message.owner
        message.owner, message.leased_until = delivery.token, self.now + lease
        return message

    # Holding

    def begin(self, delivery: Delivery, answer: bool) -> None:
        message = self.owned(delivery)
        assert answer == (message is not None)
        if message is not None:
            message.deliveries = delivery.deliveries + 1

    def extend(self, deliveries: Sequence[Delivery], lease: float, answer: set[int]) -> None:
        ours = [message for one in deliveries if (message := self.owned(one)) is not None]
        assert answer == {message.id for message in ours}
        for message in ours:
            message.leased_until = self.now + lease

    def ours(self, deliveries: Sequence[Delivery], answer: set[int]) -> None:
        assert answer == {one.id for one in deliveries if self.owned(one) is not None}

    # Settling

    def settle(self, settlements: Sequence[tuple[Delivery, Outcome]], answer: set[int]) -> None:
        """Only what is still ours has an end; for the others nothing changes."""
        ours = [(one, outcome, message) for one, outcome in settlements if (message := self.owned(one)) is not None]
        assert answer == {message.id for _, _, message in ours}
        for delivery, outcome, message in ours:
            self._end(message, outcome, begun=delivery.begun)

    def _end(self, message: Message, outcome: Outcome, *, begun: bool) -> None:
        message.owner = None
        match outcome:
            case Ack():
                self.complete(message)
                return
            case Release():
                message.suspect = message.suspect and not begun
            case Retry(delay, failed):
                message.suspect, message.due = False, self.now + delay
                self._count(message, failed=failed, begun=begun)
            case DeadLetter(reason, _, halts):
                message.suspect, message.reason, message.failed_at = False, reason, self.now
                self._count(message, failed=reason != "max_deliveries", begun=begun)
                if not halts:
                    self._bury(message)

    def _count(self, message: Message, *, failed: bool, begun: bool) -> None:
        message.attempts += failed
        message.deliveries += failed and not begun

    def complete(self, message: Message) -> None:
        del self.live[message.id]
        self.acked += 1

    def _bury(self, message: Message) -> None:
        del self.live[message.id]
        self.dead.append(message)

    # Dead letters

    def release_key(self, queue: str, key: str, answer: bool) -> None:
        halting = [one for one in self.line(queue, key) if one.reason]
        assert answer == bool(halting)
        for one in halting:
            self._bury(one)

    def redrivable(self, queue: str | None, reason: str | None) -> list[Message]:
        """What halts a key, and then the dead letters whose message id is not live, each id once: the oldest first."""
        wanted = [
            one
            for one in (*sorted(self.live.values(), key=_id), *self.dead)
            if one.reason and queue in (None, one.queue) and reason in (None, one.reason)
        ]
        taken = {one.message_id for one in self.live.values() if not one.reason}
        picked = []
        for one in wanted:
            if one.message_id not in taken and (one in self.dead or one.id in self.live):
                picked.append(one)
                taken.add(one.message_id)
        return picked

    def redrive(self, picked: Sequence[Message], pending: Sequence[PendingMessage]) -> None:
        """*picked* are live again: where they were, or at the end, as themselves and with fresh counts."""
        back = {one.message_id: one.id for one in pending}
        for one in picked:
            one.begin_anew()
            one.timer_id, one.due = None, self.now
            if one in self.dead:
                self.dead.remove(one)
                one.id = back[one.message_id]
                assert one.id > self._last_id, "the older dead letter comes first"
                self._last_id = one.id
                self.live[one.id] = one

    def purge(self, older_than: float, queue: str | None, answer: int) -> None:
        old = [one for one in self.dead if self.now - one.failed_at > older_than and queue in (None, one.queue)]
        assert answer == len(old)
        self.dead = [one for one in self.dead if one not in old]
        self.purged += len(old)

    # Looks

    def stats(self, answer: OutboxStats, queues: Sequence[str]) -> None:
        for queue in queues:
            rows = [one for one in self.live.values() if one.queue == queue and not one.reason]
            waiting = [one for one in rows if not self.is_leased(one)]
            dead = [one for one in (*self.live.values(), *self.dead) if one.queue == queue and one.reason]
            seen = answer[queue]
            assert (seen.ready, seen.scheduled) == (
                sum(one.due <= self.now for one in waiting),
                sum(one.due > self.now for one in waiting),
            )
            assert (seen.leased, seen.dead) == (len(rows) - len(waiting), len(dead))
            assert seen.paused == (queue in self.paused)
            keys = {one.key for one in self.live.values() if one.queue == queue} - {None}
            assert seen.blocked_keys == sum(self._is_blocked(queue, key) for key in keys)

    def _is_blocked(self, queue: str, key: str | None) -> bool:
        first, *behind = self.line(queue, key)
        if any(one.reason for one in (first, *behind)):
            return True
        return bool(behind) and first.attempts > 0 and first.due > self.now

    def survey(self, answer: Survey, queues: Sequence[str]) -> None:
        rows = [one for one in self.live.values() if one.queue in queues and not one.reason]
        unkeyed = [one for one in rows if one.key is None]
        assert set(answer.bands) == {Band(one.queue, one.priority) for one in unkeyed}
        assert answer.keyed == {one.queue for one in rows if one.key is not None}
        assert answer.paused == self.paused.intersection(queues)
        waiting = [one.due - self.now for one in unkeyed if one.owner is None and one.queue not in self.paused]
        if answer.due_in is None:
            assert not any(seconds > 0 for seconds in waiting)
        elif answer.due_in < 0:
            assert any(_near(answer.due_in, seconds) for seconds in waiting)
        else:
            assert _near(answer.due_in, min(seconds for seconds in waiting if seconds > 0))


def _seen(one: PendingMessage) -> tuple[object, ...]:
    content = (one.message_id, one.queue, one.key, one.payload, one.timer_id)
    return (*content, one.attempts_count, one.deliveries_count, one.failure_reason, one.priority, one.leased)


def _buried(one: Dead) -> tuple[object, ...]:
    content = (one.message_id, one.queue, one.key, one.payload, one.timer_id)
    return (*content, one.attempts, one.deliveries, one.reason)


def _bytes(deliveries: Sequence[Delivery]) -> int:
    return sum(len(delivery.payload) for delivery in deliveries)


def _id(message: Message) -> int:
    return message.id


def _near(seconds: float, expected: float) -> bool:
    return expected - SLACK < seconds <= expected + 0.1
