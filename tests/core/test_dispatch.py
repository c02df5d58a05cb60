"""From what a handler did to what becomes of its message."""

from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

import pytest

from outbox_core.dispatch import MAX_ERROR_CHARACTERS, Silence, decide, refuse, render
from outbox_core.errors import Undecodable
from outbox_core.options import ConsumerOptions
from outbox_core.outcome import Ack, DeadLetter, Nack, Outcome, Reject, Release, Retry, Snooze, Vote
from outbox_core.retry import MAX_DELAY_SECONDS, ConstantRetry, NoRetry
from tests.core.deliveries import NOON, delivery

RETRYING = ConsumerOptions(queues=("orders",), retry_strategy=ConstantRetry(delay_seconds=5))
GIVING_UP = ConsumerOptions(queues=("orders",), retry_strategy=NoRetry())
ERROR = ValueError("no")
GARBLED = Undecodable("bad")


@pytest.mark.parametrize(
    ("vote", "error", "silence", "retrying", "giving_up"),
    [
        (None, None, "ack", Ack(), Ack()),
        (None, None, "retry", Retry(5), DeadLetter("retry_terminal")),
        (None, ERROR, "ack", Retry(5), DeadLetter("retry_terminal", "ValueError: no")),
        (None, ERROR, "retry", Retry(5), DeadLetter("retry_terminal", "ValueError: no")),
        (Ack(), None, "ack", Ack(), Ack()),
        (Ack(), None, "retry", Ack(), Ack()),
        (Ack(), ERROR, "ack", *[DeadLetter("rejected", "ValueError: no")] * 2),
        (Reject(), None, "ack", *[DeadLetter("rejected")] * 2),
        (Reject(), None, "retry", *[DeadLetter("rejected")] * 2),
        (Reject(), ERROR, "ack", *[DeadLetter("rejected", "ValueError: no")] * 2),
        (Nack(), None, "ack", Retry(5), DeadLetter("retry_terminal")),
        (Nack(), ERROR, "ack", Retry(5), DeadLetter("retry_terminal", "ValueError: no")),
        (Nack(0.0), None, "ack", Retry(0), DeadLetter("retry_terminal")),
        (Nack(60.0), ERROR, "ack", Retry(60), DeadLetter("retry_terminal", "ValueError: no")),
        (Snooze(60.0), None, "ack", *[Retry(60, failed=False)] * 2),
        (Snooze(0.0), None, "retry", *[Retry(0, failed=False)] * 2),
        (Snooze(60.0), ERROR, "ack", *[Retry(60, failed=False)] * 2),
        (None, GARBLED, "ack", *[DeadLetter("undecodable", "Undecodable: bad")] * 2),
        (Ack(), GARBLED, "ack", *[DeadLetter("undecodable", "Undecodable: bad")] * 2),
        (Nack(1.0), GARBLED, "retry", *[DeadLetter("undecodable", "Undecodable: bad")] * 2),
    ],
)
def test_vote_error_and_silence_make_an_outcome(
    vote: Vote | None, error: BaseException | None, silence: Silence, retrying: Outcome, giving_up: Outcome
) -> None:
    message = delivery()
    if vote is not None:
        message.cast(vote)

    assert decide(message, error, RETRYING, seconds=0.1, silence=silence) == retrying
    assert decide(message, error, GIVING_UP, seconds=0.1, silence=silence) == giving_up


def test_the_first_vote_stands() -> None:
    message = delivery()

    assert message.cast(Reject()) is True
    assert message.cast(Ack()) is False

    assert decide(message, None, RETRYING, seconds=0.1) == DeadLetter("rejected")


def test_an_undecodable_message_does_not_take_its_batch_with_it() -> None:
    guilty, innocent = delivery(1), delivery(2)
    error = Undecodable("bad", message_ids=[UUID(int=1)])

    assert decide(guilty, error, RETRYING, seconds=0.1) == DeadLetter("undecodable", "Undecodable: bad")
    assert decide(innocent, error, RETRYING, seconds=0.1) == Release()


