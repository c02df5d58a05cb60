"""When a failed message is tried again."""

from datetime import UTC, datetime, timedelta
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outbox_core.errors import OptionError, WrongType
from outbox_core.retry import (
    MAX_DELAY_SECONDS,
    ConstantRetry,
    ExponentialRetry,
    LinearRetry,
    NoRetry,
    RetryStrategy,
    default_retry,
)

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)


def delay(
    strategy: RetryStrategy, attempt: int, exception: BaseException | None = None, *, elapsed: float = 0.0
) -> float | None:
    return strategy.get_next_attempt_delay(
        first_attempt_at=NOON,
        last_attempt_at=NOON + timedelta(seconds=elapsed),
        attempts_count=attempt,
        exception=exception,
    )


def test_no_retry_gives_up_at_once() -> None:
    assert delay(NoRetry(), 1) is None
    assert delay(NoRetry(), 1, ValueError()) is None


@pytest.mark.parametrize(
    ("strategy", "delays"),
    [
        (ConstantRetry(delay_seconds=5), [5, 5, 5, 5]),
        (LinearRetry(initial_delay_seconds=1, step_seconds=2), [1, 3, 5, 7]),
        (LinearRetry(initial_delay_seconds=4, step_seconds=0), [4, 4, 4, 4]),
        (ExponentialRetry(), [1, 2, 4, 8]),
        (ExponentialRetry(initial_delay_seconds=0.5, multiplier=3), [0.5, 1.5, 4.5, 13.5]),
        (ExponentialRetry(initial_delay_seconds=2, multiplier=1), [2, 2, 2, 2]),
        (ExponentialRetry(initial_delay_seconds=10, max_delay_seconds=25), [10, 20, 25, 25]),
        (ConstantRetry(delay_seconds=5, max_attempts=3), [5, 5, None, None]),
        (ExponentialRetry(max_attempts=1), [None, None, None, None]),
    ],
    ids=repr,
)
def test_delays_grow_as_described(strategy: RetryStrategy, delays: list[float | None]) -> None:
    assert [delay(strategy, attempt) for attempt in (1, 2, 3, 4)] == delays


def test_the_default_gives_up_after_ten_attempts_and_about_nine_minutes() -> None:
    strategy = default_retry()

    delays = [delay(strategy, attempt) for attempt in range(1, 10)]

    for given_delay, expected in zip(delays, [1, 2, 4, 8, 16, 32, 64, 128, 256], strict=True):
        assert given_delay == pytest.approx(expected, rel=0.1)
    assert delay(strategy, 10) is None


def test_the_total_delay_is_never_exceeded() -> None:
    strategy = ConstantRetry(delay_seconds=10, max_total_delay_seconds=25)

    assert delay(strategy, 1, elapsed=0) == 10
    assert delay(strategy, 2, elapsed=15) == 10
    assert delay(strategy, 3, elapsed=15.5) is None


def test_a_total_delay_shorter_than_the_first_delay_allows_no_retry() -> None:
    assert delay(ConstantRetry(delay_seconds=10, max_total_delay_seconds=5), 1) is None


@pytest.mark.parametrize(
    ("options", "exception", "retried"),
    [
        ({}, ValueError(), True),
        ({}, None, True),
        ({}, KeyboardInterrupt(), False),
        ({"retry_on": ConnectionError}, ConnectionResetError(), True),
        ({"retry_on": ConnectionError}, ValueError(), False),
        ({"retry_on": ConnectionError}, None, True),
        ({"retry_on": (ConnectionError, ValueError)}, ValueError(), True),
        ({"retry_on": ()}, ValueError(), False),
        ({"give_up_on": ValueError}, ValueError(), False),
        ({"give_up_on": ValueError}, UnicodeError(), False),
        ({"give_up_on": ValueError}, KeyError(), True),
        ({"give_up_on": (KeyError, ValueError)}, KeyError(), False),
        ({"retry_on": OSError, "give_up_on": FileNotFoundError}, FileNotFoundError(), False),
        ({"retry_on": OSError, "give_up_on": FileNotFoundError}, PermissionError(), True),
        ({"retry_on": BaseException}, KeyboardInterrupt(), True),
    ],
)
def test_exceptions_decide_whether_a_retry_is_worth_it(
    options: dict[str, Any], exception: BaseException | None, retried: bool
) -> None:
    assert (delay(ConstantRetry(delay_seconds=5, **options), 1, exception) is not None) is retried


@given(factor=st.floats(0, 2), seconds=st.floats(0.001, 1e6), seed=st.integers())
def test_jitter_stays_within_half_its_factor_on_both_sides(factor: float, seconds: float, seed: int) -> None:
    strategy = ConstantRetry(delay_seconds=seconds, jitter_factor=factor, random=Random(seed))

    jittered = delay(strategy, 1)

    assert jittered is not None
    assert seconds * (1 - factor / 2) * (1 - 1e-9) <= jittered <= seconds * (1 + factor / 2) * (1 + 1e-9)


def test_jitter_comes_from_the_random_source_given() -> None:
    one = ConstantRetry(delay_seconds=10, jitter_factor=1, random=Random(7))
    two = ConstantRetry(delay_seconds=10, jitter_factor=1, random=Random(7))

    assert [delay(one, 1) for _ in range(5)] == [delay(two, 1) for _ in range(5)]
    assert len({delay(one, 1) for _ in range(5)}) == 5


def test_a_strategy_is_equal_to_one_with_the_same_options() -> None:
    assert ConstantRetry(delay_seconds=10) == ConstantRetry(delay_seconds=10)
    assert ConstantRetry(delay_seconds=10) != ConstantRetry(delay_seconds=11)


