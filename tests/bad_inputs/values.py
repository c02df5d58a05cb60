"""Bodies and times that nobody should pass, and how they are made."""

from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from typing import Any
from uuid import UUID

ONE = UUID("0197a3c0-0000-7000-8000-000000000001")
NAIVE = datetime(2031, 7, 1, 12, 30)  # noqa: DTZ001  the mistake under test
BEFORE_TIME = datetime.min.replace(tzinfo=timezone(timedelta(hours=1)))
AFTER_TIME = datetime.max.replace(tzinfo=timezone(timedelta(hours=-1)))


@dataclass(frozen=True)
class Made:
    """A value that is made for each use: it is used up, it warns if it is never awaited, or it is large."""

    make: Callable[[], Any]


class Opaque:
    """No data."""


class Refusing:
    """Looks like a model, and cannot be written as JSON."""

    def model_dump_json(self) -> str:
        raise RuntimeError("line 1\nline 2")


class Unshowable:
    """Raises from `repr`, too."""

    def __repr__(self) -> str:
        raise RuntimeError("no repr")


def circular() -> list[Any]:
    body: list[Any] = []
    body.append(body)
    return body


def nested(levels: int) -> list[Any]:
    body: list[Any] = []
    for _ in range(levels):
        body = [body]
    return body


def numbers() -> Iterator[int]:
    yield 1


async def stream() -> AsyncIterator[int]:
    yield 1


async def load() -> int:
    return 1


class NoMethod:
    """No retry strategy."""


class NotCallable:
    """Has what a retry strategy has, and it is no method."""

    get_next_attempt_delay = 5


class Waiting:
    """Would answer with a coroutine."""

    async def get_next_attempt_delay(self, **_: object) -> float | None:
        return 1.0


def yielding(body: int) -> Iterator[int]:
    yield body


async def streaming(body: int) -> AsyncIterator[int]:
    yield body


async def observe(event: object) -> None: ...
