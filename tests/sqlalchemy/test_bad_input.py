"""Whatever is passed wrongly: which error, what it says, and that nothing was written and nothing was broken."""

import asyncio
import inspect
import math
import shutil
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from fast_depends.pydantic import PydanticSerializer
from sqlalchemy import URL, MetaData, create_engine
from sqlalchemy.dialects import registry
from sqlalchemy.dialects.sqlite.aiosqlite import SQLiteDialect_aiosqlite
from sqlalchemy.dialects.sqlite.pysqlite import SQLiteDialect_pysqlite
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine
from sqlalchemy.orm import Session, scoped_session, sessionmaker
from sqlalchemy.pool import StaticPool

from outbox_core.errors import (
    CannotEncode,
    DatabaseUnavailable,
    InvalidMessage,
    NoTransaction,
    OptionError,
    OutboxError,
    SchemaMismatch,
    UnsupportedDatabase,
    WrongDatabase,
    WrongType,
)
from outbox_core.retry import ConstantRetry
from outbox_sqlalchemy import OutboxBroker, OutboxRouter, make_outbox_table
from tests.databases import execute, with_driver
from tests.places import Place, statements_on, until


@dataclass(frozen=True)
class Bad:
    """A publish that is refused. *message* is all that the error says."""

    error: type[OutboxError]
    message: str
    body: object = 1
    queue: object = "orders"
    options: dict[str, Any] = field(default_factory=dict)


def bad(error: type[OutboxError], message: str, **options: Any) -> Bad:
    body, queue = options.pop("body", 1), options.pop("queue", "orders")
    return Bad(error, message, body, queue, options)


class Opaque:
    def __str__(self) -> str:
        return "opaque"


circular: list[object] = []
circular.append(circular)
NAIVE = datetime(2031, 7, 1, 12, 30)  # noqa: DTZ001  the mistake under test

