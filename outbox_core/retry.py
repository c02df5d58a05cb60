"""When a failed message is tried again, and when to give up.

A strategy answers with a delay in seconds, which the database adds to its own clock, or None to give up. Names and
arguments are those of faststream-outbox, so a strategy written for it works here unchanged.
"""

import sys
from abc import abstractmethod
from dataclasses import dataclass, field
from datetime import datetime
from random import Random
from typing import Protocol, TypeAlias, runtime_checkable

from outbox_core.errors import OptionError, WrongType
from outbox_core.quoting import quoted

# make_interval() rejects more than this, and a century is longer than any outage.
MAX_DELAY_SECONDS = 100 * 365 * 86_400.0

ExceptionTypes: TypeAlias = type[BaseException] | tuple[type[BaseException], ...]


@runtime_checkable
class RetryStrategy(Protocol):
    """Anything that can say when the next attempt should be."""

    def get_next_attempt_delay(
        self,
        *,
        first_attempt_at: datetime,
        last_attempt_at: datetime,
        attempts_count: int,
        exception: BaseException | None = None,
    ) -> float | None:
        """Seconds until the next attempt, or None to give up.

        *attempts_count* includes the attempt that has just failed (1 after the first failure); both times are the
        database's. *exception* is None where the handler nacked without raising.
        """


@dataclass(frozen=True, kw_only=True)
class NoRetry:
    """The first failure is the last."""

    def get_next_attempt_delay(
        self,
        *,
        first_attempt_at: datetime,
        last_attempt_at: datetime,
        attempts_count: int,
        exception: BaseException | None = None,
    ) -> float | None:
        return None


@dataclass(frozen=True, kw_only=True)
class _Bounded:
    """What the three growing strategies share: when to stop, whom to believe, and jitter.

    `max_attempts`: handler runs in all, None for no limit. `max_total_delay_seconds`: no attempt is planned later than
    this after the first, None for no limit. `retry_on`: only these exceptions are worth a retry. `give_up_on`: these never
    are. `jitter_factor`: 0.2 spreads each delay over ±10 % (AWS Builders' Library, "Timeouts, retries and backoff with
    jitter").
    """

    max_attempts: int | None = None
    max_total_delay_seconds: float | None = None
    retry_on: ExceptionTypes = Exception
    give_up_on: ExceptionTypes = ()
    jitter_factor: float = 0.0
    random: Random = field(default_factory=Random, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.max_attempts is not None:
            if isinstance(self.max_attempts, bool) or not isinstance(self.max_attempts, int):
                raise WrongType("max_attempts", "an int or None", self.max_attempts)
            if self.max_attempts < 1:
                raise OptionError(f"max_attempts must be >= 1 or None, got {quoted(self.max_attempts)}")
        if self.max_total_delay_seconds is not None:
            _check_seconds("max_total_delay_seconds", self.max_total_delay_seconds)
        if not 0 <= _check_number("jitter_factor", self.jitter_factor) <= 2:
            raise OptionError(f"jitter_factor must be between 0 and 2, got {quoted(self.jitter_factor)}")
        if not isinstance(self.random, Random):
            raise WrongType("random", "a random.Random", self.random)
        _check_exceptions("retry_on", self.retry_on)
        _check_exceptions("give_up_on", self.give_up_on)

    @abstractmethod
    def _delay(self, attempts_count: int) -> float:
        """Seconds before jitter, for *attempts_count* >= 1."""

    def get_next_attempt_delay(
        self,
        *,
        first_attempt_at: datetime,
        last_attempt_at: datetime,
        attempts_count: int,
        exception: BaseException | None = None,
    ) -> float | None:
        if not self._worth_a_retry(exception):
            return None
        if self.max_attempts is not None and attempts_count >= self.max_attempts:
            return None
        delay = self._jittered(min(self._delay(attempts_count), MAX_DELAY_SECONDS))
        if self.max_total_delay_seconds is not None:
            elapsed = (last_attempt_at - first_attempt_at).total_seconds()
            if elapsed + delay > self.max_total_delay_seconds:
                return None
        return delay

    def _worth_a_retry(self, exception: BaseException | None) -> bool:
        if exception is None:
            return True
        return isinstance(exception, self.retry_on) and not isinstance(exception, self.give_up_on)

    def _jittered(self, delay: float) -> float:
        half = self.jitter_factor / 2
        return delay * (1 + self.random.uniform(-half, half)) if half else delay


@dataclass(frozen=True, kw_only=True)
class ConstantRetry(_Bounded):
    """The same delay each time."""

    delay_seconds: float

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_seconds("delay_seconds", self.delay_seconds)

    def _delay(self, attempts_count: int) -> float:
        return self.delay_seconds


@dataclass(frozen=True, kw_only=True)
class LinearRetry(_Bounded):
    """A delay that grows by a step: initial, initial + step, initial + 2 steps."""

    initial_delay_seconds: float
    step_seconds: float

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_seconds("initial_delay_seconds", self.initial_delay_seconds)
        _check_seconds("step_seconds", self.step_seconds, zero=True)

    def _delay(self, attempts_count: int) -> float:
        return self.initial_delay_seconds + self.step_seconds * (attempts_count - 1)


@dataclass(frozen=True, kw_only=True)
class ExponentialRetry(_Bounded):
    """A delay that multiplies, up to a ceiling."""

    initial_delay_seconds: float = 1.0
    multiplier: float = 2.0
    max_delay_seconds: float | None = 300.0

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_seconds("initial_delay_seconds", self.initial_delay_seconds)
        if not 1 <= _check_number("multiplier", self.multiplier) <= sys.float_info.max:
            raise OptionError(f"multiplier must be >= 1 and finite, got {quoted(self.multiplier)}")
        if self.max_delay_seconds is not None:
            _check_seconds("max_delay_seconds", self.max_delay_seconds)

    def _delay(self, attempts_count: int) -> float:
        ceiling = MAX_DELAY_SECONDS if self.max_delay_seconds is None else self.max_delay_seconds
        try:
            return min(self.initial_delay_seconds * self.multiplier ** (attempts_count - 1), ceiling)
        except OverflowError:  # 2.0 ** 1024
            return ceiling


def default_retry() -> ExponentialRetry:
    """1 s, doubled up to 300 s, 10 attempts, ±10 %: about nine minutes in all."""
    return ExponentialRetry(max_attempts=10, jitter_factor=0.2)


def _check_seconds(name: str, value: float, *, zero: bool = False) -> None:
    _check_number(name, value, "a number of seconds")
    if not (value >= 0 if zero else value > 0) or not value <= MAX_DELAY_SECONDS:
        least = ">=" if zero else ">"
        raise OptionError(f"{name} must be {least} 0 and at most a century of seconds, got {quoted(value)}")


def _check_number(name: str, value: float, expected: str = "a number") -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise WrongType(name, expected, value)
    return value


def _check_exceptions(name: str, types: ExceptionTypes) -> None:
    for item in types if isinstance(types, tuple) else (types,):
        if not (isinstance(item, type) and issubclass(item, BaseException)):
            raise WrongType(name, "an exception class or a tuple of them", item)
