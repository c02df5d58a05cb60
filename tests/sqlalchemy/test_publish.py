"""Publishing on the caller's session or connection: in its transaction, with one statement, and nothing else of its own."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, AbstractContextManager, asynccontextmanager, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import asyncpg
import pytest
from faststream import BaseMiddleware, PublishCommand
from pydantic import BaseModel
from sqlalchemy import Connection, String, event
from sqlalchemy.ext.asyncio import (
    AsyncConnection,
    AsyncSession,
    async_scoped_session,
    async_sessionmaker,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, scoped_session, sessionmaker

from outbox_core.errors import NoTransaction, NotStarted, OutboxError
from outbox_sqlalchemy import OutboxBroker
from tests.databases import plain
from tests.places import Place, statements_on


class Base(DeclarativeBase):
    pass


class Order(Base):
    __tablename__ = "orders"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(String(50))


@asynccontextmanager
async def async_session(place: Place) -> AsyncIterator[AsyncSession]:
    async with AsyncSession(place.engine) as session:
        yield session


@asynccontextmanager
async def async_connection(place: Place) -> AsyncIterator[AsyncConnection]:
    async with place.engine.connect() as connection:
        yield connection


@asynccontextmanager
async def scoped_async_session(place: Place) -> AsyncIterator[async_scoped_session[AsyncSession]]:
    scoped = async_scoped_session(async_sessionmaker(place.engine), asyncio.current_task)
    yield scoped
    await scoped.remove()


@contextmanager
def sync_session(place: Place) -> Iterator[Session]:
    with Session(place.sync_engine) as session:
        yield session


@contextmanager
def sync_connection(place: Place) -> Iterator[Connection]:
    with place.sync_engine.connect() as connection:
        yield connection


@contextmanager
def scoped_sync_session(place: Place) -> Iterator[scoped_session[Session]]:
    scoped = scoped_session(sessionmaker(place.sync_engine))
    yield scoped
    scoped.remove()


AsyncOpener = Callable[[Place], AbstractAsyncContextManager[Any]]
SyncOpener = Callable[[Place], AbstractContextManager[Any]]

every_async = pytest.mark.parametrize("opened", [async_session, async_connection, scoped_async_session])
every_sync = pytest.mark.parametrize("opened", [sync_session, sync_connection, scoped_sync_session])


# In the caller's transaction


@every_async
async def test_a_committed_publish_is_a_row(place: Place, opened: AsyncOpener) -> None:
    async with opened(place) as session:
        row_id = await place.broker().publish({"id": 7}, "orders", session=session)
        assert place.rows() == []

        await session.commit()

    assert [(row.id, row.queue, row.payload) for row in place.rows()] == [(row_id, "orders", b'{"id":7}')]


@every_async
async def test_a_rolled_back_publish_is_nothing(place: Place, opened: AsyncOpener) -> None:
    async with opened(place) as session:
        await place.broker().publish({"id": 7}, "orders", session=session)

        await session.rollback()

    assert place.rows() == []


@every_async
async def test_a_session_closed_without_commit_publishes_nothing(place: Place, opened: AsyncOpener) -> None:
    async with opened(place) as session:
        await place.broker().publish({"id": 7}, "orders", session=session)

    assert place.rows() == []


@every_async
async def test_a_savepoint_takes_back_what_was_published_in_it(place: Place, opened: AsyncOpener) -> None:
    broker = place.broker()
    async with opened(place) as session:
        await broker.publish("before", "orders", session=session)
        savepoint = await session.begin_nested()
        await broker.publish("within", "orders", session=session)
        await savepoint.rollback()
        await broker.publish("after", "orders", session=session)
        await session.commit()

    assert [row.payload for row in place.rows()] == [b"before", b"after"]


@every_async
async def test_a_batch_commits_or_not_as_a_whole(place: Place, opened: AsyncOpener) -> None:
    broker = place.broker()
    async with opened(place) as session:
        await broker.publish_batch(1, 2, 3, queue="orders", session=session)
        await session.rollback()
        ids = await broker.publish_batch(4, 5, 6, queue="orders", session=session)
        await session.commit()

    assert [(row.id, row.payload) for row in place.rows()] == [
        (ids[0], b"4"),
        (ids[1], b"5"),
        (ids[2], b"6"),
    ]


async def test_the_message_goes_with_the_domains_writes(fresh_either: Place) -> None:
    place = fresh_either
    Base.metadata.create_all(place.sync_engine)
    broker = place.broker()

    async def order(number: int, name: str) -> None:
        async with AsyncSession(place.engine) as session, session.begin():
            session.add(Order(id=number, name=name))
            await broker.publish({"id": number}, "orders", session=session)
            if name == "lost":
                raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await order(1, "lost")
    await order(2, "kept")

    assert [row.payload for row in place.rows()] == [b'{"id":2}']
    assert [row.name for row in place.rows(Order.__table__)] == ["kept"]  # type: ignore[arg-type]


@every_sync
def test_a_committed_sync_publish_is_a_row(sync_place: Place, opened: SyncOpener) -> None:
    with opened(sync_place) as session:
        row_id = sync_place.broker().publish_sync({"id": 7}, "orders", session=session)
        assert sync_place.rows() == []

        session.commit()

    assert [(row.id, row.queue, row.payload) for row in sync_place.rows()] == [(row_id, "orders", b'{"id":7}')]


@every_sync
def test_a_rolled_back_sync_publish_is_nothing(sync_place: Place, opened: SyncOpener) -> None:
    with opened(sync_place) as session:
        sync_place.broker().publish_sync({"id": 7}, "orders", session=session)

        session.rollback()

    assert sync_place.rows() == []


@every_sync
def test_a_savepoint_takes_back_what_was_published_in_it_synchronously(sync_place: Place, opened: SyncOpener) -> None:
    broker = sync_place.broker()
    with opened(sync_place) as session:
        broker.publish_sync("before", "orders", session=session)
        savepoint = session.begin_nested()
        broker.publish_sync("within", "orders", session=session)
        savepoint.rollback()
        broker.publish_batch_sync("after", "that", queue="orders", session=session)
        session.commit()

    assert [row.payload for row in sync_place.rows()] == [b"before", b"after", b"that"]


@every_sync
def test_a_rolled_back_sync_batch_is_nothing(sync_place: Place, opened: SyncOpener) -> None:
    with opened(sync_place) as session:
        sync_place.broker().publish_batch_sync(1, 2, queue="orders", session=session)

        session.rollback()

    assert sync_place.rows() == []


async def test_a_sync_publish_works_inside_run_sync(place: Place) -> None:
    broker = place.broker()

    def work(session: Session) -> None:
        broker.publish_sync("from greenlet", "orders", session=session)

    async with AsyncSession(place.engine) as session, session.begin():
        await session.run_sync(work)

    assert [row.payload for row in place.rows()] == [b"from greenlet"]


# Nothing of its own


async def test_publishing_flushes_nothing(place: Place) -> None:
    order = Order(id=1, name="pending")
    async with AsyncSession(place.engine) as session:
        session.add(order)

        await place.broker().publish({"id": 1}, "orders", session=session)

        assert list(session.new) == [order]


def test_publishing_synchronously_flushes_nothing(sync_place: Place) -> None:
    order = Order(id=1, name="pending")
    with Session(sync_place.sync_engine) as session:
        session.add(order)

        sync_place.broker().publish_sync({"id": 1}, "orders", session=session)

        assert list(session.new) == [order]


async def test_publishing_commits_nothing(place: Place) -> None:
    commits: list[object] = []
    event.listen(place.engine.sync_engine, "commit", commits.append)
    async with AsyncSession(place.engine) as session:
        await place.broker().publish({"id": 1}, "orders", session=session)
        await place.broker().publish_batch(1, 2, queue="orders", session=session)

        assert session.in_transaction()

    assert commits == []


async def test_publishing_takes_the_sessions_connection_and_no_other(place: Place) -> None:
    engine = place.another_engine(pool_size=1, max_overflow=0, pool_timeout=0.1)
    broker = OutboxBroker(engine, outbox_table=place.tables)
    async with AsyncSession(engine) as session, session.begin():
        await broker.publish(1, "orders", session=session)
        await broker.publish_batch(2, 3, queue="orders", session=session)

        assert engine.pool.checkedout() == 1  # type: ignore[attr-defined]  # a queue pool's
    await engine.dispose()

    assert len(place.rows()) == 3


async def test_a_publish_is_one_statement(place: Place) -> None:
    async with AsyncSession(place.engine) as session, session.begin():
        with statements_on(place.engine.sync_engine) as sent:
            await place.broker().publish({"id": 1}, "orders", session=session)

        assert [statement.split()[:3] for statement in sent] == [["INSERT", "INTO", '"outbox"']]


async def test_a_batch_is_one_statement(place: Place) -> None:
    async with AsyncSession(place.engine) as session, session.begin():
        with statements_on(place.engine.sync_engine) as sent:
            ids = await place.broker().publish_batch(*range(1_000), queue="orders", session=session)

        assert len(sent) == 1

    assert [row.payload for row in place.rows()] == [str(number).encode() for number in range(1_000)]
    assert [row.id for row in place.rows()] == ids


def test_a_sync_publish_is_one_statement(sync_place: Place) -> None:
    with Session(sync_place.sync_engine) as session:
        with statements_on(sync_place.sync_engine) as sent:
            sync_place.broker().publish_sync({"id": 1}, "orders", session=session)
            sync_place.broker().publish_batch_sync(2, 3, 4, queue="orders", session=session)

        assert len(sent) == 2


async def test_an_empty_batch_sends_nothing(place: Place) -> None:
    with statements_on(place.engine.sync_engine) as sent:
        assert await place.broker().publish_batch(queue="orders") == []

    assert sent == []


async def test_one_bad_message_keeps_its_whole_batch_out(place: Place) -> None:
    async with AsyncSession(place.engine) as session, session.begin():
        with statements_on(place.engine.sync_engine) as sent, pytest.raises(OutboxError):
            await place.broker().publish_batch(1, object(), 3, queue="orders", session=session)

        assert sent == []

    assert place.rows() == []


# Notifications


@asynccontextmanager
async def armed(place: Place, queue: str) -> AsyncIterator[asyncpg.Connection]:
    """A worker's link that sleeps on *queue*, so that publishers notify; and a connection that can listen."""
    link = await place.broker().store.connect()
    listener = await asyncpg.connect(plain(place.url))
    try:
        assert await link.arm([queue]) == "armed"
        yield listener
    finally:
        await listener.close()
        await link.close()