PUBLISHES = {
    "empty queue": bad(InvalidMessage, "queue must not be empty, got ''", queue=""),
    "blank queue": bad(InvalidMessage, "queue must not be blank, got ' \\t '", queue=" \t "),
    "long queue": bad(InvalidMessage, f"queue must be at most 255 characters, got 256: '{'q' * 32}…'", queue="q" * 256),
    "NUL in queue": bad(
        InvalidMessage,
        "queue must not contain control characters, got U+0000 at 2 in 'or\\x00ders'",
        queue="or\x00ders",
    ),
    "line end in queue": bad(
        InvalidMessage, "queue must not contain control characters, got U+000A at 6 in 'orders\\n'", queue="orders\n"
    ),
    "surrogate in queue": bad(
        InvalidMessage, "queue must be valid Unicode, got a lone surrogate at 1", queue="o\ud800"
    ),
    "int queue": bad(WrongType, "queue must be a str, got int", queue=7),
    "bytes queue": bad(WrongType, "queue must be a str, got bytes", queue=b"orders"),
    "no queue": bad(WrongType, "queue must be a str, got NoneType", queue=None),
    "naive activate_at": bad(
        InvalidMessage,
        "activate_at must be timezone-aware, got datetime.datetime(2031, 7, 1, 12, 30); "
        "pass datetime.now(UTC) + timedelta(…)",
        activate_at=NAIVE,
    ),
    "text activate_at": bad(WrongType, "activate_at must be a datetime, got str", activate_at="2031-07-01"),
    "far activate_at": bad(
        InvalidMessage,
        "activate_at must be at most 3660 days ahead, got datetime.datetime(2999, 1, 1, 0, 0, "
        "tzinfo=datetime.timezone.utc)",
        activate_at=datetime(2999, 1, 1, tzinfo=UTC),
    ),
    "negative activate_in": bad(
        InvalidMessage,
        "activate_in must be between 0 and 3660 days, got datetime.timedelta(days=-1, seconds=86399)",
        activate_in=timedelta(seconds=-1),
    ),
    "number activate_in": bad(
        WrongType, "activate_in must be a timedelta, got int; pass timedelta(seconds=…)", activate_in=5
    ),
    "both schedules": bad(
        InvalidMessage,
        "activate_in and activate_at exclude each other; pass one",
        activate_in=timedelta(1),
        activate_at=datetime(2031, 1, 1, tzinfo=UTC),
    ),
    "object body": bad(
        CannotEncode,
        "cannot encode Opaque: Opaque is not JSON; pass a dict, a dataclass, a pydantic model or bytes",
        body=Opaque(),
    ),
    "object within body": bad(
        CannotEncode,
        "cannot encode dict: Opaque is not JSON; pass a dict, a dataclass, a pydantic model or bytes",
        body={"items": [Opaque()]},
    ),
    "set body": bad(
        CannotEncode, "cannot encode set: a set has no order and would arrive as a list; pass sorted(...)", body={1, 2}
    ),
    "circular body": bad(CannotEncode, "cannot encode list: Circular reference detected", body=circular),
    "tuple keys": bad(
        CannotEncode,
        "cannot encode dict: keys must be str, int, float, bool or None, not tuple",
        body={(1, 2): 3},
    ),
    "surrogate body": bad(CannotEncode, "cannot encode str: not valid Unicode (surrogates not allowed)", body="\ud800"),
    "header value": bad(
        WrongType,
        "header 'attempt' must be a str, got int; convert it with str() or put it into the body",
        headers={"attempt": 1},
    ),
    "header name": bad(WrongType, "header names must be str, got int", headers={1: "one"}),
    "empty header name": bad(InvalidMessage, "header names must be tokens (RFC 9110), got ''", headers={"": "x"}),
    "line end in header name": bad(
        InvalidMessage, "header names must be tokens (RFC 9110), got 'a\\r\\nb'", headers={"a\r\nb": "x"}
    ),
    "line end in header value": bad(
        InvalidMessage,
        "header 'tenant' must not contain control characters, got U+000D at 4 in 'acme\\r\\nadmin: yes'",
        headers={"tenant": "acme\r\nadmin: yes"},
    ),
    "header list": bad(WrongType, "headers must be a mapping of str to str, got list", headers=["tenant"]),
    "many headers": bad(
        InvalidMessage,
        "headers must be at most 64 and 8192 characters in all, got 72 of 816; put large values into the body",
        headers={f"h{number}": "xx" for number in range(70)},
        correlation_id="c",
    ),
    "large headers": bad(
        InvalidMessage,
        "headers must be at most 64 and 8192 characters in all, got 3 of 9063; put large values into the body",
        headers={"h": "x" * 9_000},
        correlation_id="c",
    ),
    "priority out of range": bad(
        InvalidMessage, "priority must be between -32768 and 32767, got 32768", priority=32_768
    ),
    "text priority": bad(WrongType, "priority must be an int, got str", priority="high"),
    "bool priority": bad(WrongType, "priority must be an int, got bool", priority=True),
    "empty key": bad(InvalidMessage, "key must not be empty, got ''", key=""),
    "int key": bad(WrongType, "key must be a str, got int", key=3),
    "empty timer": bad(InvalidMessage, "timer_id must not be empty, got ''", timer_id=""),
    "timer conflict": bad(
        InvalidMessage,
        "timer_conflict must be 'ignore', 'extend' or 'replace', got 'keep'",
        timer_id="t",
        timer_conflict="keep",
    ),
    "message id": bad(InvalidMessage, "message_id must be a UUID, got 'seven'", message_id="seven"),
    "int message id": bad(WrongType, "message_id must be a UUID, got int", message_id=7),
    "correlation id": bad(
        InvalidMessage,
        "correlation_id must not contain control characters, got U+000A at 1 in 'c\\n'",
        correlation_id="c\n",
    ),
    "reply_to": bad(WrongType, "reply_to must be a str, got int", reply_to=7),
}
BUILT_IN: dict[type[OutboxError], type[Exception]] = {
    InvalidMessage: ValueError,
    CannotEncode: ValueError,
    OptionError: ValueError,
    WrongType: TypeError,
    WrongDatabase: ValueError,
    UnsupportedDatabase: ValueError,
    NoTransaction: RuntimeError,
    DatabaseUnavailable: ConnectionError,
    SchemaMismatch: LookupError,
}


@pytest.mark.parametrize("case", PUBLISHES.values(), ids=PUBLISHES.keys())
async def test_a_refused_publish_sends_nothing_and_leaves_the_transaction_usable(either: Place, case: Bad) -> None:
    broker = either.broker()
    async with AsyncSession(either.engine) as session, session.begin():
        await broker.publish("before", "orders", session=session)
        with statements_on(either.engine.sync_engine) as sent, pytest.raises(case.error) as caught:
            await broker.publish(case.body, case.queue, session=session, **case.options)  # type: ignore[arg-type]
        await broker.publish("after", "orders", session=session)

    assert str(caught.value) == case.message
    assert isinstance(caught.value, BUILT_IN[case.error])
    assert isinstance(caught.value, OutboxError)
    assert sent == []
    assert [row.payload for row in either.rows()] == [b"before", b"after"]


@pytest.mark.parametrize("case", PUBLISHES.values(), ids=PUBLISHES.keys())
def test_a_sync_publish_is_refused_in_the_same_words(sync_place: Place, case: Bad) -> None:
    broker = sync_place.broker()
    with Session(sync_place.sync_engine) as session, session.begin():
        with pytest.raises(case.error) as caught:
            broker.publish_sync(case.body, case.queue, session=session, **case.options)  # type: ignore[arg-type]
        broker.publish_sync("after", "orders", session=session)

    assert str(caught.value) == case.message
    assert [row.payload for row in sync_place.rows()] == [b"after"]


