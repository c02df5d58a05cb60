"""What a broker is asked to do, and refuses before it asks its database."""

from datetime import timedelta

from outbox_core.errors import InvalidMessage, OptionError, UnknownOption, WrongType
from tests.bad_inputs.catalogue import BadCall
from tests.bad_inputs.values import ONE

OPERATIONS: tuple[BadCall, ...] = (
    BadCall(45, OptionError, "limit must be >= 1, got -1", lambda broker: broker.fetch_unprocessed(limit=-1)),
    BadCall(45, OptionError, "limit must be >= 1, got 0", lambda broker: broker.redrive(limit=0)),
    BadCall(
        45, OptionError, "limit must be >= 1, got -1", lambda broker: broker.purge_dead_letters(timedelta(1), limit=-1)
    ),
    BadCall(
        45,
        OptionError,
        "limit must be at most 9223372036854775807, got 9223372036854775808",
        lambda broker: broker.redrive(limit=2**63),
    ),
    BadCall(46, WrongType, "limit must be an int, got float", lambda broker: broker.fetch_unprocessed(limit=1.5)),
    BadCall(46, WrongType, "limit must be an int, got bool", lambda broker: broker.redrive(limit=True)),
    BadCall(46, WrongType, "limit must be an int, got str", lambda broker: broker.redrive(limit="10")),
    BadCall(
        47,
        WrongType,
        "timer_id must be a str, got NoneType",
        lambda broker: broker.cancel_timer(queue="orders", timer_id=None),
    ),
    BadCall(
        47,
        InvalidMessage,
        "timer_id must not be empty, got ''",
        lambda broker: broker.cancel_timer(queue="orders", timer_id=""),
    ),
    BadCall(
        47,
        InvalidMessage,
        "timer_id must not contain control characters, got U+000A at 1 in 'a\\n'",
        lambda broker: broker.cancel_timer(queue="orders", timer_id="a\n"),
    ),
    BadCall(
        47,
        InvalidMessage,
        "queue must not be empty, got ''",
        lambda broker: broker.cancel_timer(queue="", timer_id="t"),
    ),
    BadCall(3, WrongType, "queue must be a str, got int", lambda broker: broker.pause(7)),
    BadCall(1, InvalidMessage, "queue must not be empty, got ''", lambda broker: broker.pause("")),
    BadCall(
        5,
        InvalidMessage,
        "queue must not contain control characters, got U+0000 at 1 in 'a\\x00'",
        lambda broker: broker.resume("a\x00"),
    ),
    BadCall(
        5,
        InvalidMessage,
        "queue must not contain control characters, got U+0000 at 1 in 'a\\x00'",
        lambda broker: broker.fetch_unprocessed(queue="a\x00"),
    ),
    BadCall(
        5,
        InvalidMessage,
        "queue must not contain control characters, got U+0000 at 1 in 'a\\x00'",
        lambda broker: broker.redrive(queue="a\x00"),
    ),
    BadCall(
        7,
        InvalidMessage,
        "queue must be valid Unicode, got a lone surrogate at 0",
        lambda broker: broker.purge_dead_letters(timedelta(1), queue="\ud800"),
    ),
    BadCall(
        0, WrongType, "ids must be a list of the ids of dead letters, got str", lambda broker: broker.redrive(ids="12")
    ),
    BadCall(
        0, WrongType, "ids must be a list of the ids of dead letters, got int", lambda broker: broker.redrive(ids=12)
    ),
    BadCall(0, WrongType, "ids must be the ids of dead letters, got str", lambda broker: broker.redrive(ids=["1"])),
    BadCall(0, WrongType, "ids must be the ids of dead letters, got bool", lambda broker: broker.redrive(ids=[True])),
    BadCall(0, WrongType, "ids must be the ids of dead letters, got float", lambda broker: broker.redrive(ids=[1.5])),
    BadCall(
        0,
        OptionError,
        "ids must be between 1 and 9223372036854775807, got 9223372036854775808",
        lambda broker: broker.redrive(ids=[2**63]),
    ),
    BadCall(
        0, OptionError, "ids must be between 1 and 9223372036854775807, got 0", lambda broker: broker.redrive(ids=[0])
    ),
    BadCall(0, WrongType, "reason must be a str, got int", lambda broker: broker.redrive(reason=7)),
    BadCall(
        0,
        InvalidMessage,
        "reason must not contain control characters, got U+0000 at 1 in 'a\\x00'",
        lambda broker: broker.redrive(reason="a\x00"),
    ),
    BadCall(0, WrongType, "older_than must be a timedelta, got int", lambda broker: broker.purge_dead_letters(5)),
    BadCall(
        0,
        OptionError,
        "older_than must be between 0 and 36,525 days, got datetime.timedelta(days=-1)",
        lambda broker: broker.purge_dead_letters(timedelta(days=-1)),
    ),
    BadCall(
        0,
        OptionError,
        (
            "older_than must be between 0 and 36,525 days, got "
            "datetime.timedelta(days=999999999, seconds=86399, microseconds=999999)"
        ),
        lambda broker: broker.purge_dead_letters(timedelta.max),
    ),
    BadCall(
        0,
        UnknownOption,
        "publish has no option 'prority'; did you mean 'priority'?",
        lambda broker: broker.publish(1, "orders", prority=4),
    ),
    BadCall(
        0,
        OptionError,
        "message_id cannot be shared by a batch; publish these messages one by one",
        lambda broker: broker.publish_batch(1, 2, queue="orders", message_id=ONE),
    ),
    BadCall(
        0,
        OptionError,
        "timer_id cannot be shared by a batch; publish these messages one by one",
        lambda broker: broker.publish_batch(1, 2, queue="orders", timer_id="t"),
    ),
    BadCall(1, InvalidMessage, "queue must not be empty, got ''", lambda broker: broker.publish_batch(queue="")),
    BadCall(
        10,
        WrongType,
        "session must be an AsyncSession or AsyncConnection, or None, got bool",
        lambda broker: broker.publish(1, "orders", session=False),
    ),
    BadCall(
        11,
        WrongType,
        (
            "session must be an AsyncSession or AsyncConnection, got AsyncEngine; pass a "
            "session or connection of it, in your transaction"
        ),
        lambda broker: broker.publish(1, "orders", session=broker.engine),
    ),
    BadCall(
        11,
        WrongType,
        "session must be an AsyncSession or AsyncConnection, or None, got str",
        lambda broker: broker.publish(1, "orders", session="session"),
    ),
    BadCall(
        11,
        WrongType,
        "session must be an AsyncSession or AsyncConnection, or None, got str",
        lambda broker: broker.pause("orders", session="session"),
    ),
    BadCall(
        11,
        WrongType,
        "session must be an AsyncSession or AsyncConnection, or None, got int",
        lambda broker: broker.redrive(session=7),
    ),
)