@asynccontextmanager
async def heard_on(listener: asyncpg.Connection, place: Place) -> AsyncIterator[list[str]]:
    """What is notified meanwhile. A marker is sent at the end: what was notified before it has arrived before it."""
    heard: list[str] = []
    marker = asyncio.Event()
    channel = place.broker().store.tables.channel  # type: ignore[attr-defined]

    def note(_connection: object, _pid: object, _channel: object, payload: str) -> None:
        if payload == "marker":
            marker.set()
        else:
            heard.append(payload)

    await listener.add_listener(channel, note)
    yield heard
    place.run(f"SELECT pg_notify('{channel}', 'marker')")
    async with asyncio.timeout(5):
        await marker.wait()


async def test_a_commit_notifies_once_for_any_number_of_messages_of_a_queue(postgres: Place) -> None:
    broker = postgres.broker()
    async with (
        armed(postgres, "orders") as listener,
        heard_on(listener, postgres) as heard,
        AsyncSession(postgres.engine) as session,
        session.begin(),
    ):
        await broker.publish(1, "orders", session=session)
        await broker.publish_batch(2, 3, queue="orders", session=session)
        await broker.publish(4, "letters", session=session)

    assert heard == ["orders"]


@pytest.mark.parametrize("how", ["rollback", "savepoint"])
async def test_what_is_rolled_back_notifies_nobody(postgres: Place, how: str) -> None:
    broker = postgres.broker()
    async with (
        armed(postgres, "orders") as listener,
        heard_on(listener, postgres) as heard,
        AsyncSession(postgres.engine) as session,
        session.begin() as transaction,
    ):
        undone = transaction if how == "rollback" else await session.begin_nested()
        await broker.publish(1, "orders", session=session)
        await undone.rollback()

    assert heard == []
    assert postgres.rows() == []