async def test_nan_is_refused(either: Place) -> None:
    with pytest.raises(CannotEncode, match=r"^cannot encode dict: Out of range float values are not JSON compliant"):
        await either.broker().publish({"price": math.nan}, "orders")

    assert either.rows() == []


async def test_a_body_nested_too_deeply_is_refused(either: Place) -> None:
    body: list[object] = []
    for _ in range(100_000):
        body = [body]

    with pytest.raises(CannotEncode) as caught:
        await either.broker().publish(body, "orders")

    assert str(caught.value) == "cannot encode list: it is nested too deeply"


async def test_a_forgotten_await_is_named(either: Place) -> None:
    async def load() -> int:
        return 1

    body = load()
    with pytest.raises(CannotEncode) as caught:
        await either.broker().publish(body, "orders")
    body.close()

    assert str(caught.value) == "cannot encode coroutine: coroutine was never awaited; did you forget await?"
    assert inspect.getcoroutinestate(body) == "CORO_CLOSED"


async def test_a_users_serializer_that_cannot_encode_is_refused_alike(either: Place) -> None:
    broker = either.broker(serializer=PydanticSerializer())
    async with AsyncSession(either.engine) as session, session.begin():
        with pytest.raises(CannotEncode, match=r"^cannot encode Opaque: "):
            await broker.publish(Opaque(), "orders", session=session)
        await broker.publish("after", "orders", session=session)

    assert [row.payload for row in either.rows()] == [b"after"]


@pytest.mark.parametrize("option", ["message_id", "timer_id"])
async def test_a_batch_cannot_share_an_identity(either: Place, option: str) -> None:
    value = "0190163d-8694-739b-aea5-966c26f8ad91"

    with pytest.raises(OptionError) as caught:
        await either.broker().publish_batch(1, 2, queue="orders", **{option: value})  # type: ignore[misc]

    assert str(caught.value) == f"{option} cannot be shared by a batch; publish these messages one by one"
    assert either.rows() == []


async def test_an_empty_batch_for_a_bad_queue_is_refused(either: Place) -> None:
    with pytest.raises(InvalidMessage, match=r"^queue must not be empty, got ''$"):
        await either.broker().publish_batch(queue="")


# Sessions


async def test_a_closed_connection_is_refused(place: Place) -> None:
    async with place.engine.connect() as connection:
        pass

    with pytest.raises(NoTransaction) as caught:
        await place.broker().publish(1, "orders", session=connection)

    assert str(caught.value) == ("the connection is closed, so nothing was published; publish before you close it")
    assert place.rows() == []


async def test_a_connection_that_was_never_opened_is_refused(place: Place) -> None:
    with pytest.raises(NoTransaction) as caught:
        await place.broker().publish(1, "orders", session=place.engine.connect())

    assert str(caught.value) == (
        'the connection was never opened; publish inside "async with engine.begin() as connection"'
    )


def test_a_closed_sync_connection_is_refused(sync_place: Place) -> None:
    with sync_place.sync_engine.connect() as connection:
        pass

    with pytest.raises(NoTransaction, match=r"^the connection is closed, so nothing was published"):
        sync_place.broker().publish_sync(1, "orders", session=connection)


async def test_a_session_whose_transaction_has_ended_in_its_block_is_refused(place: Place) -> None:
    async with AsyncSession(place.engine) as session, session.begin():
        await session.commit()
        with pytest.raises(NoTransaction, match=r"^the session cannot be used, so nothing was published: "):
            await place.broker().publish(1, "orders", session=session)

    assert place.rows() == []


async def test_a_session_without_an_engine_is_refused(either: Place) -> None:
    async with AsyncSession() as session:
        with pytest.raises(NoTransaction, match=r"^the session is bound to no engine: "):
            await either.broker().publish(1, "orders", session=session)


@pytest.mark.parametrize("where", ["session", "connection", "engine"])
async def test_autocommit_is_no_transaction(postgres: Place, where: str) -> None:
    engine = postgres.another_engine(isolation_level="AUTOCOMMIT") if where == "engine" else postgres.engine
    broker = OutboxBroker(engine, outbox_table=postgres.tables)
    session = AsyncSession(engine)
    if where == "session":
        await session.connection(execution_options={"isolation_level": "AUTOCOMMIT"})
    target: object = session
    if where == "connection":
        target = await session.connection(execution_options={"isolation_level": "AUTOCOMMIT"})

    with pytest.raises(NoTransaction) as caught:
        await broker.publish(1, "orders", session=target)

    await session.close()
    await engine.dispose()
    assert str(caught.value) == (
        "the connection is in AUTOCOMMIT, so the message would not be atomic with anything; "
        "publish in a transaction, or without a session"
    )
    assert postgres.rows() == []


