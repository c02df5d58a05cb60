"""What an operator can do to an outbox: one class each, for `outbox` and for `manage.py`.

An operation adds its arguments to a parser, does its work on a store, and answers twice over: in words and as data.
"""

import json
from abc import ABC, abstractmethod
from argparse import ArgumentParser
from base64 import b64encode
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from typing import Any, ClassVar

from outbox_core.cli.arguments import count, duration, key_name, queue_name, row_or_message
from outbox_core.cli.exits import Exit, Refused
from outbox_core.cli.tables import age, aligned, counted, moment, printable
from outbox_core.inbox import Retention
from outbox_core.message import DeadMessage, PendingMessage, QueueStats
from outbox_core.sql import SqlStore
from outbox_core.store import PURGED_AT_ONCE, Store

LISTED = 50
SHOWN = 8_192  # characters of a body


@dataclass(frozen=True, slots=True)
class Answer:
    """*said* to people, *data* to machines."""

    said: str
    data: object

    def as_json(self) -> str:
        return json.dumps(self.data, indent=2, default=_plain)


class Operation(ABC):
    """One command."""

    name: ClassVar[str]
    help: ClassVar[str]

    def add_arguments(self, parser: ArgumentParser) -> None:  # noqa: B027  most have some, and none is none
        """Its own; where the outbox is, and `--json`, are the caller's."""

    @abstractmethod
    async def run(self, store: Store, options: Mapping[str, Any]) -> Answer:
        """Do it; raises what the store raises, and `Refused`."""


class Stats(Operation):
    name = "stats"
    help = (
        "Count the messages of each queue: ready to be handled, scheduled for later or for another attempt, leased by a "
        "worker, and dead; and the keys whose first message keeps others waiting, because it failed or is dead. The oldest "
        "message is the one that has been ready for longest. Reads the whole table."
    )

    async def run(self, store: Store, options: Mapping[str, Any]) -> Answer:
        stats = await store.stats()
        data = {"outbox": store.name, "queues": {name: asdict(queue) for name, queue in stats.queues.items()}}
        queues = [*stats.queues.values()]
        return Answer(aligned(_stats_table(queues)) if queues else f"{store.name} is empty", data)


_COUNTS = ("ready", "scheduled", "leased", "blocked_keys", "dead")


def _stats_table(queues: Sequence[QueueStats]) -> list[Sequence[str]]:
    headings = ("queue", *(name.replace("_", " ") for name in _COUNTS), "oldest", "")
    rows: list[Sequence[str]] = [headings, *(_stats_row(queue) for queue in queues)]
    if len(queues) > 1:
        totals = {name: sum(getattr(queue, name) for queue in queues) for name in _COUNTS}
        oldest = max((queue.oldest_age for queue in queues if queue.oldest_age is not None), default=None)
        rows.append(_stats_row(QueueStats(queue="total", oldest_age=oldest, **totals)))
    return rows


def _stats_row(queue: QueueStats) -> Sequence[str]:
    counts = [f"{getattr(queue, name):,}" for name in _COUNTS]
    return (printable(queue.queue), *counts, age(queue.oldest_age), "paused" if queue.paused else "")


class ListMessages(Operation):
    name = "list"
    help = "List messages, oldest first, or with --dead the dead letters, latest first. Bodies are for `show`."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--queue", type=queue_name, metavar="NAME", help="only those of this queue")
        parser.add_argument("--dead", action="store_true", help="the dead letters instead")
        parser.add_argument("--reason", metavar="REASON", help="only dead letters that failed for this reason")
        parser.add_argument(
            "--limit", type=count(), default=LISTED, metavar="N", help=f"at most so many (default: {LISTED})"
        )

    async def run(self, store: Store, options: Mapping[str, Any]) -> Answer:
        queue, reason, limit = options["queue"], options["reason"], options["limit"]
        if options["dead"]:
            letters = await store.fetch_dead_letters(queue, reason, limit, None)
            said = aligned([_DEAD_HEADINGS, *map(_dead_row, letters)], left=(1, 2, 3)) if letters else "no dead letters"
            return Answer(said, [_without_body(letter) for letter in letters])
        if reason is not None:
            raise Refused("--reason is about dead letters; add --dead")
        messages = await store.fetch_unprocessed(queue, limit, None)
        said = aligned([_LIVE_HEADINGS, *map(_live_row, messages)], left=(1, 2, 3)) if messages else "no messages"
        return Answer(said, [_without_body(message) for message in messages])


_LIVE_HEADINGS = ("id", "queue", "key", "state", "due", "attempts", "deliveries", "message id")
_DEAD_HEADINGS = ("id", "queue", "key", "reason", "failed", "attempts", "deliveries", "message id")


def _live_row(message: PendingMessage) -> Sequence[str]:
    due = "-" if message.failure_reason else moment(message.next_attempt_at)
    return (*_named(message, _state(message)), due, *_counted(message))


