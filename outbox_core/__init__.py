"""The outbox without any framework: one table, its statements, claiming, dispatch and settlement.

Read in this order: schema, message, outcome, store (the port), envelope, dispatch, worker with claimer, slots, pull and
settler.
"""

from outbox_core.errors import (
    CannotEncode,
    CannotPull,
    DatabaseUnavailable,
    InvalidHandler,
    InvalidMessage,
    InvalidName,
    MissingTable,
    NoPermission,
    NoTransaction,
    NotStarted,
    OptionError,
    OutboxError,
    PastRetention,
    PayloadTooLarge,
    SchemaMismatch,
    Undecodable,
    UnknownOption,
    UnsupportedDatabase,
    WrongDatabase,
    WrongType,
)
from outbox_core.retry import ConstantRetry, ExponentialRetry, LinearRetry, NoRetry, RetryStrategy

__all__ = [
    "CannotEncode",
    "CannotPull",
    "ConstantRetry",
    "DatabaseUnavailable",
    "ExponentialRetry",
    "InvalidHandler",
    "InvalidMessage",
    "InvalidName",
    "LinearRetry",
    "MissingTable",
    "NoPermission",
    "NoRetry",
    "NoTransaction",
    "NotStarted",
    "OptionError",
    "OutboxError",
    "PastRetention",
    "PayloadTooLarge",
    "RetryStrategy",
    "SchemaMismatch",
    "Undecodable",
    "UnknownOption",
    "UnsupportedDatabase",
    "WrongDatabase",
    "WrongType",
]