async def test_an_sqlite_connection_in_autocommit_is_refused(sqlite_place: Place) -> None:
    connection = await sqlite_place.engine.connect()
    await connection.execution_options(isolation_level="AUTOCOMMIT")

    with pytest.raises(NoTransaction, match=r"^the connection is in AUTOCOMMIT, "):
        await sqlite_place.broker().publish(1, "orders", session=connection)

    await connection.close()
    assert sqlite_place.rows() == []


async def test_an_engine_in_autocommit_publishes_where_a_connection_opens_a_transaction(postgres: Place) -> None:
    engine = postgres.another_engine(isolation_level="AUTOCOMMIT")
    broker = OutboxBroker(engine, outbox_table=postgres.tables)
    async with engine.connect() as connection:
        await connection.execution_options(isolation_level="READ COMMITTED")
        await broker.publish(1, "orders", session=connection)
        await connection.rollback()
    await engine.dispose()

    assert postgres.rows() == []


async def test_a_sync_session_in_an_async_publish_is_told_where_to_go(either: Place) -> None:
    broker = either.broker()
    with Session(either.sync_engine) as session, either.sync_engine.connect() as connection:
        for wrong, name in (
            (session, "Session"),
            (connection, "Connection"),
            (scoped_session(sessionmaker(either.sync_engine)), "scoped_session"),
        ):
            with pytest.raises(WrongType) as caught:
                await broker.publish(1, "orders", session=wrong)
            assert str(caught.value) == (
                f"session must be an AsyncSession or AsyncConnection, got {name}; "
                "use publish_sync(...) with a synchronous session"
            )

    assert either.rows() == []


async def test_an_async_session_in_a_sync_publish_is_told_where_to_go(either: Place) -> None:
    broker = either.broker()
    async with AsyncSession(either.engine) as session, either.engine.connect() as connection:
        for wrong, name in ((session, "AsyncSession"), (connection, "AsyncConnection")):
            with pytest.raises(WrongType) as caught:
                broker.publish_sync(1, "orders", session=wrong)
            assert str(caught.value) == (
                f"session must be a Session or Connection, got {name}; "
                "use await publish(...) with an asynchronous session"
            )

    assert either.rows() == []


async def test_what_is_no_session_is_refused(either: Place) -> None:
    broker = either.broker()
    with pytest.raises(WrongType) as engine_error:
        await broker.publish(1, "orders", session=either.engine)
    with pytest.raises(WrongType) as text_error:
        await broker.publish(1, "orders", session="session")
    with pytest.raises(WrongType) as sync_text_error:
        broker.publish_sync(1, "orders", session="session")
    with pytest.raises(WrongType) as none_error:
        broker.publish_sync(1, "orders", session=None)
    with pytest.raises(WrongType) as batch_error:
        broker.publish_batch_sync(1, queue="orders", session=None)

    assert str(engine_error.value) == (
        "session must be an AsyncSession or AsyncConnection, got AsyncEngine; "
        "pass a session or connection of it, in your transaction"
    )
    assert str(text_error.value) == "session must be an AsyncSession or AsyncConnection, or None, got str"
    assert str(sync_text_error.value) == "session must be a Session or Connection, got str"
    assert str(none_error.value) == (
        "session must be a synchronous Session or Connection, got NoneType; a synchronous publish has no other"
    )
    assert str(batch_error.value) == str(none_error.value)
    assert (text_error.value.argument, text_error.value.value) == ("session", "session")
    assert either.rows() == []


async def test_a_session_of_another_postgresql_database_is_refused(postgres: Place, database: URL) -> None:
    other = create_async_engine(with_driver(database, postgres.driver))
    async with AsyncSession(other) as session, session.begin():
        with statements_on(other.sync_engine) as sent, pytest.raises(WrongDatabase) as caught:
            await postgres.broker().publish(1, "orders", session=session)
    await other.dispose()

    port = f":{postgres.url.port}" if postgres.url.port else ""
    here = f"postgresql://{postgres.url.host or ''}{port}"
    assert str(caught.value) == (
        f"the session is on {here}/{database.database}, the broker on {here}/{postgres.url.database}; "
        "publish on a session of the broker's database, or make a broker for this one"
    )
    assert sent == []
    assert postgres.rows() == []


async def test_a_session_of_another_kind_of_database_is_refused(postgres: Place, sqlite_place: Place) -> None:
    async with AsyncSession(sqlite_place.engine) as session:
        with pytest.raises(WrongDatabase, match=r"^the session is on sqlite:///.*, the broker on postgresql://"):
            await postgres.broker().publish(1, "orders", session=session)
    with (
        Session(postgres.sync_engine) as sync,
        pytest.raises(WrongDatabase, match=r"^the session is on postgresql://.*, the broker on sqlite:///"),
    ):
        sqlite_place.broker().publish_sync(1, "orders", session=sync)

    assert postgres.rows() == []
    assert sqlite_place.rows() == []