def _dead_row(letter: DeadMessage) -> Sequence[str]:
    return (*_named(letter, letter.reason), moment(letter.failed_at), *_counted(letter))


def _named(message: PendingMessage | DeadMessage, state: str) -> Sequence[str]:
    return (str(message.id), printable(message.queue), printable(message.key or "-"), printable(state))


def _counted(message: PendingMessage | DeadMessage) -> Sequence[str]:
    return (str(message.attempts_count), str(message.deliveries_count), str(message.message_id))


def _state(message: PendingMessage) -> str:
    if message.failure_reason is not None:
        return f"dead: {message.failure_reason}"
    return "leased" if message.leased else "waiting"


class Show(Operation):
    name = "show"
    help = "Show a message or dead letter with its headers, its body and what went wrong."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("id", type=row_or_message, help="the number of a row, or a message id")

    async def run(self, store: Store, options: Mapping[str, Any]) -> Answer:
        found = await store.find(options["id"], None)
        if not found:
            raise Refused(f"there is no message {options['id']} in {store.name}, live or dead", Exit.FAILED)
        return Answer("\n\n".join(map(_shown, found)), [_with_body(message) for message in found])


def _shown(message: PendingMessage | DeadMessage) -> str:
    """Each field in a line of its own, then the body."""
    title = f"message {message.id}" if isinstance(message, PendingMessage) else f"dead letter {message.id}"
    fields = {name: value for name, value in _without_body(message).items() if name != "id" and value is not None}
    headers = fields.pop("headers", {})
    lines = [f"  {name.replace('_', ' ')}: {printable(_text(value))}" for name, value in fields.items()]
    lines += [f"  header {printable(name)}: {printable(value)}" for name, value in headers.items()]
    return "\n".join([title, *lines, *_body_lines(message.payload)])


def _body_lines(payload: bytes) -> Iterator[str]:
    text = _decoded(payload)
    kind, shown = ("body", text) if text is not None else ("body, base64", b64encode(payload).decode())
    yield f"  {kind} ({counted(len(payload), 'byte')}):"
    yield from (f"    {printable(line)}" for line in shown[:SHOWN].split("\n"))
    if len(shown) > SHOWN:
        yield f"    … {len(shown) - SHOWN:,} more characters; --json has all of them"


def _text(value: object) -> str:
    return moment(value) if isinstance(value, datetime) else str(value)


def _without_body(message: PendingMessage | DeadMessage) -> dict[str, Any]:
    fields = asdict(message)
    del fields["payload"]
    return fields


def _with_body(message: PendingMessage | DeadMessage) -> dict[str, Any]:
    """The body as text if it is UTF-8, otherwise as base64."""
    text = _decoded(message.payload)
    body = {"payload": text} if text is not None else {"payload_base64": b64encode(message.payload).decode()}
    return {"dead": isinstance(message, DeadMessage), **_without_body(message), **body}


def _decoded(payload: bytes) -> str | None:
    try:
        return payload.decode()
    except UnicodeDecodeError:
        return None


def _plain(value: object) -> str:
    """What JSON has no kind for: times and UUIDs."""
    return value.isoformat() if isinstance(value, datetime) else str(value)


