"""What the management commands share: their arguments, and how they tell an operator what is wrong."""

import re
from abc import abstractmethod
from argparse import ArgumentTypeError
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from enum import IntEnum
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db import DatabaseError, InterfaceError

from outbox_core.envelope import check_queue
from outbox_core.errors import OutboxError, WrongDatabase
from outbox_core.sql.refusals import first_line
from outbox_core.watchdog import STUCK_EXIT_CODE
from outbox_django.connections import database_settings
from outbox_django.settings import outbox_settings
from outbox_django.store import DirectStore


class Exit(IntEnum):
    """What a command says when it ends; a worker's second signal adds 128 to its number instead."""

    CLEAN = 0
    FAILED = 1
    USAGE = 2
    STUCK = STUCK_EXIT_CODE  # the event loop was blocked for stuck_timeout
    ABANDONED = 3  # handlers were cut when graceful_timeout had passed; their messages are delivered again


_DURATION = re.compile(r"(\d+(?:\.\d+)?)([smhdw]?)")
_UNITS = {"": "seconds", "s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}


class StoreCommand(BaseCommand):
    """A command on the outbox of one database. What goes wrong there is told in one line, `--traceback` aside."""

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--database", metavar="ALIAS", help="the database that has the outbox")

    def handle(self, *args: Any, **options: Any) -> None:
        given = options["database"]
        alias = outbox_settings().database if given is None else check_alias(given)
        with told_in_one_line():
            self.operate(DirectStore(alias), options)

    @abstractmethod
    def operate(self, store: DirectStore, options: dict[str, Any]) -> None:
        """Do it; raises what the store raises."""


@contextmanager
def told_in_one_line() -> Iterator[None]:
    """An error of ours or of the database's ends the command without a traceback."""
    try:
        yield
    except OutboxError as error:
        raise CommandError(str(error), returncode=Exit.FAILED) from error
    except (DatabaseError, InterfaceError) as error:
        raise CommandError(f"the database refused: {first_line(error)}", returncode=Exit.FAILED) from error


def check_alias(alias: str) -> str:
    """*alias* if `settings.DATABASES` has it; otherwise a `CommandError` that lists those it has."""
    try:
        database_settings(alias)
    except WrongDatabase as error:
        raise CommandError(str(error), returncode=Exit.USAGE) from None
    return alias


def named_queues(given: Sequence[str] | None) -> list[str] | None:
    """The queues of a repeated option, each of which may have several, with commas; None if it was not given."""
    if given is None:
        return None
    return [name for text in given for name in map(str.strip, text.split(",")) if name]


# Arguments


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
    try:
        return check_queue(text)
    except OutboxError as error:
        raise ArgumentTypeError(str(error)) from None


def counted(number: int, noun: str) -> str:
    """`1 dead letter`, `1,234 dead letters`."""
    return f"{number:,} {noun}" + ("" if number == 1 else "s")