async def test_errors_about_databases_keep_the_password(either: Place) -> None:
    broker = OutboxBroker(create_async_engine("postgresql+asyncpg://app:s3cret@127.0.0.1:1/shop"))
    async with AsyncSession(either.engine) as session:
        with pytest.raises(WrongDatabase) as caught:
            await broker.publish(1, "orders", session=session)

    assert "s3cret" not in str(caught.value)
    assert "app" not in str(caught.value)


# Tables


async def test_a_missing_table_is_named_at_publish(place: Place) -> None:
    broker = place.broker(outbox_table=make_outbox_table(MetaData(), "nowhere"))
    async with AsyncSession(place.engine) as session:
        with pytest.raises(SchemaMismatch, match=r"^nowhere does not fit this version: .*nowhere.*; create or migrate"):
            await broker.publish(1, "orders", session=session)
    with pytest.raises(SchemaMismatch) as caught:
        await broker.publish(1, "orders")
    with Session(place.sync_engine) as sync, pytest.raises(SchemaMismatch, match=r"^nowhere does not fit"):
        broker.publish_sync(1, "orders", session=sync)

    assert caught.value.table == "nowhere"


async def test_a_missing_schema_is_named_at_publish(postgres: Place) -> None:
    broker = postgres.broker(outbox_table=make_outbox_table(MetaData(), schema="nowhere"))

    with pytest.raises(SchemaMismatch, match=r"^outbox does not fit this version: .*nowhere"):
        await broker.publish(1, "orders")


async def test_a_missing_column_is_named_at_publish(fresh_either: Place) -> None:
    fresh_either.run("DROP INDEX outbox_key_idx", "DROP INDEX outbox_ready_idx", "ALTER TABLE outbox DROP COLUMN key")

    with pytest.raises(SchemaMismatch, match=r"^outbox does not fit this version: .*key.*; create or migrate"):
        await fresh_either.broker().publish(1, "orders")

    assert fresh_either.rows(fresh_either.tables.dead_letters) == []


async def test_a_wrong_type_is_named_at_publish(fresh_postgres: Place) -> None:
    fresh_postgres.run("ALTER TABLE outbox ALTER payload TYPE json USING 'null'")

    with pytest.raises(
        SchemaMismatch, match=r'^outbox does not fit this version: column "payload" is of type json but'
    ):
        await fresh_postgres.broker().publish(1, "orders")


STARTS = {
    "missing table": ("DROP TABLE outbox", "table outbox does not exist"),
    "missing column": ("ALTER TABLE outbox DROP COLUMN last_exception", "column last_exception is missing"),
    "missing unique index": ("DROP INDEX outbox_timer_idx", "index outbox_timer_idx on unique (queue, timer_id)"),
    "missing dead letters": ("DROP TABLE outbox_dlq", "outbox_dlq does not fit this version: table outbox_dlq"),
}


@pytest.mark.parametrize(("damage", "words"), STARTS.values(), ids=STARTS.keys())
async def test_a_worker_does_not_start_on_a_damaged_table(fresh_either: Place, damage: str, words: str) -> None:
    fresh_either.run(damage)
    broker = fresh_either.broker()

    @broker.subscriber("orders")
    async def handle(body: object) -> None: ...

    with pytest.raises(SchemaMismatch) as caught:
        await broker.start()

    assert words in str(caught.value)
    assert (broker.running, await broker.ping(1)) == (False, False)


async def test_a_worker_starts_without_an_index_that_only_makes_it_fast(
    fresh_either: Place, caplog: pytest.LogCaptureFixture
) -> None:
    fresh_either.run("DROP INDEX outbox_ready_idx")
    broker = fresh_either.broker()

    @broker.subscriber("orders")
    async def handle(body: object) -> None: ...

    async with broker:
        await broker.start()

    assert [record.message.endswith("is missing or different; claims may be slow") for record in caplog.records] == [
        True
    ]


# Databases that do not answer


@asynccontextmanager
async def refusing_server(state: str, text: str) -> AsyncIterator[int]:
    """A port on which a PostgreSQL refuses every login with *state*; the server of the tests trusts everybody."""
    fields = b"".join(
        letter + value.encode() + b"\0"
        for letter, value in ((b"S", "FATAL"), (b"V", "FATAL"), (b"C", state), (b"M", text))
    )
    refusal = b"E" + (len(fields) + 5).to_bytes(4, "big") + fields + b"\0"

    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            length = int.from_bytes(await reader.readexactly(4), "big")
            packet = await reader.readexactly(length - 4)
            if int.from_bytes(packet[:4], "big") in (80_877_103, 80_877_104):  # asks for TLS, or for GSSAPI
                writer.write(b"N")
                continue
            writer.write(refusal)
            await writer.drain()
            writer.close()
            return

    server = await asyncio.start_server(refuse, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1]


def consuming(engine: AsyncEngine) -> OutboxBroker:
    broker = OutboxBroker(engine, logger=None)

    @broker.subscriber("orders")
    async def handle(body: object) -> None: ...

    return broker


