"""What `faststream publish` passes, as `OutboxBroker.publish` takes it.

    faststream publish app:app '{"id": 1}' --queue orders --priority 5 --activate_in 10

On a command line everything is text. A program that passes text for a number has a mistake, which `publish` refuses as ever.
"""

import sys
from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from typing import Any, cast

from outbox_core.envelope import PublishOptions
from outbox_core.errors import InvalidMessage
from outbox_core.faststream._compat import COMMAND_LINE


def is_command_line() -> bool:
    """Whether FastStream's command runs this process: nobody else imports it."""
    return COMMAND_LINE in sys.modules


def read_options(options: PublishOptions) -> PublishOptions:
    """*options* with numbers and times for their text; `InvalidMessage` names the option and what it may be."""
    return cast("PublishOptions", {name: _read(name, value) for name, value in options.items()})


def read_flag(name: str, value: object) -> bool:
    """Whether a switch is on; `InvalidMessage` if it was given a value, which would count as on, whatever it says."""
    if not isinstance(value, bool):
        raise InvalidMessage(f"--{name} takes no value, got {value!r}; leave it out for no")
    return value


def _read(name: str, value: object) -> object:
    if name not in _READERS or not isinstance(value, str):
        return value
    read, expected = _READERS[name]
    try:
        return read(value)
    except (ValueError, OverflowError):
        raise InvalidMessage(f"--{name} must be {expected}, got {value!r}") from None


def _seconds(text: str) -> timedelta:
    return timedelta(seconds=float(text))


_READERS: Mapping[str, tuple[Callable[[str], Any], str]] = {
    "priority": (int, "a whole number"),
    "activate_in": (_seconds, "a number of seconds"),
    "activate_at": (datetime.fromisoformat, "a time such as 2031-07-01T12:30:00+00:00"),
}
