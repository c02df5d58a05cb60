"""How one delivery ended: acked, to be retried, given back, or dead.

A handler casts a vote, or raises; `dispatch.decide` makes an outcome of it; a store writes it (AMQP 1.0 §3.4 names the same
ends accepted, modified, released and rejected).
"""

from dataclasses import dataclass
from typing import Literal, TypeAlias

DeadReason: TypeAlias = Literal["max_deliveries", "retry_terminal", "rejected", "undecodable"]


@dataclass(frozen=True, slots=True)
class Ack:
    """Done: the row is deleted (or archived)."""


@dataclass(frozen=True, slots=True)
class Retry:
    """Come back in *delay* seconds, on the database's clock. *failed* says whether an attempt is counted."""

    delay: float
    failed: bool = True


@dataclass(frozen=True, slots=True)
class Release:
    """Given back as if it had never been claimed: no attempt, no delivery, due as before, and a suspect if it was one."""


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """No further try. *error* is the rendered exception, or None where nobody raised.

    *halts*: the other messages of its key wait until this one is redriven or released.
    """

    reason: DeadReason
    error: str | None = None
    halts: bool = False


Outcome: TypeAlias = Ack | Retry | Release | DeadLetter
ACK = Ack()


@dataclass(frozen=True, slots=True)
class Nack:
    """A handler's vote: try again, after *delay* seconds or, with None, when the retry strategy says."""

    delay: float | None = None


@dataclass(frozen=True, slots=True)
class Reject:
    """A handler's vote: never try again."""


@dataclass(frozen=True, slots=True)
class Snooze:
    """A handler's vote: not now, come back in *delay* seconds; nothing failed."""

    delay: float


Vote: TypeAlias = Ack | Nack | Reject | Snooze