async def refusals(engine: AsyncEngine) -> list[DatabaseUnavailable]:
    """What a start, a publish and a look at the tables raise."""
    broker = consuming(engine)
    caught = []
    for use in (broker.start, lambda: broker.publish(1, "orders"), broker.validate_schema, broker.stats):
        with pytest.raises(DatabaseUnavailable) as error:
            await use()
        caught.append(error.value)
    await engine.dispose()
    return caught


@pytest.mark.parametrize("driver", ["asyncpg", "psycopg"])
async def test_an_unreachable_server_is_named_without_credentials(driver: str) -> None:
    errors = await refusals(create_async_engine(f"postgresql+{driver}://app:s3cret@127.0.0.1:1/shop"))

    for error in errors:
        assert isinstance(error, ConnectionError)
        assert str(error).startswith("cannot use postgresql://127.0.0.1:1/shop/outbox: ")
        assert str(error).endswith("; check that it runs and that this process may connect")
        assert "s3cret" not in str(error)


@pytest.mark.parametrize("driver", ["asyncpg", "psycopg"])
@pytest.mark.parametrize(
    ("state", "text"),
    [
        ("28P01", 'password authentication failed for user "app"'),
        ("3D000", 'database "shop" does not exist'),
        ("53300", "sorry, too many clients already"),
        ("57P03", "the database system is starting up"),
    ],
)
async def test_a_refused_login_is_named_without_credentials(driver: str, state: str, text: str) -> None:
    async with refusing_server(state, text) as port:
        errors = await refusals(create_async_engine(f"postgresql+{driver}://app:s3cret@127.0.0.1:{port}/shop"))

    for error in errors:
        assert str(error).startswith(f"cannot use postgresql://127.0.0.1:{port}/shop/outbox: ")
        assert text in str(error)
        assert "s3cret" not in str(error)


async def test_an_unknown_database_of_a_real_server_is_named(postgres: Place) -> None:
    errors = await refusals(create_async_engine(postgres.async_url.set(database="nowhere")))

    assert all('database "nowhere" does not exist' in str(error) for error in errors)


async def test_an_sqlite_folder_that_does_not_exist_is_named(tmp_path: Path) -> None:
    before = set(threading.enumerate())

    errors = await refusals(create_async_engine(f"sqlite+aiosqlite:///{tmp_path}/nowhere/outbox.db"))

    # aiosqlite does not wait for the thread of a connection that failed, which still calls back into this loop.
    await until(lambda: set(threading.enumerate()) - before, set())
    assert all("unable to open database file" in str(error) for error in errors)


async def test_a_worker_refuses_sqlite_in_memory() -> None:
    engine = create_async_engine("sqlite+aiosqlite://", poolclass=StaticPool)
    metadata = MetaData()
    make_outbox_table(metadata)
    async with engine.begin() as connection:
        await connection.run_sync(metadata.create_all)

    with pytest.raises(OptionError) as caught:
        await consuming(engine).start()

    await engine.dispose()
    assert str(caught.value) == (
        "a worker needs an SQLite database in a file, since each connection to one in memory is another database; "
        "use sqlite+aiosqlite:///outbox.db"
    )


# Engines


@pytest.mark.parametrize("engine", ["postgresql+asyncpg://127.0.0.1/shop", create_engine("sqlite://"), 7])
def test_an_engine_of_another_type_is_refused(engine: Any) -> None:
    with pytest.raises(WrongType) as caught:
        OutboxBroker(engine)

    assert str(caught.value) == (
        f"engine must be an AsyncEngine, got {type(engine).__name__}; "
        'use create_async_engine("postgresql+asyncpg://…") for it'
    )


class Stranger(SQLiteDialect_pysqlite):
    name = "stranger"
    supports_statement_cache = True


class AsyncStranger(SQLiteDialect_aiosqlite):
    name = "stranger"
    supports_statement_cache = True


registry.register("stranger.pysqlite", __name__, "Stranger")
registry.register("stranger.aiosqlite", __name__, "AsyncStranger")


def test_an_engine_of_an_unsupported_database_is_refused() -> None:
    with pytest.raises(UnsupportedDatabase) as caught:
        OutboxBroker(create_async_engine("stranger+aiosqlite://"))

    assert str(caught.value) == "no outbox statements for 'stranger'; supported: postgresql, sqlite"
    assert isinstance(caught.value, ValueError)


def test_a_session_of_an_unsupported_database_is_refused() -> None:
    engine = create_engine("stranger+pysqlite://")
    with Session(engine) as session, pytest.raises(UnsupportedDatabase) as caught:
        OutboxBroker().publish_sync(1, "orders", session=session)
    engine.dispose()

    assert str(caught.value) == "no outbox statements for 'stranger'; supported: postgresql, sqlite"