async def test_a_sync_commit_notifies_too(postgres: Place) -> None:
    async with armed(postgres, "orders") as listener, heard_on(listener, postgres) as heard:
        with Session(postgres.sync_engine) as session, session.begin():
            postgres.broker().publish_sync(1, "orders", session=session)
        with Session(postgres.sync_engine) as session:
            postgres.broker().publish_sync(2, "orders", session=session)

    assert heard == ["orders"]


# Without a session


async def test_without_a_session_the_message_is_committed_at_once(place: Place) -> None:
    row_id = await place.broker().publish("hello", "orders")

    assert [row.id for row in place.rows()] == [row_id]
    assert place.engine.pool.checkedout() == 0  # type: ignore[attr-defined]


async def test_without_a_session_a_batch_is_all_or_nothing(fresh_either: Place) -> None:
    taken = "12345678-1234-4234-8234-123456789012"
    await fresh_either.broker().publish("first", "orders", message_id=taken)
    if fresh_either.is_postgresql:
        fresh_either.run("ALTER TABLE outbox ADD CONSTRAINT small CHECK (length(payload) < 10)")
    else:
        fresh_either.run(
            """CREATE TRIGGER small BEFORE INSERT ON outbox WHEN length(NEW.payload) >= 10
               BEGIN SELECT RAISE(ABORT, 'small'); END"""
        )

    with pytest.raises(Exception, match="small"):
        await fresh_either.broker().publish_batch("fits", "does not fit", queue="orders")

    assert [row.payload for row in fresh_either.rows()] == [b"first"]