@given(
    initial=st.floats(0.001, 1e5),
    multiplier=st.floats(1, 1e3),
    ceiling=st.one_of(st.none(), st.floats(0.001, MAX_DELAY_SECONDS)),
    attempt=st.integers(1, 10_000),
)
def test_exponential_delays_never_shrink_nor_pass_their_ceiling(
    initial: float, multiplier: float, ceiling: float | None, attempt: int
) -> None:
    strategy = ExponentialRetry(initial_delay_seconds=initial, multiplier=multiplier, max_delay_seconds=ceiling)

    this, following = delay(strategy, attempt), delay(strategy, attempt + 1)

    assert this is not None
    assert following is not None
    assert 0 < this <= following <= (MAX_DELAY_SECONDS if ceiling is None else ceiling)


@given(initial=st.floats(0.001, 1e9), step=st.floats(0, 1e9), attempt=st.integers(1, 1_000_000))
def test_linear_delays_never_shrink_nor_pass_a_century(initial: float, step: float, attempt: int) -> None:
    strategy = LinearRetry(initial_delay_seconds=initial, step_seconds=step)

    this, following = delay(strategy, attempt), delay(strategy, attempt + 1)

    assert this is not None
    assert following is not None
    assert 0 < this <= following <= MAX_DELAY_SECONDS


@given(attempt=st.integers(1, 1_000), limit=st.integers(1, 1_000))
def test_there_are_never_more_attempts_than_allowed(attempt: int, limit: int) -> None:
    retried = delay(ConstantRetry(delay_seconds=1, max_attempts=limit), attempt) is not None

    assert retried == (attempt < limit)


@given(total=st.floats(0.001, 1e6), seconds=st.floats(0.001, 1e6), elapsed=st.floats(0, 1e6), factor=st.floats(0, 2))
def test_no_attempt_is_planned_after_the_total_delay(
    total: float, seconds: float, elapsed: float, factor: float
) -> None:
    strategy = ConstantRetry(delay_seconds=seconds, max_total_delay_seconds=total, jitter_factor=factor)

    planned = delay(strategy, 1, elapsed=elapsed)

    assert planned is None or elapsed + planned <= total + 1e-5


@pytest.mark.parametrize(
    ("make", "options", "message"),
    [
        (ConstantRetry, {"delay_seconds": 0}, "delay_seconds must be > 0"),
        (ConstantRetry, {"delay_seconds": -1}, "delay_seconds must be > 0"),
        (ConstantRetry, {"delay_seconds": float("nan")}, "delay_seconds must be > 0"),
        (ConstantRetry, {"delay_seconds": float("inf")}, "at most a century of seconds, got inf"),
        (ConstantRetry, {"delay_seconds": 1, "max_attempts": 0}, "max_attempts must be >= 1 or None, got 0"),
        (ConstantRetry, {"delay_seconds": 1, "jitter_factor": -0.1}, "jitter_factor must be between 0 and 2, got -0.1"),
        (ConstantRetry, {"delay_seconds": 1, "jitter_factor": 2.1}, "jitter_factor must be between 0 and 2, got 2.1"),
        (ConstantRetry, {"delay_seconds": 1, "jitter_factor": float("nan")}, "jitter_factor must be between 0 and 2"),
        (ConstantRetry, {"delay_seconds": 1, "max_total_delay_seconds": 0}, "max_total_delay_seconds must be > 0"),
        (LinearRetry, {"initial_delay_seconds": 0, "step_seconds": 1}, "initial_delay_seconds must be > 0"),
        (LinearRetry, {"initial_delay_seconds": 1, "step_seconds": -1}, "step_seconds must be >= 0"),
        (ExponentialRetry, {"initial_delay_seconds": 0}, "initial_delay_seconds must be > 0"),
        (ExponentialRetry, {"multiplier": 0.5}, "multiplier must be >= 1 and finite, got 0.5"),
        (ExponentialRetry, {"multiplier": float("inf")}, "multiplier must be >= 1 and finite, got inf"),
        (ExponentialRetry, {"multiplier": float("nan")}, "multiplier must be >= 1 and finite, got nan"),
        (ExponentialRetry, {"max_delay_seconds": 0}, "max_delay_seconds must be > 0"),
    ],
)
def test_an_option_out_of_range_is_refused(make: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        make(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"delay_seconds": "1"}, "delay_seconds must be a number of seconds, got str"),
        ({"delay_seconds": True}, "delay_seconds must be a number of seconds, got bool"),
        ({"delay_seconds": 1, "max_attempts": 2.5}, "max_attempts must be an int or None, got float"),
        ({"delay_seconds": timedelta(1)}, "delay_seconds must be a number of seconds, got timedelta"),
        (
            {"delay_seconds": 1, "retry_on": "ValueError"},
            "retry_on must be an exception class or a tuple of them, got str",
        ),
        ({"delay_seconds": 1, "retry_on": (ValueError, 1)}, "retry_on must be an exception class .*, got int"),
        ({"delay_seconds": 1, "give_up_on": int}, "give_up_on must be an exception class .*, got type"),
        ({"delay_seconds": 1, "give_up_on": ValueError()}, "give_up_on must be an exception class .*, got ValueError"),
    ],
)
def test_an_option_of_another_type_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(WrongType, match=message):
        ConstantRetry(**options)


@pytest.mark.parametrize("strategy", [NoRetry(), ConstantRetry(delay_seconds=1), ExponentialRetry()], ids=repr)
def test_our_strategies_are_strategies(strategy: object) -> None:
    assert isinstance(strategy, RetryStrategy)
