"""What is refused where it is written, without any database: tables, brokers, subscribers, publishers, retries."""

from datetime import timedelta
from math import inf, nan

from sqlalchemy import MetaData, Table, create_engine
from sqlalchemy.ext.asyncio import create_async_engine

from outbox_core.errors import InvalidHandler, InvalidMessage, InvalidName, OptionError, UnknownOption, WrongType
from outbox_sqlalchemy import (
    ConstantRetry,
    ExponentialRetry,
    LinearRetry,
    OutboxBroker,
    OutboxRouter,
    make_outbox_table,
    make_outbox_tables,
)
from tests.bad_inputs.catalogue import BadCall
from tests.bad_inputs.values import NoMethod, NotCallable, Waiting, observe, streaming, yielding


def two_tables_of_one_name() -> tuple[Table, Table]:
    metadata = MetaData()
    return make_outbox_table(metadata), make_outbox_table(metadata)


def one_table_for_both() -> OutboxBroker:
    table = make_outbox_table(MetaData())
    return OutboxBroker(outbox_table=table, dlq_table=table)


CALLS: tuple[BadCall, ...] = (
    # Tables
    BadCall(
        48,
        InvalidName,
        (
            "outbox table must be letters, digits and underscores, not starting with a "
            "digit, got 'x\"; DROP TABLE y; --'"
        ),
        lambda: make_outbox_table(MetaData(), 'x"; DROP TABLE y; --'),
    ),
    BadCall(
        48,
        InvalidName,
        ("outbox table must be letters, digits and underscores, not starting with a digit, got ''"),
        lambda: make_outbox_table(MetaData(), ""),
    ),
    BadCall(
        48,
        InvalidName,
        ("outbox table must be letters, digits and underscores, not starting with a digit, got 'out\\x00box'"),
        lambda: make_outbox_table(MetaData(), "out\x00box"),
    ),
    BadCall(
        48,
        InvalidName,
        ("outbox table must be letters, digits and underscores, not starting with a digit, got 'outbox\\n'"),
        lambda: make_outbox_table(MetaData(), "outbox\n"),
    ),
    BadCall(
        48,
        InvalidName,
        ("outbox table must be letters, digits and underscores, not starting with a digit, got 'out box'"),
        lambda: make_outbox_table(MetaData(), "out box"),
    ),
    BadCall(
        48,
        InvalidName,
        ("outbox table must be letters, digits and underscores, not starting with a digit, got '1outbox'"),
        lambda: make_outbox_table(MetaData(), "1outbox"),
    ),
    BadCall(
        48,
        InvalidName,
        ("outbox table must be letters, digits and underscores, not starting with a digit, got 'käse'"),
        lambda: make_outbox_table(MetaData(), "käse"),
    ),
    BadCall(48, WrongType, "outbox table must be a str, got int", lambda: make_outbox_table(MetaData(), 7)),
    BadCall(48, WrongType, "outbox table must be a str, got NoneType", lambda: make_outbox_table(MetaData(), None)),
    BadCall(
        48,
        InvalidName,
        ("schema must be letters, digits and underscores, not starting with a digit, got 'a b'"),
        lambda: make_outbox_table(MetaData(), schema="a b"),
    ),
    BadCall(
        48,
        InvalidName,
        ("schema must be letters, digits and underscores, not starting with a digit, got 'a b'"),
        lambda: make_outbox_table(MetaData(schema="a b")),
    ),
    BadCall(48, WrongType, "metadata must be a MetaData, got str", lambda: make_outbox_table("metadata")),
    BadCall(
        49,
        InvalidName,
        (
            "outbox table must be letters, digits and underscores, not starting with a "
            "digit, got 'app.outbox'; pass schema=\"…\" for a table in a schema"
        ),
        lambda: make_outbox_table(MetaData(), "app.outbox"),
    ),
    BadCall(
        50,
        InvalidName,
        (
            "outbox table must be at most 63 characters, got 64: "
            "'xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx'"
        ),
        lambda: make_outbox_table(MetaData(), "x" * 64),
    ),
    BadCall(
        50,
        InvalidName,
        (
            "outbox table must be at most 63 characters, got 1000000: "
            "'xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx'…"
        ),
        lambda: make_outbox_table(MetaData(), "x" * 1_000_000),
    ),
    BadCall(
        50,
        InvalidName,
        (
            "dead-letter table must be at most 63 characters, got 64: "
            "'xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx_dlq'"
        ),
        lambda: make_outbox_tables(MetaData(), "x" * 60),
    ),
    BadCall(
        51,
        InvalidName,
        ("outbox table 'outbox' is on this metadata already; use the Table that is there, or another name"),
        lambda: two_tables_of_one_name(),
    ),
    BadCall(
        51,
        InvalidName,
        "dead-letter table must be another table than the outbox table, got 'outbox' for both",
        lambda: one_table_for_both(),
    ),
    BadCall(
        51,
        OptionError,
        "dlq_table must be made by make_dlq_table, got 'graves', which has no failed_at",
        lambda: OutboxBroker(dlq_table=make_outbox_table(MetaData(), "graves")),
    ),
    BadCall(
        52,
        WrongType,
        ("outbox_table must be a Table made by make_outbox_table, got str; see make_outbox_tables"),
        lambda: OutboxBroker(outbox_table="outbox"),
    ),
    BadCall(
        52,
        WrongType,
        "dlq_table must be a Table made by make_dlq_table, got str",
        lambda: OutboxBroker(dlq_table="outbox_dlq"),
    ),
    BadCall(
        52,
        WrongType,
        ('engine must be an AsyncEngine, got str; use create_async_engine("postgresql+asyncpg://…") for it'),
        lambda: OutboxBroker("postgresql://127.0.0.1/shop"),
    ),
    BadCall(
        52,
        WrongType,
        ('engine must be an AsyncEngine, got int; use create_async_engine("postgresql+asyncpg://…") for it'),
        lambda: OutboxBroker(7),
    ),
    BadCall(
        53,
        WrongType,
        ('engine must be an AsyncEngine, got Engine; use create_async_engine("postgresql+asyncpg://…") for it'),
        lambda: OutboxBroker(create_engine("sqlite://")),
    ),
    BadCall(
        0, WrongType, "archive must be True or False, got str", lambda: make_outbox_tables(MetaData(), archive="yes")
    ),
    # Brokers
    BadCall(55, OptionError, "max_workers must be between 1 and 1,000, got 0", lambda: OutboxBroker(max_workers=0)),
    BadCall(55, WrongType, "max_workers must be an int, got str", lambda: OutboxBroker(max_workers="4")),
    BadCall(
        56,
        OptionError,
        "max_workers must be between 1 and 1,000, got 1,000,000",
        lambda: OutboxBroker(max_workers=10**6),
    ),
    BadCall(
        66,
        OptionError,
        "graceful_timeout must be between 0 and 86400 seconds, got -1",
        lambda: OutboxBroker(graceful_timeout=-1),
    ),
    BadCall(
        66,
        OptionError,
        "graceful_timeout must be between 0 and 86400 seconds, got nan",
        lambda: OutboxBroker(graceful_timeout=nan),
    ),
    BadCall(
        66,
        OptionError,
        "graceful_timeout must be between 0 and 86400 seconds, got inf",
        lambda: OutboxBroker(graceful_timeout=inf),
    ),
    BadCall(
        66,
        OptionError,
        "graceful_timeout must be between 0 and 86400 seconds, got an int of 1,329 bits",
        lambda: OutboxBroker(graceful_timeout=10**400),
    ),
    BadCall(
        66,
        WrongType,
        "graceful_timeout must be a number of seconds, got str",
        lambda: OutboxBroker(graceful_timeout="15"),
    ),
    BadCall(
        66,
        WrongType,
        "graceful_timeout must be a number of seconds, got bool",
        lambda: OutboxBroker(graceful_timeout=True),
    ),
    BadCall(
        34,
        OptionError,
        "max_payload_bytes must be between 1 and 268,435,456, got 0",
        lambda: OutboxBroker(max_payload_bytes=0),
    ),
    BadCall(
        34,
        OptionError,
        "max_payload_bytes must be between 1 and 268,435,456, got 1099511627776",
        lambda: OutboxBroker(max_payload_bytes=2**40),
    ),
    BadCall(34, WrongType, "max_payload_bytes must be an int, got float", lambda: OutboxBroker(max_payload_bytes=1.5)),
    BadCall(
        34, WrongType, "max_payload_bytes must be an int, got NoneType", lambda: OutboxBroker(max_payload_bytes=None)
    ),
    BadCall(
        0,
        OptionError,
        "require_transaction must be 'ignore', 'warn' or 'error', got 'always'",
        lambda: OutboxBroker(require_transaction="always"),
    ),
    BadCall(
        0,
        OptionError,
        "require_transaction must be 'ignore', 'warn' or 'error', got ['error']",
        lambda: OutboxBroker(require_transaction=["error"]),
    ),
    BadCall(
        0,
        InvalidMessage,
        "worker_name must not contain control characters, got U+0000 at 1 in 'w\\x00'",
        lambda: OutboxBroker(worker_name="w\x00"),
    ),
    BadCall(
        0,
        InvalidMessage,
        ("worker_name must be at most 255 characters, got 256: 'wwwwwwwwwwwwwwwwwwwwwwwwwwwwwwww…'"),
        lambda: OutboxBroker(worker_name="w" * 256),
    ),
    BadCall(0, WrongType, "worker_name must be a str, got int", lambda: OutboxBroker(worker_name=7)),
    BadCall(
        0,
        WrongType,
        "observers must be a list of functions, got builtin_function_or_method",
        lambda: OutboxBroker(observers=print),
    ),
    BadCall(
        0,
        WrongType,
        "an observer must be a function that takes an event, not asynchronous, got str",
        lambda: OutboxBroker(observers=["print"]),
    ),
    BadCall(
        0,
        WrongType,
        "an observer must be a function that takes an event, not asynchronous, got function",
        lambda: OutboxBroker(observers=[observe]),
    ),
    BadCall(
        0,
        WrongType,
        ("last_exception_renderer must be a function of an exception, not asynchronous, or None, got str"),
        lambda: OutboxBroker(last_exception_renderer="type"),
    ),
    BadCall(
        0,
        WrongType,
        "ack_policy must be an AckPolicy, got str; such as AckPolicy.REJECT_ON_ERROR",
        lambda: OutboxBroker(ack_policy="ack"),
    ),
    BadCall(
        0,
        WrongType,
        "specification_url must be a str, or a list of them, got int",
        lambda: OutboxBroker(specification_url=7),
    ),
    BadCall(0, WrongType, "notify must be True or False, got str", lambda: OutboxBroker(notify="no")),
    BadCall(0, WrongType, "listen_dsn must be a str, got int", lambda: OutboxBroker(listen_dsn=7)),
    BadCall(
        0,
        OptionError,
        "listen_dsn must be a URL that create_async_engine takes: ArgumentError",
        lambda: OutboxBroker(listen_dsn="nowhere"),
    ),
    BadCall(
        0,
        OptionError,
        "listen_dsn must be a URL that create_async_engine takes: ValueError",
        lambda: OutboxBroker(listen_dsn="postgresql+psycopg://127.0.0.1:port/shop"),
    ),
    BadCall(
        0,
        OptionError,
        "listen_dsn must be a URL that create_async_engine takes: NoSuchModuleError",
        lambda: OutboxBroker(listen_dsn="oracle+none://127.0.0.1/shop"),
    ),
    BadCall(
        0,
        OptionError,
        "listen_dsn must name an asynchronous driver, got sqlite+pysqlite",
        lambda: OutboxBroker(listen_dsn="sqlite://"),
    ),
    BadCall(
        0,
        OptionError,
        "listen_dsn must lead to the engine's database, got postgresql for sqlite",
        lambda: OutboxBroker(
            create_async_engine("sqlite+aiosqlite://"), listen_dsn="postgresql+psycopg://127.0.0.1/shop"
        ),
    ),
    BadCall(0, WrongType, "queues must be a list of queues, got str", lambda: OutboxBroker().serve("orders")),
    BadCall(
        0,
        OptionError,
        "no subscriber of queue 'orders'; there are subscribers of []",
        lambda: OutboxBroker().serve(["orders"]),
    ),
    BadCall(0, WrongType, "prefix must be a str, got int", lambda: OutboxRouter(prefix=7)),
    BadCall(
        0,
        InvalidMessage,
        "prefix must not contain control characters, got U+000A at 1 in 'a\\n'",
        lambda: OutboxRouter(prefix="a\n"),
    ),
    BadCall(
        0,
        WrongType,
        "ack_policy must be an AckPolicy, got str; such as AckPolicy.REJECT_ON_ERROR",
        lambda: OutboxRouter(ack_policy="ack"),
    ),
    # Subscribers
    BadCall(63, OptionError, "subscriber needs at least one queue, got none", lambda: OutboxBroker().subscriber([])),
    BadCall(
        63,
        OptionError,
        "queues must be different from each other, got ['a', 'a']",
        lambda: OutboxBroker().subscriber(["a", "a"]),
    ),
    BadCall(63, InvalidMessage, "queue must not be empty, got ''", lambda: OutboxBroker().subscriber("")),
    BadCall(63, WrongType, "queue must be a str, got int", lambda: OutboxBroker().subscriber(["a", 7])),
    BadCall(
        63, WrongType, "queues must be a str or a list of them, got NoneType", lambda: OutboxBroker().subscriber(None)
    ),
    BadCall(
        63, WrongType, "queues must be a str or a list of them, got bytes", lambda: OutboxBroker().subscriber(b"orders")
    ),
    BadCall(
        63, WrongType, "queues must be a str or a list of them, got dict", lambda: OutboxBroker().subscriber({"a": 1})
    ),
    BadCall(
        55,
        OptionError,
        "max_workers must be between 1 and 1,000, got -1",
        lambda: OutboxBroker().subscriber("orders", max_workers=-1),
    ),
    BadCall(
        55,
        WrongType,
        "max_workers must be an int, got bool",
        lambda: OutboxBroker().subscriber("orders", max_workers=True),
    ),
    BadCall(
        55,
        WrongType,
        "max_workers must be an int, got str",
        lambda: OutboxBroker().subscriber("orders", max_workers="4"),
    ),
    BadCall(
        55,
        WrongType,
        "max_workers must be an int, got float",
        lambda: OutboxBroker().subscriber("orders", max_workers=2.0),
    ),
    BadCall(
        56,
        OptionError,
        "max_workers must be between 1 and 1,000, got 1,000,000",
        lambda: OutboxBroker().subscriber("orders", max_workers=10**6),
    ),
    BadCall(
        56,
        OptionError,
        "max_workers must be between 1 and 1,000, got an int of 1,329 bits",
        lambda: OutboxBroker().subscriber("orders", max_workers=10**400),
    ),
    BadCall(
        56,
        OptionError,
        "max_records must be between 1 and 10,000, got 1,000,000,000",
        lambda: OutboxBroker().subscriber("orders", max_records=10**9),
    ),
    BadCall(
        56,
        OptionError,
        "prefetch must be between 1 and 10,000, got 1,000,000,000",
        lambda: OutboxBroker().subscriber("orders", prefetch=10**9),
    ),
    BadCall(
        56,
        OptionError,
        "max_deliveries must be between 1 and 1,000,000, got 1,000,000,000",
        lambda: OutboxBroker().subscriber("orders", max_deliveries=10**9),
    ),
    BadCall(
        56,
        OptionError,
        "max_deliveries must be between 1 and 1,000,000, got 0",
        lambda: OutboxBroker().subscriber("orders", max_deliveries=0),
    ),
    BadCall(
        56, WrongType, "batch must be True or False, got str", lambda: OutboxBroker().subscriber("orders", batch="yes")
    ),
    BadCall(
        56,
        WrongType,
        "cancel_on_lease_lost must be True or False, got int",
        lambda: OutboxBroker().subscriber("orders", cancel_on_lease_lost=1),
    ),
    BadCall(
        56,
        WrongType,
        "transactional must be True or False, got str",
        lambda: OutboxBroker().subscriber("orders", transactional="yes"),
    ),
    BadCall(
        57,
        OptionError,
        "lease_ttl_seconds must be between 1 and 3600 seconds, got 0",
        lambda: OutboxBroker().subscriber("orders", lease_ttl_seconds=0),
    ),
    BadCall(
        57,
        OptionError,
        "lease_ttl_seconds must be between 1 and 3600 seconds, got nan",
        lambda: OutboxBroker().subscriber("orders", lease_ttl_seconds=nan),
    ),
    BadCall(
        57,
        WrongType,
        "lease_ttl_seconds must be a number of seconds, got str",
        lambda: OutboxBroker().subscriber("orders", lease_ttl_seconds="60"),
    ),
    BadCall(
        57,
        OptionError,
        "lease_ttl_seconds must be between 1 and 3600 seconds, got 1e-09",
        lambda: OutboxBroker().subscriber("orders", lease_ttl_seconds=1e-9),
    ),
    BadCall(
        57,
        WrongType,
        "lease_ttl_seconds must be a number of seconds, got bool",
        lambda: OutboxBroker().subscriber("orders", lease_ttl_seconds=True),
    ),
    BadCall(
        57,
        OptionError,
        "lease_ttl_seconds must be between 1 and 3600 seconds, got an int of 1,329 bits",
        lambda: OutboxBroker().subscriber("orders", lease_ttl_seconds=10**400),
    ),
    BadCall(
        57,
        WrongType,
        "lease_ttl_seconds must be a number of seconds, got timedelta",
        lambda: OutboxBroker().subscriber("orders", lease_ttl_seconds=timedelta(1)),
    ),
    BadCall(
        57,
        OptionError,
        "min_fetch_interval must be between 0.001 and 3600 seconds, got 0",
        lambda: OutboxBroker().subscriber("orders", min_fetch_interval=0),
    ),
    BadCall(
        57,
        OptionError,
        "max_fetch_interval must be between 0.05 and 3600 seconds, got inf",
        lambda: OutboxBroker().subscriber("orders", max_fetch_interval=inf),
    ),
    BadCall(
        57,
        OptionError,
        "max_fetch_interval must be between 2 and 3600 seconds, got 1",
        lambda: OutboxBroker().subscriber("orders", min_fetch_interval=2, max_fetch_interval=1),
    ),
    BadCall(
        57,
        OptionError,
        "handler_timeout must be between 0.001 and 86400 seconds, got 0",
        lambda: OutboxBroker().subscriber("orders", handler_timeout=0),
    ),
    BadCall(
        57,
        WrongType,
        "handler_timeout must be a number of seconds, got str",
        lambda: OutboxBroker().subscriber("orders", handler_timeout="1"),
    ),
    BadCall(
        60,
        WrongType,
        "retry_strategy must be a retry strategy such as ExponentialRetry(), got NoMethod",
        lambda: OutboxBroker().subscriber("orders", retry_strategy=NoMethod()),
    ),
    BadCall(
        60,
        WrongType,
        "NotCallable.get_next_attempt_delay must be a method, not asynchronous, got int",
        lambda: OutboxBroker().subscriber("orders", retry_strategy=NotCallable()),
    ),
    BadCall(
        60,
        WrongType,
        "Waiting.get_next_attempt_delay must be a method, not asynchronous, got method",
        lambda: OutboxBroker().subscriber("orders", retry_strategy=Waiting()),
    ),
    BadCall(
        60,
        WrongType,
        "retry_strategy must be a retry strategy such as ExponentialRetry(), got type",
        lambda: OutboxBroker().subscriber("orders", retry_strategy=ConstantRetry),
    ),
    BadCall(
        60,
        WrongType,
        "retry_strategy must be a retry strategy such as ExponentialRetry(), got int",
        lambda: OutboxBroker().subscriber("orders", retry_strategy=5),
    ),
    BadCall(
        0,
        WrongType,
        "ack_policy must be an AckPolicy, got str; such as AckPolicy.REJECT_ON_ERROR",
        lambda: OutboxBroker().subscriber("orders", ack_policy="ack"),
    ),
    BadCall(
        0,
        UnknownOption,
        "subscriber has no option 'max_worker'; did you mean 'max_workers'?",
        lambda: OutboxBroker().subscriber("orders", max_worker=3),
    ),
    BadCall(
        64, InvalidHandler, "a handler must be a function, got int", lambda: OutboxBroker().subscriber("orders")(7)
    ),
    BadCall(
        64,
        InvalidHandler,
        "a handler must be a function, got str",
        lambda: OutboxBroker().subscriber("orders")("handle"),
    ),
    BadCall(
        64,
        InvalidHandler,
        ("yielding() yields, so that calling it runs none of it; return one reply, or publish"),
        lambda: OutboxBroker().subscriber("orders")(yielding),
    ),
    BadCall(
        64,
        InvalidHandler,
        ("streaming() yields, so that calling it runs none of it; return one reply, or publish"),
        lambda: OutboxBroker().subscriber("orders")(streaming),
    ),
    BadCall(
        64,
        InvalidHandler,
        ("yielding() yields, so that calling it runs none of it; return one reply, or publish"),
        lambda: OutboxBroker().subscriber("orders")(OutboxBroker().publisher("answers")(yielding)),
    ),
    # Publishers
    BadCall(1, InvalidMessage, "queue must not be empty, got ''", lambda: OutboxBroker().publisher("")),
    BadCall(3, WrongType, "queue must be a str, got int", lambda: OutboxBroker().publisher(7)),
    BadCall(
        17,
        WrongType,
        "header 'a' must be a str, got int; convert it with str() or put it into the body",
        lambda: OutboxBroker().publisher("orders", headers={"a": 1}),
    ),
    BadCall(
        24,
        WrongType,
        "headers must be a mapping of str to str, got list",
        lambda: OutboxBroker().publisher("orders", headers=["a"]),
    ),
    BadCall(42, InvalidMessage, "key must not be empty, got ''", lambda: OutboxBroker().publisher("orders", key="")),
    BadCall(
        27,
        InvalidMessage,
        "reply_to must not contain control characters, got U+000A at 1 in 'a\\n'",
        lambda: OutboxBroker().publisher("orders", reply_to="a\n"),
    ),
    BadCall(
        0, WrongType, "priority must be an int, got str", lambda: OutboxBroker().publisher("orders", priority="high")
    ),
    # Retries
    BadCall(
        61,
        OptionError,
        "delay_seconds must be > 0 and at most a century of seconds, got nan",
        lambda: ConstantRetry(delay_seconds=nan),
    ),
    BadCall(
        61,
        OptionError,
        "delay_seconds must be > 0 and at most a century of seconds, got inf",
        lambda: ConstantRetry(delay_seconds=inf),
    ),
    BadCall(
        61,
        OptionError,
        "delay_seconds must be > 0 and at most a century of seconds, got -1",
        lambda: ConstantRetry(delay_seconds=-1),
    ),
    BadCall(
        61, WrongType, "delay_seconds must be a number of seconds, got str", lambda: ConstantRetry(delay_seconds="1")
    ),
    BadCall(
        61,
        OptionError,
        ("delay_seconds must be > 0 and at most a century of seconds, got an int of 1,329 bits"),
        lambda: ConstantRetry(delay_seconds=10**400),
    ),
    BadCall(
        61,
        OptionError,
        "jitter_factor must be between 0 and 2, got 2.1",
        lambda: ConstantRetry(delay_seconds=1, jitter_factor=2.1),
    ),
    BadCall(
        61,
        OptionError,
        "jitter_factor must be between 0 and 2, got nan",
        lambda: ConstantRetry(delay_seconds=1, jitter_factor=nan),
    ),
    BadCall(
        61,
        WrongType,
        "jitter_factor must be a number, got str",
        lambda: ConstantRetry(delay_seconds=1, jitter_factor="0.2"),
    ),
    BadCall(
        61,
        WrongType,
        "jitter_factor must be a number, got bool",
        lambda: ConstantRetry(delay_seconds=1, jitter_factor=True),
    ),
    BadCall(
        61,
        OptionError,
        "max_attempts must be >= 1 or None, got 0",
        lambda: ConstantRetry(delay_seconds=1, max_attempts=0),
    ),
    BadCall(
        61,
        WrongType,
        "max_attempts must be an int or None, got bool",
        lambda: ConstantRetry(delay_seconds=1, max_attempts=True),
    ),
    BadCall(
        61,
        OptionError,
        "max_total_delay_seconds must be > 0 and at most a century of seconds, got 0",
        lambda: ConstantRetry(delay_seconds=1, max_total_delay_seconds=0),
    ),
    BadCall(
        61,
        WrongType,
        "retry_on must be an exception class or a tuple of them, got str",
        lambda: ConstantRetry(delay_seconds=1, retry_on="ValueError"),
    ),
    BadCall(
        61,
        WrongType,
        "give_up_on must be an exception class or a tuple of them, got type",
        lambda: ConstantRetry(delay_seconds=1, give_up_on=int),
    ),
    BadCall(
        61, WrongType, "random must be a random.Random, got str", lambda: ConstantRetry(delay_seconds=1, random="seed")
    ),
    BadCall(
        61,
        OptionError,
        "step_seconds must be >= 0 and at most a century of seconds, got -1",
        lambda: LinearRetry(initial_delay_seconds=1, step_seconds=-1),
    ),
    BadCall(61, OptionError, "multiplier must be >= 1 and finite, got 0.5", lambda: ExponentialRetry(multiplier=0.5)),
    BadCall(61, OptionError, "multiplier must be >= 1 and finite, got nan", lambda: ExponentialRetry(multiplier=nan)),
    BadCall(61, OptionError, "multiplier must be >= 1 and finite, got inf", lambda: ExponentialRetry(multiplier=inf)),
    BadCall(
        61,
        OptionError,
        "multiplier must be >= 1 and finite, got an int of 1,329 bits",
        lambda: ExponentialRetry(multiplier=10**400),
    ),
    BadCall(61, WrongType, "multiplier must be a number, got str", lambda: ExponentialRetry(multiplier="2")),
    BadCall(
        61,
        OptionError,
        "max_delay_seconds must be > 0 and at most a century of seconds, got 0",
        lambda: ExponentialRetry(max_delay_seconds=0),
    ),
)
