"""What can go wrong, and whose move it is.

Every error of ours is an `OutboxError` and a built-in that fits, so that callers catch what they know. The values that a
program may want are attributes: nobody has to parse text. A lost lease is a result, not an error.
"""

from collections.abc import Collection, Sequence
from datetime import timedelta
from difflib import get_close_matches
from uuid import UUID

from outbox_core.quoting import quoted, said


class OutboxError(Exception):
    """The root of everything that this library raises."""


# The caller's move: what was passed cannot be right.


class InvalidName(OutboxError, ValueError):
    """A table, schema or channel name that is no plain identifier."""


class OptionError(OutboxError, ValueError):
    """An option outside its range, found when it is given, not when it is used."""


class WrongType(OutboxError, TypeError):
    """An argument of a type that cannot work, such as a sync session where an async one is awaited."""

    def __init__(self, argument: str, expected: str, value: object, hint: str = "") -> None:
        self.argument = argument
        self.value = value
        super().__init__(f"{argument} must be {expected}, got {type(value).__name__}" + (f"; {hint}" if hint else ""))


class UnknownOption(OutboxError, TypeError):
    """A keyword that the call does not have; without this it would be ignored in silence."""

    def __init__(self, call: str, option: str, known: Collection[str]) -> None:
        self.option = option
        close = get_close_matches(option, known, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"it has {', '.join(sorted(known))}"
        super().__init__(f"{call} has no option {option!r}; {hint}")


class InvalidHandler(OutboxError, TypeError):
    """What cannot be a handler: no function, or one of which calling it runs nothing."""


class InvalidMessage(OutboxError, ValueError):
    """A queue, header, key, schedule or id that would not survive the trip; nothing was sent to the database."""


class CannotEncode(InvalidMessage):
    """A body that is neither bytes nor text nor JSON."""


class PayloadTooLarge(InvalidMessage):
    """A body that is larger, when encoded, than the publisher allows; both in bytes."""

    def __init__(self, size: int, limit: int) -> None:
        self.size = size
        self.limit = limit
        super().__init__(
            f"the payload must be at most {limit:,} bytes, got {size:,}; publish a reference to where the data is, "
            "or raise max_payload_bytes"
        )


class NoTransaction(OutboxError, RuntimeError):
    """A publish that no transaction of the caller's would cover."""


class WrongDatabase(OutboxError, ValueError):
    """A session of another database than the broker's."""


class NotStarted(OutboxError, RuntimeError):
    """An operation that needs an engine, or a started broker."""


class CannotPull(OutboxError, RuntimeError):
    """A subscriber that hands out no messages, because its handlers get them, or nobody keeps any."""


# The message's fault: retrying cannot help.


class Undecodable(OutboxError, ValueError):
    """A payload that does not decode as its content type says; it is dead-lettered at the first try.

    `message_ids`: which messages of a batch are at fault; the others are given back. None: all of them.
    """

    def __init__(self, text: str, message_ids: Collection[UUID] | None = None) -> None:
        self.message_ids = message_ids
        super().__init__(text)


# The operator's move: the database is not what the program expects.


class UnsupportedDatabase(OutboxError, ValueError):
    """A database that the core has no statements for."""


class MissingTable(OutboxError, LookupError):
    """A feature was used whose table was not given."""


class SchemaMismatch(OutboxError, LookupError):
    """The live table is not the one described in `outbox_core.schema`; `differences` has a line for each."""

    def __init__(self, table: str, differences: Sequence[str]) -> None:
        self.table = table
        self.differences = tuple(differences)
        super().__init__(f"{table} does not fit this version: " + "; ".join(self.differences))


class NoPermission(OutboxError, PermissionError):
    """The database role lacks a privilege; `outbox ddl --grants` prints those that it needs."""


class PastRetention(OutboxError, ValueError):
    """A dead letter is too old to be redriven: an inbox may have forgotten that it was handled."""

    def __init__(self, id: int, message_id: UUID, queue: str, age: timedelta, retention: timedelta) -> None:
        self.id = id
        self.message_id = message_id
        self.queue = queue
        self.age = age
        self.retention = retention
        super().__init__(
            f"dead letter {id} ({message_id}) in {quoted(queue)} failed {said(age)} ago, and dead letters are kept for "
            f"{said(retention)} only, so an inbox may have forgotten that it was handled; nothing is put back. Purge what is "
            "older (of one that halts its key, release the key first), choose others by queue, key, reason or id, or "
            "declare a longer dead-letter retention"
        )


class DatabaseUnavailable(OutboxError, ConnectionError):
    """The database cannot be reached when the program needs it to start."""
