"""What a bad input is, and what is said of it."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from inspect import iscoroutine
from typing import Any

from outbox_core.errors import OutboxError
from tests.bad_inputs.values import Made


@dataclass(frozen=True)
class Bad:
    """Arguments of a publish that is refused. *message* is all that the error says; *group*: see `groups`, 0 for none."""

    group: int
    error: type[OutboxError]
    message: str
    given: dict[str, Any]

    @contextmanager
    def arguments(self) -> Iterator[tuple[Any, dict[str, Any]]]:
        """The body and the others, for any of the publishes, freshly made."""
        given = {name: value.make() if isinstance(value, Made) else value for name, value in self.given.items()}
        body = given.pop("body", 1)
        try:
            yield body, {"queue": "orders", **given}
        finally:
            if iscoroutine(body):
                body.close()

    @property
    def said(self) -> tuple[type[OutboxError], str]:
        return self.error, self.message

    @property
    def fits_a_batch(self) -> bool:
        return self.given.keys().isdisjoint({"message_id", "timer_id"})


def bad(group: int, error: type[OutboxError], message: str, **given: Any) -> Bad:
    return Bad(group, error, message, given)


@dataclass(frozen=True)
class BadCall:
    """A call, with everything that it needs, that is refused where it is written."""

    group: int
    error: type[OutboxError]
    message: str
    call: Callable[..., Any]


def told(error: OutboxError | None) -> tuple[type[OutboxError], str] | None:
    """What was raised, to compare with `Bad.said`."""
    return None if error is None else (type(error), str(error))


def name_of(case: Bad | BadCall) -> str:
    """For the ids of parametrized tests."""
    return case.message[:60]