async def test_require_transaction_error_refuses_a_publish_without_a_session(place: Place) -> None:
    broker = place.broker(require_transaction="error")

    with pytest.raises(NoTransaction) as caught:
        await broker.publish("hello", "orders")

    assert isinstance(caught.value, RuntimeError)
    assert str(caught.value) == (
        "publish to 'orders' has no session, so it is not atomic with anything; pass session=… to publish in your "
        "transaction, or standalone=True if that is what you want"
    )
    with pytest.raises(NoTransaction):
        await broker.publish_batch("hello", queue="orders")
    assert place.rows() == []


async def test_require_transaction_warn_warns_and_publishes(either: Place) -> None:
    broker = either.broker(require_transaction="warn")

    with pytest.warns(RuntimeWarning, match=r"^publish to 'orders' has no session, so it is not atomic with anything;"):
        await broker.publish("hello", "orders")

    assert len(either.rows()) == 1


@pytest.mark.parametrize("policy", ["ignore", "warn", "error"])
async def test_standalone_and_sessions_satisfy_every_policy(either: Place, policy: str) -> None:
    broker = either.broker(require_transaction=policy)

    await broker.publish("alone", "orders", standalone=True)
    await broker.publish_batch("both", "alone", queue="orders", standalone=True)
    async with AsyncSession(either.engine) as session, session.begin():
        await broker.publish("together", "orders", session=session)

    assert [row.payload for row in either.rows()] == [b"alone", b"both", b"alone", b"together"]