class Spy:
    """A strategy that remembers what it was asked."""

    def __init__(self, answer: Any = 1.0) -> None:
        self.asked: dict[str, Any] = {}
        self._answer = answer

    def get_next_attempt_delay(
        self,
        *,
        first_attempt_at: datetime,
        last_attempt_at: datetime,
        attempts_count: int,
        exception: BaseException | None = None,
    ) -> Any:
        self.asked = {
            "first_attempt_at": first_attempt_at,
            "last_attempt_at": last_attempt_at,
            "attempts_count": attempts_count,
            "exception": exception,
        }
        return self._answer


def asking(strategy: Spy) -> ConsumerOptions:
    return ConsumerOptions(queues=("orders",), retry_strategy=strategy)


def test_a_first_failure_is_attempt_one_and_first_attempt_at_once() -> None:
    spy = Spy()

    decide(delivery(), ERROR, asking(spy), seconds=2.5)

    ended = NOON + timedelta(seconds=2.5)
    assert spy.asked == {
        "first_attempt_at": ended,
        "last_attempt_at": ended,
        "attempts_count": 1,
        "exception": ERROR,
    }


def test_a_later_failure_tells_of_the_first() -> None:
    spy = Spy()
    first = NOON - timedelta(minutes=5)

    decide(delivery(attempts=3, first_attempt=first.timestamp()), None, asking(spy), seconds=0, silence="retry")

    assert spy.asked == {
        "first_attempt_at": first,
        "last_attempt_at": NOON,
        "attempts_count": 4,
        "exception": None,
    }


@pytest.mark.parametrize(
    ("answer", "seconds"),
    [(3, 3.0), (0, 0.0), (-5, 0.0), (float("inf"), MAX_DELAY_SECONDS), (1e300, MAX_DELAY_SECONDS)],
)
def test_a_strategys_answer_is_kept_within_what_a_database_can_add(answer: float, seconds: float) -> None:
    assert decide(delivery(), ERROR, asking(Spy(answer)), seconds=0) == Retry(seconds)


@pytest.mark.parametrize("answer", ["soon", float("nan"), timedelta(1)], ids=repr)
def test_an_answer_that_is_no_number_is_the_strategys_failure(answer: object) -> None:
    options = asking(Spy(answer))

    with pytest.raises((TypeError, ValueError)):
        decide(delivery(), ERROR, options, seconds=0)


@pytest.mark.parametrize(
    ("deliveries", "limit", "refused"),
    [(0, 1, False), (1, 1, True), (19, 20, False), (20, 20, True), (21, 20, True), (1_000, None, False)],
)
def test_a_message_is_refused_once_it_was_delivered_too_often(
    deliveries: int, limit: int | None, refused: bool
) -> None:
    outcome = refuse(delivery(deliveries=deliveries), ConsumerOptions(queues=("orders",), max_deliveries=limit))

    assert (outcome is not None) is refused


def test_a_refusal_says_how_often() -> None:
    outcome = refuse(delivery(deliveries=3), ConsumerOptions(queues=("orders",), max_deliveries=3))

    assert isinstance(outcome, DeadLetter)
    assert outcome.reason == "max_deliveries"
    assert "3 times" in str(outcome.error)


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (ValueError("no"), "ValueError: no"),
        (ValueError(), "ValueError: "),
        (KeyError("key"), "KeyError: 'key'"),
        (ValueError("a\x00b"), "ValueError: a\\x00b"),
        (ValueError("a\ud800b"), "ValueError: a\\ud800b"),
        (ValueError("über 🚲"), "ValueError: über 🚲"),
        (ValueError("x" * 20_000), "ValueError: " + "x" * (MAX_ERROR_CHARACTERS - 12) + "…"),
        (UnicodeError("line 1\nline 2"), "UnicodeError: line 1\\nline 2"),
    ],
    ids=["plain", "empty", "key", "nul", "surrogate", "unicode", "long", "lines"],
)
def test_an_error_is_rendered_for_people_and_databases(error: BaseException, text: str) -> None:
    assert render(error) == text


def test_an_error_that_cannot_be_rendered_is_still_named() -> None:
    class Unprintable(Exception):
        def __str__(self) -> str:
            raise ZeroDivisionError

    assert render(Unprintable()).endswith("Unprintable, which cannot be shown")
