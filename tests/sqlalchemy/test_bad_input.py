"""Whatever is passed wrongly: which error, what it says, and that nothing was written and nothing was broken."""

import asyncio
import shutil
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
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
    NoTransaction,
    OptionError,
    SchemaMismatch,
    UnsupportedDatabase,
    WrongDatabase,
    WrongType,
)
from outbox_sqlalchemy import OutboxBroker, OutboxRouter, make_outbox_table
from tests.databases import execute, with_driver
from tests.places import Place, statements_on, until


class Opaque:
    def __str__(self) -> str:
        return "opaque"


async def test_a_users_serializer_that_cannot_encode_is_refused_alike(either: Place) -> None:
    broker = either.broker(serializer=PydanticSerializer())
    async with AsyncSession(either.engine) as session, session.begin():
        with pytest.raises(CannotEncode, match=r"^cannot encode Opaque: "):
            await broker.publish(Opaque(), "orders", session=session)
        await broker.publish("after", "orders", session=session)

    assert [row.payload for row in either.rows()] == [b"after"]


# Sessions


async def test_a_closed_connection_is_refused(place: Place) -> None:
    async with place.engine.connect() as connection:
        pass

    with pytest.raises(NoTransaction) as caught:
        await place.broker().publish(1, "orders", session=connection)

    assert str(caught.value) == ("the connection is closed, so nothing was written; use it before you close it")
    assert place.rows() == []


async def test_a_connection_that_was_never_opened_is_refused(place: Place) -> None:
    with pytest.raises(NoTransaction) as caught:
        await place.broker().publish(1, "orders", session=place.engine.connect())

    assert str(caught.value) == (
        'the connection was never opened; use it inside "async with engine.begin() as connection"'
    )


def test_a_closed_sync_connection_is_refused(sync_place: Place) -> None:
    with sync_place.sync_engine.connect() as connection:
        pass

    with pytest.raises(NoTransaction, match=r"^the connection is closed, so nothing was written"):
        sync_place.broker().publish_sync(1, "orders", session=connection)


async def test_a_session_whose_transaction_has_ended_in_its_block_is_refused(place: Place) -> None:
    async with AsyncSession(place.engine) as session, session.begin():
        await session.commit()
        with pytest.raises(NoTransaction, match=r"^the session cannot be used, so nothing was written: "):
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
        "use one in a transaction (a publish of its own needs no session)"
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
                "use publish_sync(...) or receive_sync(...) with a synchronous session"
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
                "use await publish(...) or receive(...) with an asynchronous session"
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


# Options


def test_an_unknown_option_is_refused() -> None:
    with pytest.raises(TypeError, match="max_worker"):
        OutboxBroker(max_worker=3)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="max_worker"):
        OutboxBroker().subscriber("orders", max_worker=3)  # type: ignore[call-arg]


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
    await until(
        lambda: execute(fresh_postgres.url, others), [(0,)]
    )  # a server's process ends after its client has gone


@pytest.fixture
async def sqlite_place(sqlite_template: Path, tmp_path: Path) -> AsyncIterator[Place]:
    """SQLite beside a fixture that may be PostgreSQL."""
    path = tmp_path / "beside.db"
    shutil.copy(sqlite_template, path)
    place = Place(URL.create("sqlite", database=str(path)), "aiosqlite")
    yield place
    await place.close()
