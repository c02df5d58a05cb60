"""From what a handler did to what becomes of its message. No I/O, no clock, no framework.

vote | exception | neither  --decide-->  Ack | Retry | DeadLetter
"""

import logging
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from math import isnan
from typing import Literal, TypeAlias

from outbox_core.errors import Undecodable
from outbox_core.message import Delivery
from outbox_core.options import ConsumerOptions
from outbox_core.outcome import ACK, Ack, DeadLetter, Nack, Outcome, Reject, Release, Retry, Snooze
from outbox_core.quoting import one_line
from outbox_core.retry import MAX_DELAY_SECONDS

logger = logging.getLogger("outbox")

Silence: TypeAlias = Literal["ack", "retry"]

MAX_ERROR_CHARACTERS = 8_192
UNDECIDED_DELAY = 60.0  # seconds until a message is tried again whose retry strategy failed


def decide(
    delivery: Delivery,
    error: BaseException | None,
    options: ConsumerOptions,
    *,
    seconds: float,
    silence: Silence = "ack",
) -> Outcome:
    """The outcome of one handler run that took *seconds*.

    *silence* says what a return without a vote means. An ack that is followed by an exception (FastStream's
    `AckPolicy.ACK`) is a dead letter with its reason: a failure is never deleted unseen.
    """
    if error is None and (isinstance(delivery.vote, Ack) or (delivery.vote is None and silence == "ack")):
        return ACK
    outcome = _decide(delivery, error, options, seconds)
    return _for_its_key(outcome, delivery, options) if isinstance(outcome, DeadLetter) else outcome


def _decide(delivery: Delivery, error: BaseException | None, options: ConsumerOptions, seconds: float) -> Outcome:
    if isinstance(error, Undecodable):
        innocent = error.message_ids is not None and delivery.message_id not in error.message_ids
        return Release() if innocent else DeadLetter("undecodable", render(error, options.last_exception_renderer))
    match delivery.vote:
        case Ack() if error is not None:
            return DeadLetter("rejected", render(error, options.last_exception_renderer))
        case Reject():
            return DeadLetter("rejected", None if error is None else render(error, options.last_exception_renderer))
        case Snooze(delay):
            return Retry(delay, failed=False)
        case Nack(delay):
            return _after_failure(delivery, error, options, seconds, delay)
        case _:
            return _after_failure(delivery, error, options, seconds, None)


def decide_anyway(
    delivery: Delivery,
    error: BaseException | None,
    options: ConsumerOptions,
    *,
    seconds: float,
    silence: Silence = "ack",
) -> Outcome:
    """What `decide` says, or a late retry: a user's retry strategy may raise, or answer with what is no delay."""
    try:
        return decide(delivery, error, options, seconds=seconds, silence=silence)
    except Exception:
        logger.exception(
            "the retry strategy of %r failed; message %s is tried again in %g s",
            options.queues,
            delivery.id,
            UNDECIDED_DELAY,
        )
        return Retry(UNDECIDED_DELAY)


def refuse(delivery: Delivery, options: ConsumerOptions) -> Outcome | None:
    """The outcome of a delivery whose handler must not start again, or None to let it start."""
    if options.max_deliveries is None or delivery.deliveries < options.max_deliveries:
        return None
    reason = f"its handler was started {delivery.deliveries} times, which is the limit"
    return _for_its_key(DeadLetter("max_deliveries", reason), delivery, options)


def _for_its_key(dead: DeadLetter, delivery: Delivery, options: ConsumerOptions) -> DeadLetter:
    """What it means for the messages behind it."""
    halts = delivery.key is not None and options.on_dead_letter == "halt"
    return replace(dead, halts=True) if halts else dead


def _after_failure(
    delivery: Delivery, error: BaseException | None, options: ConsumerOptions, seconds: float, chosen: float | None
) -> Outcome:
    last = delivery.claimed_at + timedelta(seconds=seconds)
    delay = options.retry_strategy.get_next_attempt_delay(
        first_attempt_at=delivery.first_attempt_at or last,
        last_attempt_at=last,
        attempts_count=delivery.attempts + 1,
        exception=error,
    )
    if delay is None:
        return DeadLetter("retry_terminal", None if error is None else render(error, options.last_exception_renderer))
    if isnan(delay):
        raise ValueError("a retry strategy must answer with seconds or None, got nan")
    return Retry(min(max(0.0, float(delay)), MAX_DELAY_SECONDS) if chosen is None else chosen)


def render(error: BaseException, renderer: Callable[[BaseException], str] | None = None) -> str:
    """The exception as one line for people, capped; *renderer* may say less of it than its type and its text."""
    name = type(error).__qualname__
    try:
        text = f"{name}: {error}" if renderer is None else str(renderer(error))
    except Exception:  # somebody's __str__, or the renderer
        text = f"{name}, which cannot be shown"
    # Cut first: an exception may carry a whole payload. PostgreSQL's text cannot hold NUL, nor UTF-8 a lone surrogate.
    return one_line(text if len(text) <= MAX_ERROR_CHARACTERS else text[:MAX_ERROR_CHARACTERS] + "…")