async def test_ignoring_is_the_default(either: Place) -> None:
    await either.broker().publish("hello", "orders")

    assert len(either.rows()) == 1


# What is stored


async def test_every_option_is_a_column_or_a_header(place: Place) -> None:
    before = datetime.now(UTC)
    await place.broker().publish(
        {"id": 7},
        "orders",
        headers={"tenant": "acme"},
        correlation_id="trace-1",
        reply_to="answers",
        message_id="0190163d-8694-739b-aea5-966c26f8ad91",
        key="customer-3",
        priority=9,
        timer_id="reminder-7",
        activate_in=timedelta(hours=1),
    )

    (row,) = place.rows()
    assert (row.queue, row.payload, row.key, row.priority, row.timer_id) == (
        "orders",
        b'{"id":7}',
        "customer-3",
        9,
        "reminder-7",
    )
    assert row.message_id == UUID("0190163d-8694-739b-aea5-966c26f8ad91")
    assert row.headers == {
        "tenant": "acme",
        "content-type": "application/json",
        "correlation_id": "trace-1",
        "reply_to": "answers",
    }
    delay = row.next_attempt_at - row.created_at
    assert timedelta(minutes=59, seconds=59) < delay < timedelta(minutes=60, seconds=1)
    assert abs(aware(row.created_at) - before) < timedelta(seconds=5)
    assert (row.acquired_token, row.leased_until, row.deliveries_count, row.attempts_count) == (None, None, 0, 0)


async def test_a_message_without_options_has_plain_defaults(place: Place) -> None:
    await place.broker().publish("hello", "orders")

    (row,) = place.rows()
    assert (row.key, row.priority, row.timer_id) == (None, 0, None)
    assert row.headers == {"content-type": "text/plain", "correlation_id": str(row.message_id)}
    assert row.message_id.version == 7


async def test_activate_at_is_an_instant_in_any_zone(place: Place) -> None:
    moment = datetime.fromisoformat("2031-07-01T12:30:00.250000+02:00")

    await place.broker().publish("hello", "orders", activate_at=moment)

    assert aware(place.rows()[0].next_attempt_at) == datetime(2031, 7, 1, 10, 30, 0, 250_000, tzinfo=UTC)


async def test_activate_at_in_the_past_is_due_at_once(place: Place) -> None:
    await place.broker().publish("hello", "orders", activate_at=datetime(2020, 1, 1, tzinfo=UTC))

    assert (await place.broker().stats())["orders"].ready == 1


async def test_options_of_a_batch_hold_for_each_message(place: Place) -> None:
    await place.broker().publish_batch(
        1, 2, queue="orders", headers={"tenant": "acme"}, correlation_id="trace-1", key="k", priority=-3
    )

    assert [(row.headers["tenant"], row.headers["correlation_id"], row.key, row.priority) for row in place.rows()] == [
        ("acme", "trace-1", "k", -3),
        ("acme", "trace-1", "k", -3),
    ]


class Model(BaseModel):
    id: int
    name: str


@dataclass
class Plain:
    id: int


BODIES: Mapping[str, tuple[object, bytes, str | None]] = {
    "dict": ({"id": 7, "name": "Zoë"}, '{"id":7,"name":"Zoë"}'.encode(), "application/json"),
    "list": ([1, 2.5, None, True], b"[1,2.5,null,true]", "application/json"),
    "none": (None, b"null", "application/json"),
    "text": ("Zoë ☃", "Zoë ☃".encode(), "text/plain"),
    "bytes": (b"\x00\xff:raw:%s", b"\x00\xff:raw:%s", None),
    "empty": (b"", b"", None),
    "pydantic": (Model(id=7, name="a"), b'{"id":7,"name":"a"}', "application/json"),
    "dataclass": (Plain(7), b'{"id":7}', "application/json"),
    "colons and percents": ({":id": "100 %(x)s :y"}, b'{":id":"100 %(x)s :y"}', "application/json"),
}