# Options of brokers and subscribers

BROKER_OPTIONS: list[tuple[dict[str, Any], type[OutboxError], str]] = [
    (
        {"require_transaction": "always"},
        OptionError,
        "require_transaction must be 'ignore', 'warn' or 'error', got 'always'",
    ),
    ({"graceful_timeout": -1}, OptionError, "graceful_timeout must be >= 0 seconds or None, got -1"),
    ({"graceful_timeout": math.nan}, OptionError, "graceful_timeout must be >= 0 seconds or None, got nan"),
    ({"graceful_timeout": math.inf}, OptionError, "graceful_timeout must be >= 0 seconds or None, got inf"),
    ({"graceful_timeout": "15"}, WrongType, "graceful_timeout must be a number of seconds or None, got str"),
]


@pytest.mark.parametrize(("options", "error", "message"), BROKER_OPTIONS)
def test_a_bad_broker_option_is_refused(options: dict[str, Any], error: type[OutboxError], message: str) -> None:
    with pytest.raises(error) as caught:
        OutboxBroker(**options)

    assert str(caught.value) == message
    assert isinstance(caught.value, BUILT_IN[error])


def test_an_unknown_option_is_refused() -> None:
    with pytest.raises(TypeError, match="max_worker"):
        OutboxBroker(max_worker=3)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="max_worker"):
        OutboxBroker().subscriber("orders", max_worker=3)  # type: ignore[call-arg]


SUBSCRIBER_OPTIONS: list[tuple[dict[str, Any], type[OutboxError], str]] = [
    ({"max_workers": 0}, OptionError, "max_workers must be between 1 and 1,000, got 0"),
    ({"max_workers": -2}, OptionError, "max_workers must be between 1 and 1,000, got -2"),
    ({"max_workers": 1_001}, OptionError, "max_workers must be between 1 and 1,000, got 1,001"),
    ({"max_workers": "4"}, WrongType, "max_workers must be an int, got str"),
    ({"max_workers": True}, WrongType, "max_workers must be an int, got bool"),
    ({"max_workers": 2.0}, WrongType, "max_workers must be an int, got float"),
    ({"max_workers": None}, WrongType, "max_workers must be an int, got NoneType"),
    ({"max_records": 0}, OptionError, "max_records must be between 1 and 10,000, got 0"),
    ({"max_deliveries": 0}, OptionError, "max_deliveries must be between 1 and 1,000,000, got 0"),
    ({"prefetch": 0}, OptionError, "prefetch must be between 1 and 10,000, got 0"),
    ({"lease_ttl_seconds": 0}, OptionError, "lease_ttl_seconds must be between 1 and 3600 seconds, got 0"),
    ({"lease_ttl_seconds": math.nan}, OptionError, "lease_ttl_seconds must be between 1 and 3600 seconds, got nan"),
    ({"lease_ttl_seconds": math.inf}, OptionError, "lease_ttl_seconds must be between 1 and 3600 seconds, got inf"),
    ({"lease_ttl_seconds": "30"}, WrongType, "lease_ttl_seconds must be a number of seconds, got str"),
    ({"lease_ttl_seconds": True}, WrongType, "lease_ttl_seconds must be a number of seconds, got bool"),
    ({"min_fetch_interval": 0}, OptionError, "min_fetch_interval must be between 0.001 and 3600 seconds, got 0"),
    (
        {"min_fetch_interval": 2, "max_fetch_interval": 1},
        OptionError,
        "max_fetch_interval must be between 2 and 3600 seconds, got 1",
    ),
    ({"handler_timeout": 0}, OptionError, "handler_timeout must be between 0.001 and 86400 seconds, got 0"),
    (
        {"retry_strategy": 5},
        WrongType,
        "retry_strategy must be a retry strategy such as ExponentialRetry(), got int",
    ),
    (
        {"retry_strategy": ConstantRetry},
        WrongType,
        "retry_strategy must be a retry strategy such as ExponentialRetry(), got type",
    ),
    ({"queues": ""}, InvalidMessage, "queue must not be empty, got ''"),
    ({"queues": []}, OptionError, "subscriber needs at least one queue, got none"),
    ({"queues": ["a", "a"]}, OptionError, "queues must be different from each other, got ['a', 'a']"),
    ({"queues": ["a", 7]}, WrongType, "queue must be a str, got int"),
    ({"queues": "q" * 256}, InvalidMessage, f"queue must be at most 255 characters, got 256: '{'q' * 32}…'"),
    ({"queues": None}, WrongType, "queues must be a str or a list of them, got NoneType"),
    ({"queues": 7}, WrongType, "queues must be a str or a list of them, got int"),
    ({"queues": b"orders"}, WrongType, "queues must be a str or a list of them, got bytes"),
]


