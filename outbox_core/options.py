"""What a subscriber may be told, declared once: defaults, units and checks.

Adapters take the same options as keyword arguments (`**options: Unpack[SubscriberOptions]`) and build one
`ConsumerOptions` of them, which raises where the traceback points at the user's line.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from inspect import iscoroutinefunction
from typing import Any, Literal, TypeAlias, TypedDict

from outbox_core.envelope import check_queue
from outbox_core.errors import OptionError, UnknownOption, WrongType
from outbox_core.quoting import quoted
from outbox_core.retry import RetryStrategy, default_retry

OnDeadLetter: TypeAlias = Literal["continue", "halt"]

MAX_WORKERS = 1_000
MAX_RECORDS = 10_000


class SubscriberOptions(TypedDict, total=False):
    """The keyword arguments of `@broker.subscriber(...)` that belong to the engine; see `ConsumerOptions`."""

    max_workers: int
    retry_strategy: RetryStrategy | None
    max_deliveries: int | None
    lease_ttl_seconds: float
    prefetch: int | None
    min_fetch_interval: float
    max_fetch_interval: float
    batch: bool
    max_records: int
    handler_timeout: float | None
    cancel_on_lease_lost: bool
    on_dead_letter: OnDeadLetter


@dataclass(frozen=True, kw_only=True)
class ConsumerOptions:
    """One subscriber's part of the engine.

    `max_workers`: handlers that run at once. `max_deliveries`: handler starts after which a message is dead even if none
    of them reported a failure, None for no limit. `lease_ttl_seconds`: how long a dead worker's messages wait; a live one
    extends its leases, so handlers may take longer. `prefetch`: messages held in advance, None to follow the handlers'
    speed. `min_fetch_interval` and `max_fetch_interval`: seconds between polls while nothing is heard or found.
    `batch`: the handler takes a list of up to `max_records`. `handler_timeout`: seconds after which a handler run is
    cancelled and counts as failed, None for no limit. `cancel_on_lease_lost`: cancel a handler whose message has gone to
    another worker. `on_dead_letter`: whether the key of a dead message goes on with its next one, or halts until the dead
    one is redriven or the key is released. `last_exception_renderer`: what a dead letter tells of the exception; None: its
    type and its text.
    """

    queues: tuple[str, ...]
    max_workers: int = 1
    retry_strategy: RetryStrategy = field(default_factory=default_retry)
    max_deliveries: int | None = 20
    lease_ttl_seconds: float = 10.0
    prefetch: int | None = None
    min_fetch_interval: float = 0.05
    max_fetch_interval: float = 1.0
    batch: bool = False
    max_records: int = 100
    handler_timeout: float | None = None
    cancel_on_lease_lost: bool = False
    on_dead_letter: OnDeadLetter = "continue"
    last_exception_renderer: Callable[[BaseException], str] | None = None

    def __post_init__(self) -> None:
        if not self.queues:
            raise OptionError("subscriber needs at least one queue, got none")
        for queue in self.queues:
            check_queue(queue)
        if len(set(self.queues)) < len(self.queues):
            raise OptionError(f"queues must be different from each other, got {list(self.queues)!r}")
        check_max_workers(self.max_workers)
        _check_int("max_records", self.max_records, 1, MAX_RECORDS)
        if self.max_deliveries is not None:
            _check_int("max_deliveries", self.max_deliveries, 1, 1_000_000)
        if self.prefetch is not None:
            _check_int("prefetch", self.prefetch, 1, MAX_RECORDS)
        _check_seconds("lease_ttl_seconds", self.lease_ttl_seconds, 1.0, 3_600.0)
        _check_seconds("min_fetch_interval", self.min_fetch_interval, 0.001, 3_600.0)
        _check_seconds("max_fetch_interval", self.max_fetch_interval, self.min_fetch_interval, 3_600.0)
        if self.handler_timeout is not None:
            _check_seconds("handler_timeout", self.handler_timeout, 0.001, 86_400.0)
        if self.on_dead_letter not in ("continue", "halt"):
            raise OptionError(f'on_dead_letter must be "continue" or "halt", got {quoted(self.on_dead_letter)}')
        for name in ("batch", "cancel_on_lease_lost"):
            if not isinstance(value := getattr(self, name), bool):
                raise WrongType(name, "True or False", value)
        _check_retry_strategy(self.retry_strategy)

    @classmethod
    def of(cls, queues: str | Sequence[str], options: SubscriberOptions) -> "ConsumerOptions":
        """From what a decorator was called with; a retry strategy of None means the default."""
        if not isinstance(queues, str | Sequence) or isinstance(queues, bytes):
            raise WrongType("queues", "a str or a list of them", queues)
        if not options.keys() <= _OPTIONS:
            raise UnknownOption("subscriber", min(options.keys() - _OPTIONS), _OPTIONS)
        names = (queues,) if isinstance(queues, str) else tuple(queues)
        given = {name: value for name, value in options.items() if name != "retry_strategy" or value is not None}
        return cls(queues=names, **given)  # type: ignore[arg-type]  # the TypedDict lists the same types


_OPTIONS = SubscriberOptions.__annotations__.keys()


def check_timeout(value: float | None) -> float | None:
    """*value* if one can wait so long; None is for ever."""
    if value is not None:
        _check_seconds("timeout", value, 0.001, 86_400.0)
    return value


def check_stuck_timeout(value: float | None) -> float | None:
    """*value* if a worker can be ended after its loop was blocked for so long; None is never."""
    if value is not None:
        _check_seconds("stuck_timeout", value, 1.0, 86_400.0)
    return value


def check_graceful_timeout(value: float | None) -> float | None:
    """*value* if a stop can wait so long; None and 0 do not wait."""
    if value is not None:
        _check_seconds("graceful_timeout", value, 0, 86_400.0)
    return value


def check_renderer(value: object) -> Any:
    """*value* if it can tell of an exception, or is None."""
    if value is not None and (not callable(value) or iscoroutinefunction(value)):
        raise WrongType("last_exception_renderer", "a function of an exception, not asynchronous, or None", value)
    return value


def check_max_workers(value: int) -> int:
    """*value* if so many handlers can run at once."""
    _check_int("max_workers", value, 1, MAX_WORKERS)
    return value


def _check_retry_strategy(strategy: object) -> None:
    """A strategy that cannot answer would say so only when the first handler has failed."""
    if isinstance(strategy, type) or not isinstance(strategy, RetryStrategy):
        raise WrongType("retry_strategy", "a retry strategy such as ExponentialRetry()", strategy)
    answer = strategy.get_next_attempt_delay
    if not callable(answer) or iscoroutinefunction(answer):
        raise WrongType(f"{type(strategy).__name__}.get_next_attempt_delay", "a method, not asynchronous", answer)


def _check_int(name: str, value: object, least: int, most: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise WrongType(name, "an int", value)
    if not least <= value <= most:
        raise OptionError(f"{name} must be between {least:,} and {most:,}, got {_with_commas(value)}")


def _check_seconds(name: str, value: object, least: float, most: float) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise WrongType(name, "a number of seconds", value)
    if not least <= value <= most:  # which NaN is not
        raise OptionError(f"{name} must be between {least:g} and {most:g} seconds, got {quoted(value)}")


def _with_commas(value: int) -> str:
    return f"{value:,}" if abs(value) < 10**18 else quoted(value)