@pytest.mark.parametrize(("body", "payload", "content_type"), BODIES.values(), ids=BODIES.keys())
async def test_a_body_is_stored_as_its_type_says(
    place: Place, body: object, payload: bytes, content_type: str | None
) -> None:
    await place.broker().publish(body, "orders")

    (row,) = place.rows()
    assert (row.payload, row.headers.get("content-type")) == (payload, content_type)


@pytest.mark.parametrize("body", [body for body, _, _ in BODIES.values()], ids=BODIES.keys())
async def test_async_and_sync_publishes_write_the_same_bytes(either: Place, body: object) -> None:
    broker = either.broker()
    identity = "0190163d-8694-739b-aea5-966c26f8ad9"

    def with_id(last: int) -> dict[str, Any]:
        return {"message_id": f"{identity}{last}", "correlation_id": "c", "headers": {"tenant": "Zoë"}}

    async with AsyncSession(either.engine) as session, session.begin():
        await broker.publish(body, "orders", session=session, key="k", **with_id(1))
    with Session(either.sync_engine) as sync, sync.begin():
        broker.publish_sync(body, "orders", session=sync, key="k", **with_id(2))

    sql = "SELECT payload, CAST(headers AS text), key, priority FROM outbox ORDER BY id"
    with either.sync_engine.connect() as connection:
        first, second = (tuple(row) for row in connection.exec_driver_sql(sql))
    assert first == second


async def test_the_same_message_id_again_inserts_nothing(place: Place) -> None:
    broker = place.broker()
    first = await broker.publish(1, "orders", message_id=UUID("0190163d-8694-739b-aea5-966c26f8ad91"))

    again = await broker.publish(2, "orders", message_id="0190163d-8694-739b-aea5-966c26f8ad91")

    assert (first is not None, again) == (True, None)
    assert [row.payload for row in place.rows()] == [b"1"]


@pytest.mark.parametrize(
    ("conflict", "payload", "later"), [("ignore", b"1", False), ("extend", b"2", True), ("replace", b"2", True)]
)
async def test_a_second_publish_of_a_timer_does_what_its_conflict_says(
    place: Place, conflict: Any, payload: bytes, later: bool
) -> None:
    broker = place.broker()
    first = await broker.publish(1, "orders", timer_id="t", activate_in=timedelta(hours=1))

    second = await broker.publish(2, "orders", timer_id="t", activate_in=timedelta(hours=2), timer_conflict=conflict)

    (row,) = place.rows()
    assert row.payload == payload
    assert (row.next_attempt_at - row.created_at > timedelta(minutes=90)) is later
    assert second == (first if later else None)


# Brokers


async def test_a_broker_without_an_engine_publishes_on_sessions(place: Place) -> None:
    broker = OutboxBroker(outbox_table=place.tables)
    async with AsyncSession(place.engine) as session, session.begin():
        await broker.publish(1, "orders", session=session)
        await broker.publish_batch(2, 3, queue="orders", session=session)
    with Session(place.sync_engine) as sync, sync.begin():
        broker.publish_sync(4, "orders", session=sync)

    assert [row.payload for row in place.rows()] == [b"1", b"2", b"3", b"4"]


async def test_a_broker_without_an_engine_cannot_publish_by_itself(either: Place) -> None:
    with pytest.raises(NotStarted) as caught:
        await OutboxBroker(outbox_table=either.tables).publish(1, "orders")

    assert str(caught.value) == "without a session this needs a database; create the broker with an engine"
    assert isinstance(caught.value, RuntimeError)


async def test_a_broker_that_was_never_connected_publishes(place: Place) -> None:
    broker = place.broker()

    await broker.publish(1, "orders")

    assert not broker.running
    assert len(place.rows()) == 1