@pytest.mark.parametrize(("options", "error", "message"), SUBSCRIBER_OPTIONS)
@pytest.mark.parametrize("registrator", [OutboxBroker, OutboxRouter])
def test_a_bad_subscriber_option_is_refused_where_it_is_given(
    registrator: Callable[[], Any], options: dict[str, Any], error: type[OutboxError], message: str
) -> None:
    with pytest.raises(error) as caught:
        registrator().subscriber(**{"queues": "orders", **options})

    assert str(caught.value) == message
    assert isinstance(caught.value, BUILT_IN[error])


@pytest.mark.parametrize(
    ("queue", "error", "message"),
    [
        ("", InvalidMessage, "queue must not be empty, got ''"),
        (7, WrongType, "queue must be a str, got int"),
        ("a\n", InvalidMessage, "queue must not contain control characters, got U+000A at 1 in 'a\\n'"),
    ],
)
def test_a_publisher_of_a_bad_queue_is_refused(queue: Any, error: type[OutboxError], message: str) -> None:
    with pytest.raises(error) as caught:
        OutboxBroker().publisher(queue)

    assert str(caught.value) == message


async def test_two_subscribers_of_one_queue_do_not_start_and_leave_nothing_behind(fresh_postgres: Place) -> None:
    broker = fresh_postgres.broker()
    router = OutboxRouter("shop.")

    @broker.subscriber(["shop.orders", "letters"])
    async def first(body: object) -> None: ...

    @router.subscriber("orders")
    async def second(body: object) -> None: ...

    broker.include_router(router)
    with pytest.raises(OptionError) as caught:
        await broker.start()

    assert str(caught.value) == (
        "queue 'shop.orders' has two subscribers, and each would get some of its messages; "
        "give one subscriber several handlers with filter=…"
    )
    assert (broker.running, await broker.ping(1)) == (False, False)
    await fresh_postgres.engine.dispose()
    others = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
    fresh_postgres.sync_engine.dispose()
    assert execute(fresh_postgres.url, others) == [(0,)]


# Operations


@pytest.mark.parametrize("limit", [0, -1])
async def test_a_limit_below_one_is_refused(either: Place, limit: int) -> None:
    broker = either.broker()
    for use in (
        lambda: broker.fetch_unprocessed(limit=limit),
        lambda: broker.redrive(limit=limit),
        lambda: broker.purge_dead_letters(timedelta(1), limit=limit),
    ):
        with pytest.raises(OptionError) as caught:
            await use()
        assert str(caught.value) == f"limit must be >= 1, got {limit}"


@pytest.mark.parametrize("limit", ["10", 1.5, True])
async def test_a_limit_that_is_no_int_is_refused(either: Place, limit: Any) -> None:
    with pytest.raises(WrongType, match=r"^limit must be an int, got "):
        await either.broker().redrive(limit=limit)


async def test_an_age_that_is_no_timedelta_is_refused(either: Place) -> None:
    with pytest.raises(WrongType, match=r"^older_than must be a timedelta, got int$"):
        await either.broker().purge_dead_letters(5)  # type: ignore[arg-type]
    with pytest.raises(OptionError, match=r"^older_than must not be negative, got datetime.timedelta\(days=-1\)$"):
        await either.broker().purge_dead_letters(timedelta(days=-1))


async def test_ids_that_are_no_ids_are_refused(either: Place) -> None:
    for ids in ("12", ["1"], [True], [1.5]):
        with pytest.raises(WrongType, match=r"^ids must be the ids of dead letters, got "):
            await either.broker().redrive(ids=ids)  # type: ignore[arg-type]


@pytest.mark.parametrize("timer_id", ["", " ", 7, None, "a\n"])
async def test_a_bad_timer_id_is_refused(either: Place, timer_id: Any) -> None:
    with pytest.raises((InvalidMessage, WrongType), match=r"^timer_id must "):
        await either.broker().cancel_timer(queue="orders", timer_id=timer_id)


@pytest.mark.parametrize("queue", ["", 7, "a\x00"])
async def test_a_bad_queue_is_refused_by_every_operation(either: Place, queue: Any) -> None:
    broker = either.broker()
    for use in (
        lambda: broker.pause(queue),
        lambda: broker.resume(queue),
        lambda: broker.cancel_timer(queue=queue, timer_id="t"),
        lambda: broker.fetch_unprocessed(queue=queue),
        lambda: broker.redrive(queue=queue),
        lambda: broker.purge_dead_letters(timedelta(1), queue=queue),
    ):
        with pytest.raises((InvalidMessage, WrongType), match=r"^queue must "):
            await use()


@pytest.fixture
async def sqlite_place(sqlite_template: Path, tmp_path: Path) -> AsyncIterator[Place]:
    """SQLite beside a fixture that may be PostgreSQL."""
    path = tmp_path / "beside.db"
    shutil.copy(sqlite_template, path)
    place = Place(URL.create("sqlite", database=str(path)), "aiosqlite")
    yield place
    await place.close()
