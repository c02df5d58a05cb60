"""Kinds of arguments, for argparse and so for Django's commands: each reads text, or says what it must be."""

import re
from argparse import ArgumentTypeError
from collections.abc import Callable, Sequence
from datetime import timedelta
from uuid import UUID

from outbox_core.envelope import check_key, check_queue
from outbox_core.errors import OutboxError

_DURATION = re.compile(r"(\d+(?:\.\d+)?)([smhdw]?)")
_UNITS = {"": "seconds", "s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}


def count(most: int | None = None, *, least: int = 1) -> Callable[[str], int]:
    """A whole number of at least *least*, and at most *most*."""
    wanted = f">= {least:,}" if most is None else f"between {least:,} and {most:,}"

    def parse(text: str) -> int:
        if not text.isdecimal() or int(text) < least or (most is not None and int(text) > most):
            raise ArgumentTypeError(f"must be a number {wanted}, got {text!r}")
        return int(text)

    return parse


def seconds(text: str) -> float:
    """A duration in seconds, 0 included."""
    try:
        given = float(text)
    except ValueError:
        given = -1.0
    if not 0 <= given < float("inf"):
        raise ArgumentTypeError(f"must be a number of seconds >= 0, got {text!r}")
    return given


def patience(text: str) -> float:
    """A duration of at least a second; 0 is never."""
    given = seconds(text)
    if 0 < given < 1:
        raise ArgumentTypeError(f"must be a number of seconds >= 1, or 0 for never, got {text!r}")
    return given


def duration(text: str) -> timedelta:
    """A time span with its unit, such as 30d, 12h, 45m; seconds if it has none."""
    matched = _DURATION.fullmatch(text)
    if matched is None:
        raise ArgumentTypeError(f"must be a time span such as 30d, 12h, 45m or 90 (seconds), got {text!r}")
    number, unit = matched.groups()
    try:
        return timedelta(**{_UNITS[unit]: float(number)})
    except OverflowError:
        raise ArgumentTypeError(f"must be at most {timedelta.max.days:,} days, got {text!r}") from None


def queue_name(text: str) -> str:
    """The name of one queue. No list: where `outbox_worker` would split one, this would look for a queue of that name."""
    if "," in text:
        raise ArgumentTypeError(f"must be one queue, got {text!r}; give others one by one")
    return _checked(check_queue, text)


def key_name(text: str) -> str:
    """The key of messages."""
    return _checked(check_key, text)


def _checked(check: Callable[[object], str], text: str) -> str:
    try:
        return check(text)
    except OutboxError as error:
        raise ArgumentTypeError(str(error)) from None


def row_or_message(text: str) -> int | UUID:
    """A row's id, or a message's."""
    if text.isdecimal() and int(text) < 2**63:
        return int(text)
    try:
        return UUID(text)
    except ValueError:
        raise ArgumentTypeError(f"must be the number of a row or the UUID of a message, got {text!r}") from None


def named_queues(given: Sequence[str] | None) -> list[str] | None:
    """The queues of a repeated option, each of which may have several, with commas; None if it was not given."""
    if given is None:
        return None
    return [name for text in given for name in map(str.strip, text.split(",")) if name]