def test_a_module_level_broker_publishes_in_one_event_loop_after_another(sync_place: Place) -> None:
    broker = OutboxBroker(outbox_table=sync_place.tables)

    async def publish(number: int) -> None:
        engine = sync_place.another_engine()
        async with AsyncSession(engine) as session, session.begin():
            await broker.publish(number, "orders", session=session)
        await engine.dispose()

    asyncio.run(publish(1))
    asyncio.run(publish(2))

    assert [row.payload for row in sync_place.rows()] == [b"1", b"2"]


# Middlewares


class Stamp(BaseMiddleware):
    """Adds a header to whatever is published, without waiting for anything."""

    async def publish_scope(self, call_next: Callable[[PublishCommand], Awaitable[Any]], cmd: PublishCommand) -> Any:
        cmd.add_headers({"stamped": "yes"})
        return await call_next(cmd)


class Slow(BaseMiddleware):
    """Waits before it publishes."""

    async def publish_scope(self, call_next: Callable[[PublishCommand], Awaitable[Any]], cmd: PublishCommand) -> Any:
        await asyncio.sleep(0)
        return await call_next(cmd)


async def test_publish_middlewares_run_for_every_way_of_publishing(place: Place) -> None:
    broker = place.broker(middlewares=[Stamp])
    await broker.publish(1, "orders")
    await broker.publish_batch(2, queue="orders")
    await broker.publisher("orders").publish(3)
    with Session(place.sync_engine) as session, session.begin():
        broker.publish_sync(4, "orders", session=session)
        broker.publish_batch_sync(5, queue="orders", session=session)

    assert [row.headers["stamped"] for row in place.rows()] == ["yes"] * 5


def test_a_sync_publish_refuses_a_middleware_that_waits(sync_place: Place) -> None:
    broker = sync_place.broker(middlewares=[Slow])
    with Session(sync_place.sync_engine) as session, session.begin():
        with pytest.raises(NotStarted) as caught:
            broker.publish_sync(1, "orders", session=session)

        assert str(caught.value) == (
            "a publish middleware or codec waited for something, which a synchronous publish cannot; "
            "use await broker.publish(...) or a middleware that does not wait"
        )
        assert session.is_active

    assert sync_place.rows() == []


async def test_an_async_publish_waits_for_its_middlewares(either: Place) -> None:
    await either.broker(middlewares=[Slow]).publish(1, "orders")

    assert len(either.rows()) == 1


# Publishers


async def test_a_publisher_fills_in_what_a_call_leaves_out(place: Place) -> None:
    publisher = place.broker().publisher("orders", headers={"tenant": "acme", "v": "1"}, key="k", priority=5)
    async with AsyncSession(place.engine) as session, session.begin():
        await publisher.publish(1, session=session)
        await publisher.publish(2, session=session, headers={"v": "2"}, key="other", priority=7)
        await publisher.publish(3, "elsewhere", session=session)

    rows = [(row.queue, row.headers["tenant"], row.headers["v"], row.key, row.priority) for row in place.rows()]
    assert rows == [
        ("orders", "acme", "1", "k", 5),
        ("orders", "acme", "2", "other", 7),
        ("elsewhere", "acme", "1", "k", 5),
    ]


async def test_a_publishers_rows_go_with_the_session(place: Place) -> None:
    publisher = place.broker().publisher("orders")
    async with AsyncSession(place.engine) as session:
        await publisher.publish(1, session=session)
        await session.rollback()

    assert place.rows() == []


async def test_headers_survive_as_json(either: Place) -> None:
    await either.broker().publish(1, "orders", headers={"quote": '"', "snow": "☃", "percent": "%s", "colon": ":x"})

    with either.sync_engine.connect() as connection:
        stored = connection.exec_driver_sql("SELECT CAST(headers AS text) FROM outbox").scalar_one()
    headers = json.loads(stored)
    assert (headers["quote"], headers["snow"], headers["percent"], headers["colon"]) == ('"', "☃", "%s", ":x")


def aware(moment: datetime) -> datetime:
    """SQLite has no time zones; what is stored there is UTC."""
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)
