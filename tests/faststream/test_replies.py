"""What becomes of what a handler returns: stacked publishers, responses that choose, answers."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Annotated, Any

import pytest
from faststream import BaseMiddleware, Depends, PublishCommand
from faststream.response import Response
from pydantic import BaseModel
from sqlalchemy import Integer, Table
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from outbox_core.errors import WrongType
from outbox_core.retry import ConstantRetry, NoRetry
from outbox_sqlalchemy import OutboxBroker, OutboxMessage, OutboxResponse
from tests.places import Place, running, until


class Base(DeclarativeBase):
    pass


class Order(Base):
    __tablename__ = "orders"

    id: Mapped[int] = mapped_column(Integer, primary_key=True)


ORDERS: Table = Order.__table__  # type: ignore[assignment]


class Total(BaseModel):
    total: int


def collect(broker: OutboxBroker, *queues: str) -> list[tuple[str, object]]:
    """What arrives in *queues*."""
    got: list[tuple[str, object]] = []

    @broker.subscriber(list(queues), title="Collector")
    async def collector(body: object, message: OutboxMessage) -> None:
        got.append((message.queue, body))

    return got


# Stacked publishers


@pytest.mark.parametrize("order", ["publisher outside", "subscriber outside"])
async def test_what_a_handler_returns_is_published(both: Place, order: str) -> None:
    broker = both.broker()
    got = collect(broker, "totals")

    async def add(numbers: list[int]) -> Total:
        return Total(total=sum(numbers))

    if order == "publisher outside":
        broker.publisher("totals")(broker.subscriber("numbers")(add))
    else:
        broker.subscriber("numbers")(broker.publisher("totals")(add))
    async with running(broker):
        await broker.publish([1, 2, 3], "numbers")
        await until(lambda: got, [("totals", {"total": 6})])
        await until(both.rows, [])


async def test_several_publishers_all_get_the_reply(place: Place) -> None:
    broker = place.broker()
    got = collect(broker, "a", "b")

    @broker.publisher("a")
    @broker.subscriber("numbers")
    @broker.publisher("b")
    async def add(body: int) -> int:
        return body + 1

    async with running(broker):
        await broker.publish(1, "numbers")
        await until(lambda: sorted(got), [("a", 2), ("b", 2)])


async def test_queues_can_be_chained(both: Place) -> None:
    broker = both.broker()
    got = collect(broker, "third")

    @broker.subscriber("first")
    @broker.publisher("second")
    async def first(body: int) -> int:
        return body + 1

    @broker.subscriber("second")
    @broker.publisher("third")
    def second(body: int) -> int:
        return body * 10

    async with running(broker):
        await broker.publish(1, "first")
        await until(lambda: got, [("third", 20)])


async def test_a_reply_keeps_the_correlation_id_and_takes_the_publishers_headers(place: Place) -> None:
    broker = place.broker()

    @broker.subscriber("numbers")
    @broker.publisher("totals", headers={"from": "add"}, key="k", priority=4)
    async def add(body: int) -> Response:
        return Response(body, headers={"more": "yes"})

    async with running(broker):
        await broker.publish(1, "numbers", correlation_id="c", headers={"inbound": "yes"})
        await until(lambda: [row.queue for row in place.rows()], ["totals"])

    (row,) = place.rows()
    assert row.headers == {
        "from": "add",
        "more": "yes",
        "correlation_id": "c",
        "content-type": "application/json",
    }
    assert (row.key, row.priority) == ("k", 4)


async def test_a_response_chooses_its_correlation_id_and_headers(place: Place) -> None:
    broker = place.broker()

    @broker.subscriber("numbers")
    @broker.publisher("totals")
    async def add(body: int) -> Response:
        return Response(body, headers={"custom": "yes"}, correlation_id="own")

    async with running(broker):
        await broker.publish(1, "numbers", correlation_id="c")
        await until(lambda: [row.queue for row in place.rows()], ["totals"])

    (row,) = place.rows()
    assert (row.headers["custom"], row.headers["correlation_id"]) == ("yes", "own")


async def test_one_publisher_serves_several_handlers(place: Place) -> None:
    broker = place.broker()
    got = collect(broker, "totals")
    publisher = broker.publisher("totals")

    @publisher
    @broker.subscriber("numbers")
    async def add(body: int) -> int:
        return body + 1

    @broker.subscriber("letters")
    @publisher
    def double(body: int) -> int:
        return body * 2

    async with running(broker):
        await broker.publish(1, "numbers")
        await broker.publish(10, "letters")
        await until(lambda: sorted(got), [("totals", 2), ("totals", 20)])


# Publishers as objects


async def test_a_publisher_publishes_inside_a_handler_and_needs_no_start(place: Place) -> None:
    broker = place.broker()
    publisher = broker.publisher("totals")

    @broker.subscriber("numbers")
    async def add(body: int) -> None:
        await publisher.publish(body + 1)

    await publisher.publish("before the start")
    async with running(broker):
        await broker.publish(1, "numbers")
        await until(lambda: [row.payload for row in place.rows()], [b"before the start", b"2"])
        await broker.publisher("totals", persistent=False).publish("made while it runs")

    assert [row.payload for row in place.rows()][2:] == [b"made while it runs"]


async def test_what_a_call_gives_wins_over_what_the_publisher_has(place: Place) -> None:
    broker = place.broker()
    publisher = broker.publisher(
        "totals", headers={"from": "publisher", "kind": "total"}, key="k", priority=3, reply_to="answers"
    )

    await publisher.publish(1)
    await publisher.publish(2, headers={"from": "call"}, key="own", priority=0, reply_to="mine")
    await publisher.publish(3, "elsewhere")

    def written(row: Any) -> tuple[Any, ...]:
        return row.queue, row.headers["from"], row.headers["kind"], row.key, row.priority, row.headers["reply_to"]

    assert [written(row) for row in place.rows()] == [
        ("totals", "publisher", "total", "k", 3, "answers"),
        ("totals", "call", "total", "own", 0, "mine"),
        ("elsewhere", "publisher", "total", "k", 3, "answers"),
    ]


async def test_a_responses_priority_wins_over_the_publishers(place: Place) -> None:
    broker = place.broker()

    @broker.subscriber("numbers")
    @broker.publisher("totals", priority=3)
    async def add(body: int) -> OutboxResponse:
        return OutboxResponse(body, priority=0)

    async with running(broker):
        await broker.publish(1, "numbers")
        await until(lambda: [(row.queue, row.priority) for row in place.rows()], [("totals", 0)])


async def test_answers_go_where_the_publisher_says(place: Place) -> None:
    broker = place.broker()
    got = collect(broker, "answers")
    publisher = broker.publisher("questions", reply_to="answers")

    @broker.subscriber("questions")
    async def answer(body: int) -> int:
        return body + 1

    async with running(broker):
        await publisher.publish(1)
        await until(lambda: got, [("answers", 2)])


# Publishers of batches


@pytest.mark.parametrize(
    ("returned", "published"),
    [
        ([1, 2, None], [b"1", b"2", b"null"]),
        ((0,), [b"0"]),
        ("text", [b"text"]),
        (b"bytes", [b"bytes"]),
        ({"id": 1}, [b'{"id":1}']),
        ([], []),
        (None, []),
    ],
)
@pytest.mark.parametrize("kind", ["plain", "response", "in a session"])
async def test_each_item_of_what_a_handler_returns_is_a_message(
    place: Place, returned: object, published: list[bytes], kind: str
) -> None:
    broker = place.broker()
    seen: list[str] = []

    class Note(BaseMiddleware):
        async def publish_scope(
            self, call_next: Callable[[PublishCommand], Awaitable[Any]], cmd: PublishCommand
        ) -> Any:
            seen.append(cmd.destination)
            return await call_next(cmd)

    broker.add_middleware(Note)

    @broker.subscriber("orders", transactional=kind == "in a session")
    @broker.publisher("parcels", batch=True, headers={"from": "orders"})
    async def split(body: int, message: OutboxMessage) -> object:
        session = message.session
        return returned if kind == "plain" else OutboxResponse(returned, session=session)

    await place.broker().publish(1, "orders")
    async with running(broker):
        await until(lambda: [row.queue for row in place.rows()], ["parcels"] * len(published))

    assert [(row.payload, row.headers["from"]) for row in place.rows()] == [(body, "orders") for body in published]
    assert seen == (["parcels"] if published else [])


async def test_a_batch_of_replies_is_published_whole_or_not_at_all(place: Place) -> None:
    broker = place.broker()

    @broker.subscriber("orders", retry_strategy=NoRetry())
    @broker.publisher("parcels", batch=True)
    async def split(body: int) -> list[object]:
        return [1, object()]

    async with running(broker):
        await broker.publish(1, "orders")
        await until(lambda: len(place.rows(place.tables.dead_letters)), 1)

    assert place.rows() == []


async def test_a_failed_handler_replies_nothing(place: Place) -> None:
    broker = place.broker()

    @broker.subscriber("numbers", retry_strategy=NoRetry())
    @broker.publisher("totals")
    async def add(body: int) -> int:
        raise ValueError(body)

    async with running(broker):
        await broker.publish(1, "numbers")
        await until(lambda: len(place.rows(place.tables.dead_letters)), 1)

    assert place.rows() == []


async def test_a_reply_that_cannot_be_published_is_a_failure(place: Place) -> None:
    broker = place.broker()

    @broker.subscriber("numbers", retry_strategy=NoRetry())
    @broker.publisher("totals")
    async def add(body: int) -> object:
        return object()

    async with running(broker):
        await broker.publish(1, "numbers")
        await until(
            lambda: [row.last_exception for row in place.rows(place.tables.dead_letters)],
            [
                "CannotEncode: cannot encode object: object is not JSON; pass a dict, a dataclass, a pydantic model or bytes"
            ],
        )


async def test_replies_are_allowed_whatever_the_broker_requires_of_publishes(place: Place) -> None:
    broker = place.broker(require_transaction="error")
    got = collect(broker, "totals", "answers")

    @broker.subscriber("numbers")
    @broker.publisher("totals")
    async def add(body: int) -> int:
        return body

    async with running(broker):
        await broker.publish(1, "numbers", standalone=True, reply_to="answers")
        await until(lambda: sorted(got), [("answers", 1), ("totals", 1)])


# Answers


@pytest.mark.parametrize("sync", [False, True])
async def test_an_answer_goes_to_reply_to(both: Place, sync: bool) -> None:
    broker = both.broker()
    got = collect(broker, "answers")

    if sync:

        @broker.subscriber("questions")
        def answer(body: int) -> int:
            return body + 1
    else:

        @broker.subscriber("questions")
        async def answer(body: int) -> int:
            return body + 1

    async with running(broker):
        await broker.publish(1, "questions", reply_to="answers")
        await until(lambda: got, [("answers", 2)])


async def test_a_subscriber_without_replies_answers_nobody(place: Place) -> None:
    broker = place.broker()

    @broker.subscriber("questions", no_reply=True)
    async def answer(body: int) -> int:
        return body + 1

    async with running(broker):
        await broker.publish(1, "questions", reply_to="answers")
        await until(place.rows, [])


# Responses that choose


@pytest.mark.parametrize("sync", [False, True])
async def test_a_response_goes_where_it_says(both: Place, sync: bool) -> None:
    broker = both.broker()

    def respond(body: int) -> OutboxResponse:
        return OutboxResponse(
            {"id": body}, queue="chosen", key="k", priority=2, headers={"tenant": "acme"}, reply_to="later"
        )

    if sync:

        @broker.subscriber("orders")
        def handle(body: int) -> OutboxResponse:
            return respond(body)
    else:

        @broker.subscriber("orders")
        async def handle(body: int) -> OutboxResponse:
            return respond(body)

    async with running(broker):
        await broker.publish(7, "orders", correlation_id="c")
        await until(lambda: [row.queue for row in both.rows()], ["chosen"])

    (row,) = both.rows()
    assert (row.payload, row.key, row.priority) == (b'{"id":7}', "k", 2)
    assert row.headers == {
        "tenant": "acme",
        "content-type": "application/json",
        "correlation_id": "c",
        "reply_to": "later",
    }


async def test_a_chosen_queue_comes_beside_publishers_and_answers(place: Place) -> None:
    broker = place.broker()
    got = collect(broker, "chosen", "stacked", "answers")

    @broker.subscriber("orders")
    @broker.publisher("stacked")
    async def handle(body: int) -> OutboxResponse:
        return OutboxResponse(body, queue="chosen")

    async with running(broker):
        await broker.publish(7, "orders", reply_to="answers")
        await until(lambda: sorted(got), [("answers", 7), ("chosen", 7), ("stacked", 7)])
        await until(place.rows, [])


async def test_publish_middlewares_see_a_chosen_reply_once(place: Place) -> None:
    seen: list[str] = []

    class Note(BaseMiddleware):
        async def publish_scope(
            self, call_next: Callable[[PublishCommand], Awaitable[Any]], cmd: PublishCommand
        ) -> Any:
            seen.append(cmd.destination)
            return await call_next(cmd)

    broker = place.broker(middlewares=[Note])

    @broker.subscriber("orders")
    async def handle(body: int) -> OutboxResponse:
        return OutboxResponse(body, queue="chosen")

    async with running(broker):
        await broker.publish(7, "orders")
        await until(lambda: seen, ["orders", "chosen"])


async def test_a_handler_that_is_called_as_a_function_publishes_nothing(place: Place) -> None:
    broker = place.broker()

    @broker.subscriber("orders")
    async def handle(body: int) -> OutboxResponse:
        return OutboxResponse(body, queue="chosen")

    @broker.subscriber("letters")
    def sync_handle(body: int) -> OutboxResponse:
        return OutboxResponse(body, queue="chosen")

    async with running(broker):
        response, sync_response = await handle(7), sync_handle(8)

    assert (response.body, sync_response.body) == (7, 8)
    assert place.rows() == []


# In the handler's transaction


def with_async_session(place: Place, end: str) -> Callable[[], AsyncIterator[AsyncSession]]:
    async def session() -> AsyncIterator[AsyncSession]:
        async with AsyncSession(place.engine) as session:
            yield session
            if end == "commit":
                await session.commit()

    return session


def with_async_connection(place: Place, end: str) -> Callable[[], AsyncIterator[AsyncConnection]]:
    async def connection() -> AsyncIterator[AsyncConnection]:
        async with place.engine.connect() as connection:
            yield connection
            if end == "commit":
                await connection.commit()

    return connection


def with_sync_session(place: Place, end: str) -> Callable[[], Iterator[Session]]:
    def session() -> Iterator[Session]:
        with Session(place.sync_engine) as session:
            yield session
            if end == "commit":
                session.commit()

    return session


@pytest.mark.parametrize("with_session", [with_async_session, with_async_connection])
@pytest.mark.parametrize("chosen", ["chosen", ""])
@pytest.mark.parametrize("end", ["commit", "rollback"])
async def test_a_response_with_a_session_is_committed_by_the_dependency_that_opened_it(
    both: Place, with_session: Any, chosen: str, end: str
) -> None:
    broker = both.broker()
    handled = asyncio.Event()

    @broker.subscriber("orders")
    @broker.publisher("stacked")
    async def handle(body: int, session: Annotated[Any, Depends(with_session(both, end))]) -> OutboxResponse:
        handled.set()
        return OutboxResponse(body, queue=chosen, session=session)

    async with running(broker):
        await broker.publish(7, "orders", reply_to="answers")
        await handled.wait()
        await until(lambda: "orders" in [row.queue for row in both.rows()], False)

    expected = sorted(queue for queue in ("answers", chosen, "stacked") if queue) if end == "commit" else []
    assert sorted(row.queue for row in both.rows()) == expected


@pytest.mark.parametrize("chosen", ["chosen", ""])
@pytest.mark.parametrize("end", ["commit", "rollback"])
async def test_a_sync_handlers_response_is_committed_by_the_sync_dependency(both: Place, chosen: str, end: str) -> None:
    broker = both.broker()
    handled = asyncio.Event()
    loop = asyncio.get_running_loop()

    @broker.subscriber("orders")
    @broker.publisher("stacked")
    def handle(
        body: int, session: Annotated[Session, Depends(with_sync_session(both, end), cast=False)]
    ) -> OutboxResponse:
        loop.call_soon_threadsafe(handled.set)
        return OutboxResponse(body, queue=chosen, session=session)

    async with running(broker):
        await broker.publish(7, "orders", reply_to="answers")
        await handled.wait()
        await until(lambda: "orders" in [row.queue for row in both.rows()], False)

    expected = sorted(queue for queue in ("answers", chosen, "stacked") if queue) if end == "commit" else []
    assert sorted(row.queue for row in both.rows()) == expected


async def test_the_domains_writes_and_their_follow_on_commit_together_or_not_at_all(both: Place) -> None:
    Base.metadata.create_all(both.sync_engine)
    broker = both.broker()

    async def transaction() -> AsyncIterator[AsyncSession]:
        async with AsyncSession(both.engine) as session, session.begin():
            yield session

    @broker.subscriber("orders", retry_strategy=NoRetry())
    @broker.publisher("letters")
    async def handle(body: int, session: Annotated[AsyncSession, Depends(transaction)]) -> OutboxResponse:
        session.add(Order(id=body))
        await session.flush()
        return OutboxResponse(body if body != 2 else object(), session=session)

    async with running(broker):
        for number in (1, 2, 3):
            await broker.publish(number, "orders")
        await until(lambda: sorted(row.id for row in both.rows(ORDERS)), [1, 3])
        await until(lambda: len(both.rows(both.tables.dead_letters)), 1)

    assert sorted(row.payload for row in both.rows()) == [b"1", b"3"]


async def test_a_session_of_the_wrong_kind_fails_the_handler(place: Place) -> None:
    broker = place.broker()

    @broker.subscriber("orders", retry_strategy=NoRetry())
    async def handle(body: int) -> OutboxResponse:
        return OutboxResponse(body, queue="chosen", session=object())

    async with running(broker):
        await broker.publish(7, "orders")
        await until(
            lambda: [row.last_exception for row in place.rows(place.tables.dead_letters)],
            ["WrongType: session must be an AsyncSession or AsyncConnection, or None, got object"],
        )

    assert place.rows() == []
    assert issubclass(WrongType, TypeError)


async def test_a_retried_handler_publishes_its_response_once_for_each_commit(place: Place) -> None:
    broker = place.broker()

    @broker.subscriber("orders", retry_strategy=ConstantRetry(delay_seconds=0.01))
    async def handle(
        body: int,
        session: Annotated[AsyncSession, Depends(with_async_session(place, "commit"))],
        message: OutboxMessage,
    ) -> OutboxResponse:
        if message.attempt < 3:
            raise ValueError(body)
        return OutboxResponse(message.attempt, queue="chosen", session=session)

    async with running(broker):
        await broker.publish(7, "orders")
        await until(lambda: [(row.queue, row.payload) for row in place.rows()], [("chosen", b"3")])


# Headers and ids


async def test_inbound_headers_are_propagated_where_asked_for(place: Place) -> None:
    broker = place.broker()

    @broker.subscriber("orders", propagate_inbound_headers=True)
    @broker.publisher("stacked")
    async def handle(body: int) -> int:
        return body

    @broker.subscriber("letters", propagate_inbound_headers=True)
    async def respond(body: int) -> OutboxResponse:
        return OutboxResponse(body, queue="chosen", headers={"own": "yes"} if body == 2 else None)

    async with running(broker):
        await broker.publish(7, "orders", headers={"tenant": "acme"}, correlation_id="c", reply_to="answers")
        await broker.publish(1, "letters", headers={"tenant": "acme"}, correlation_id="c")
        await until(lambda: sorted(row.queue for row in place.rows()), ["answers", "chosen", "stacked"])
        await broker.publish(2, "letters", headers={"tenant": "acme"}, correlation_id="c")
        replies = ["answers", "chosen", "chosen", "stacked"]
        await until(lambda: sorted(row.queue for row in place.rows()), replies)

    ours = {"content-type": "application/json", "correlation_id": "c"}
    assert sorted((row.queue, row.headers) for row in place.rows()[:3]) == [
        ("answers", {"tenant": "acme", **ours}),
        ("chosen", {"tenant": "acme", **ours}),
        ("stacked", {"tenant": "acme", **ours}),
    ]
    assert place.rows()[3].headers == {"own": "yes", **ours}


async def test_inbound_headers_stay_behind_otherwise(place: Place) -> None:
    broker = place.broker()

    @broker.subscriber("orders")
    @broker.publisher("stacked")
    async def handle(body: int) -> int:
        return body

    async with running(broker):
        await broker.publish(7, "orders", headers={"tenant": "acme"}, correlation_id="c")
        await until(lambda: [row.queue for row in place.rows()], ["stacked"])

    assert place.rows()[0].headers == {"content-type": "application/json", "correlation_id": "c"}


async def test_an_id_generator_makes_the_correlation_ids_of_publishes_without_one(place: Place) -> None:
    numbers = iter(range(1, 100))
    broker = place.broker(id_generator=lambda: f"c-{next(numbers)}")

    @broker.subscriber("orders")
    @broker.publisher("stacked")
    async def handle(body: int) -> int:
        return body

    await broker.publish(1, "a")
    await broker.publish_batch(2, 3, queue="a")
    await broker.publisher("a").publish(4)
    await broker.publish(5, "a", correlation_id="mine")
    with Session(place.sync_engine) as session, session.begin():
        broker.publish_sync(6, "a", session=session)
    async with running(broker):
        await broker.publish(7, "orders")
        await until(lambda: [row.queue for row in place.rows()][6:], ["stacked"])

    assert [(row.queue, row.headers["correlation_id"]) for row in place.rows()] == [
        ("a", "c-1"),
        ("a", "c-2"),
        ("a", "c-2"),
        ("a", "c-3"),
        ("a", "mine"),
        ("a", "c-4"),
        ("stacked", "c-5"),
    ]


async def test_without_an_id_generator_the_message_id_is_the_correlation_id(place: Place) -> None:
    broker = place.broker()

    @broker.subscriber("orders")
    @broker.publisher("stacked")
    async def handle(body: int) -> int:
        return body

    async with running(broker):
        await broker.publish(7, "orders", message_id="0190163d-8694-739b-aea5-966c26f8ad91")
        await until(lambda: [row.queue for row in place.rows()], ["stacked"])

    (row,) = place.rows()
    assert row.headers["correlation_id"] == "0190163d-8694-739b-aea5-966c26f8ad91"
    assert str(row.message_id) != "0190163d-8694-739b-aea5-966c26f8ad91"