class Redrive(Operation):
    name = "redrive"
    help = (
        "Put dead letters back into their queues, oldest first, with their message ids and fresh counters; all of them, or "
        "those that every option given applies to. All or none are put back."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--queue", type=queue_name, metavar="NAME", help="only those of this queue")
        parser.add_argument("--key", type=key_name, metavar="KEY", help="only those with this key")
        parser.add_argument("--reason", metavar="REASON", help="only those that failed for this reason")
        parser.add_argument("--id", type=count(), action="append", metavar="N", help="only this one; may be repeated")
        parser.add_argument("--limit", type=count(), metavar="N", help="at most so many")
        parser.add_argument("--dry-run", action="store_true", help="only say how many")

    async def run(self, store: Store, options: Mapping[str, Any]) -> Answer:
        number = await store.redrive(
            queue=options["queue"],
            key=options["key"],
            ids=options["id"],
            reason=options["reason"],
            limit=options["limit"],
            dry_run=options["dry_run"],
            session=None,
        )
        done = "would be put back" if options["dry_run"] else "put back"
        return Answer(
            f"{counted(number, 'dead letter')} {done}", {"redriven": number, "dry_run": bool(options["dry_run"])}
        )


class Purge(Operation):
    name = "purge"
    help = "Delete dead letters, or with --inbox the records of received messages, for good, a batch a transaction."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument(
            "--older-than",
            type=duration,
            required=True,
            metavar="SPAN",
            help="those that failed, or were received, longer ago than this: 30d, 12h, 45m, or seconds",
        )
        parser.add_argument("--inbox", action="store_true", help="forget received messages instead")
        parser.add_argument(
            "--dead-letter-retention",
            type=duration,
            metavar="SPAN",
            help="with --inbox, which must not forget what can come again: how long dead letters are kept where the "
            "messages come from",
        )
        parser.add_argument("--queue", type=queue_name, metavar="NAME", help="only dead letters of this queue")
        parser.add_argument("--limit", type=count(), metavar="N", help="at most so many")

    async def run(self, store: Store, options: Mapping[str, Any]) -> Answer:
        older_than: timedelta = options["older_than"]
        if options["inbox"]:
            return await purge_inbox(store, _inbox_age(older_than, options["dead_letter_retention"]), options)
        if options["dead_letter_retention"] is not None:
            raise Refused("--dead-letter-retention is about the inbox; add --inbox")
        return await purge_dead_letters(store, older_than, options)


def _inbox_age(older_than: timedelta, dead_letters: timedelta | None) -> timedelta:
    declared = Retention(
        inbox=older_than,
        dead_letters=dead_letters,
        inbox_name="--older-than",
        dead_letters_name="--dead-letter-retention",
    )
    return declared.age(None)


async def purge_dead_letters(store: Store, older_than: timedelta, options: Mapping[str, Any]) -> Answer:
    def purge(size: int) -> Awaitable[int]:
        return store.purge_dead_letters(older_than, options["queue"], size, None)

    return await _purged("dead letter", purge, options["limit"])


async def purge_inbox(store: Store, older_than: timedelta, options: Mapping[str, Any]) -> Answer:
    if options["queue"] is not None:
        raise Refused("--queue is for dead letters; an inbox has none")
    if not isinstance(store, SqlStore):
        raise Refused(f"{store.name} is no database, and has no inbox")

    def purge(size: int) -> Awaitable[int]:
        return store.purge_inbox(older_than, size, None)

    return await _purged("received message", purge, options["limit"])


async def _purged(noun: str, purge: Callable[[int], Awaitable[int]], limit: int | None) -> Answer:
    """Call *purge* with the sizes of batches until nothing is left, or *limit* is reached; how many of *noun* it deleted."""
    deleted = 0
    for size in _batches(limit):
        found = await purge(size)
        deleted += found
        if found < size:
            break
    return Answer(f"{counted(deleted, noun)} deleted", {"deleted": deleted})


def _batches(limit: int | None) -> Iterator[int]:
    """Sizes that come to *limit* together, or to no end."""
    while limit is None:
        yield PURGED_AT_ONCE
    for start in range(0, limit, PURGED_AT_ONCE):
        yield min(PURGED_AT_ONCE, limit - start)


class Pause(Operation):
    name = "pause"
    help = (
        "Stop all workers' claiming from queues within about a second, until they are resumed; what they have in hand is "
        "handled. It survives restarts, and messages may be published meanwhile."
    )
    paused: ClassVar[bool] = True

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("queue", type=queue_name, nargs="+", help="a queue's name; messages need not be there yet")

    async def run(self, store: Store, options: Mapping[str, Any]) -> Answer:
        for queue in options["queue"]:
            await store.set_paused(queue, self.paused, None)
        done = "is paused" if self.paused else "goes on"
        said = "\n".join(f"{printable(queue)} {done}" for queue in options["queue"])
        return Answer(said, {"queues": options["queue"], "paused": self.paused})


class Resume(Pause):
    name = "resume"
    help = "Let workers claim from paused queues again."
    paused = False


class Release(Operation):
    name = "release"
    help = (
        "Let keys go on without the dead message that halts them, which goes to the dead letters. To have it tried again in "
        "its place, redrive it with --queue and --key."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("queue", type=queue_name, help="the queue's name")
        parser.add_argument("key", type=key_name, nargs="+", help="a halted key")

    async def run(self, store: Store, options: Mapping[str, Any]) -> Answer:
        queue, released = options["queue"], []
        for key in options["key"]:
            if not await store.release_key(queue, key, None):
                raise Refused(f"nothing halts key {key!r} of {queue!r}")
            released.append(key)
        said = "\n".join(f"{printable(key)} goes on" for key in released)
        return Answer(said, {"queue": queue, "released": released})


class Validate(Operation):
    name = "validate"
    help = "Compare the tables with what this version works with, and name every difference."

    async def run(self, store: Store, options: Mapping[str, Any]) -> Answer:
        differences = await store.differences()
        lines = [f"{table}: {difference.text}" for table, found in differences.items() for difference in found]
        if lines:
            raise Refused(
                "; ".join([*lines, "migrate them, or see what `outbox ddl` prints for them"]),
                Exit.MISFIT,
            )
        return Answer(f"the tables of {store.name} fit", {"outbox": store.name, "fits": True})


OPERATIONS: tuple[Operation, ...] = (
    Stats(),
    ListMessages(),
    Show(),
    Redrive(),
    Purge(),
    Pause(),
    Resume(),
    Release(),
    Validate(),
)
