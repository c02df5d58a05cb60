"""How long an inbox remembers what it has received, against how long a dead letter can come back.

A message that is redriven after the inbox has forgotten it would be handled again, so an inbox is never purged below that
age. Both times are declared in one place, which is checked when it is declared: the arguments of SQLAlchemy's `Inbox`, the
settings of Django. None is for ever.
"""

from dataclasses import dataclass
from datetime import timedelta

from outbox_core.errors import OptionError, WrongType
from outbox_core.quoting import said


@dataclass(frozen=True, slots=True, kw_only=True)
class Retention:
    """The promise, under the names that the two times have for whoever declares them.

    `inbox`: how long a received message is remembered. `dead_letters`: how long a message can come back after it failed:
    the retention of the dead letters where it comes from. Raises `WrongType` or `OptionError`.
    """

    inbox: timedelta | None
    dead_letters: timedelta | None
    inbox_name: str = "retention"
    dead_letters_name: str = "dead_letter_retention"

    def __post_init__(self) -> None:
        for name, value in ((self.inbox_name, self.inbox), (self.dead_letters_name, self.dead_letters)):
            if value is not None:
                check_span(name, value)
        if self.inbox is not None:
            self._check(self.inbox_name, self.inbox)

    def age(self, older_than: timedelta | None) -> timedelta:
        """The age at which a purge may forget: *older_than*, or with None the retention. Raises like the constructor."""
        if older_than is None:
            if self.inbox is None:
                raise OptionError(
                    f"this inbox is kept for ever; set {self.inbox_name} and {self.dead_letters_name}, or say how old"
                )
            return self.inbox
        check_span("older_than", older_than)
        self._check("older_than", older_than)
        return older_than

    def _check(self, name: str, kept: timedelta) -> None:
        if self.dead_letters is None:
            raise OptionError(
                f"{name} is {said(kept)}, but {self.dead_letters_name} is not set, so a dead letter could be redriven "
                f"after that and be handled again; set {self.dead_letters_name} to at most {said(kept)}, and delete dead "
                "letters at that age"
            )
        if kept < self.dead_letters:
            raise OptionError(
                f"{name} must not be shorter than {self.dead_letters_name}, got {said(kept)} and "
                f"{said(self.dead_letters)}: a dead letter that is redriven in between would be handled again; keep "
                f"the inbox for at least {said(self.dead_letters)}, or dead letters for at most {said(kept)}"
            )


def check_span(name: str, value: object) -> None:
    """Raises `WrongType` or `OptionError` for what is no length of time."""
    if not isinstance(value, timedelta):
        raise WrongType(name, "a timedelta", value, "pass timedelta(days=…)")
    if value < timedelta(0):
        raise OptionError(f"{name} must not be negative, got {value!r}")
