"""What a command says when it ends: 0, a number that a script can act on, and one line for whoever typed it.

The numbers above 63 are those of sysexits.h.
"""

from enum import IntEnum

from outbox_core.errors import (
    DatabaseUnavailable,
    InvalidMessage,
    InvalidName,
    MissingTable,
    NoPermission,
    OptionError,
    OutboxError,
    SchemaMismatch,
    UnsupportedDatabase,
    WrongType,
)
from outbox_core.watchdog import STUCK_EXIT_CODE


class Exit(IntEnum):
    """What a command says when it ends; a worker's second signal adds 128 to its number instead."""

    CLEAN = 0
    FAILED = 1
    USAGE = 2
    ABANDONED = 3  # handlers were cut when graceful_timeout had passed; their messages are delivered again
    UNAVAILABLE = 69  # EX_UNAVAILABLE: the database does not answer
    STUCK = STUCK_EXIT_CODE  # EX_SOFTWARE: the event loop was blocked for stuck_timeout
    NO_PERMISSION = 77  # EX_NOPERM: the role lacks a privilege
    MISFIT = 78  # EX_CONFIG: a table is missing, or not the one that this version works with


class Refused(OutboxError):
    """What ends a command with one line and *code*."""

    def __init__(self, text: str, code: Exit = Exit.USAGE) -> None:
        self.code = code
        super().__init__(text)


def exit_of(error: OutboxError) -> Exit:
    """How a command ends that raised *error*."""
    match error:
        case Refused():
            return error.code
        case DatabaseUnavailable():
            return Exit.UNAVAILABLE
        case NoPermission():
            return Exit.NO_PERMISSION
        case SchemaMismatch() | MissingTable():
            return Exit.MISFIT
        case OptionError() | WrongType() | InvalidName() | InvalidMessage() | UnsupportedDatabase():
            return Exit.USAGE
        case _:
            return Exit.FAILED
