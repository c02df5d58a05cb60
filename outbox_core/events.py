"""What a worker reports, for logs, metrics and tests: frozen facts, emitted after what they tell has happened.

One event a change of state or a batch, never one a poll. An observer is called on the event loop, but for `LoopBlocked`: it
must be quick, and what it raises is logged and forgotten.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from outbox_core.message import Delivery
from outbox_core.outcome import Outcome


@dataclass(frozen=True, slots=True)
class WorkerStarted:
    """The engine runs, and claims from `queues`. `listening`: whether wake-ups arrive, or it polls."""

    worker: str
    queues: tuple[str, ...]
    listening: bool


@dataclass(frozen=True, slots=True)
class WorkerStopped:
    """The engine has drained. `released`: messages given back; `abandoned`: handlers cut at the deadline."""

    worker: str
    released: int
    abandoned: int


@dataclass(frozen=True, slots=True)
class Claimed:
    """So many messages were leased in one statement that took *seconds*."""

    count: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Handled:
    """One handler run ended, or a pulled message has its vote. `seconds`: how long that took since its begin."""

    delivery: Delivery
    outcome: Outcome
    error: BaseException | None
    seconds: float


@dataclass(frozen=True, slots=True)
class Settled:
    """A batch was written. `lost`: ids that were no longer ours, on which nothing was changed."""

    count: int
    lost: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class DeadLettered:
    """A message is dead, and written down as such."""

    delivery: Delivery
    reason: str


@dataclass(frozen=True, slots=True)
class LeaseLost:
    """Another worker may have the message; what its handler does here is not settled."""

    delivery: Delivery


@dataclass(frozen=True, slots=True)
class ConnectionLost:
    """A link broke (`role`: claim, settle or heartbeat); it is being made again."""

    role: str
    error: BaseException


@dataclass(frozen=True, slots=True)
class ConnectionRestored:
    """The link works again after *seconds*."""

    role: str
    seconds: float


@dataclass(frozen=True, slots=True)
class ListenDegraded:
    """Wake-ups do not arrive (a pooler, or no LISTEN at all); the worker polls."""

    reason: str


@dataclass(frozen=True, slots=True)
class LoopBlocked:
    """The event loop has answered nothing for *seconds*; `running`: the deliveries whose handler has begun.

    One of these handlers blocks it, or something else of the process. Observers are called in another thread: nothing
    else could tell them.
    """

    seconds: float
    running: tuple[Delivery, ...]


@dataclass(frozen=True, slots=True)
class LoopFreed:
    """It goes on, after about *seconds*."""

    seconds: float


Event: TypeAlias = (
    WorkerStarted
    | WorkerStopped
    | Claimed
    | Handled
    | Settled
    | DeadLettered
    | LeaseLost
    | ConnectionLost
    | ConnectionRestored
    | ListenDegraded
    | LoopBlocked
    | LoopFreed
)
Observer: TypeAlias = Callable[[Event], None]
