"""What a handler gets: bodies, dependencies, context; and how many run at once."""

import asyncio
import json
import threading
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.util import find_spec
from logging import Logger as StandardLogger
from typing import Annotated, Any
from uuid import uuid4

import pytest
from faststream import Context as UpstreamContext
from faststream import Depends, FastStream
from faststream.exceptions import SetupError
from faststream.message import StreamMessage
from pydantic import BaseModel, NonNegativeFloat

from outbox_core.faststream import OutboxBroker as CoreBroker
from outbox_core.faststream import OutboxMessage as CoreMessage
from outbox_core.faststream.annotations import Context, ContextRepository, Logger, OutboxBroker, OutboxMessage
from outbox_core.faststream.annotations import FastStream as Application
from outbox_core.retry import ConstantRetry, NoRetry
from outbox_sqlalchemy import OutboxBroker as SqlAlchemyBroker
from outbox_sqlalchemy import OutboxRouter
from tests.places import Place, running, until

HINTS = find_spec("faststream._internal.endpoint.subscriber.hints") is not None


class Order(BaseModel):
    id: int
    price: NonNegativeFloat = 1.5


# Bodies


async def test_a_dict_arrives_as_a_dict(both: Place) -> None:
    broker = both.broker()
    got: asyncio.Queue[object] = asyncio.Queue()

    @broker.subscriber("orders")
    async def handle(body: dict[str, Any]) -> None:
        got.put_nowait(body)

    async with running(broker):
        await broker.publish({"id": 7, "name": "Zoë"}, "orders")
        assert await got.get() == {"id": 7, "name": "Zoë"}
        await until(both.rows, [])


async def test_a_model_arrives_as_a_model(both: Place) -> None:
    broker = both.broker()
    got: asyncio.Queue[Order] = asyncio.Queue()

    @broker.subscriber("orders")
    async def handle(order: Order) -> None:
        got.put_nowait(order)

    async with running(broker):
        await broker.publish(Order(id=7, price=2.5), "orders")
        await broker.publish({"id": "8"}, "orders")
        assert await got.get() == Order(id=7, price=2.5)
        assert await got.get() == Order(id=8, price=1.5)


async def test_bytes_arrive_as_bytes(both: Place) -> None:
    broker = both.broker()
    got: asyncio.Queue[bytes] = asyncio.Queue()

    @broker.subscriber("orders")
    async def handle(body: bytes) -> None:
        got.put_nowait(body)

    async with running(broker):
        await broker.publish(b"\x00\xff raw", "orders")
        await broker.publish(b"", "orders")
        assert await got.get() == b"\x00\xff raw"
        assert await got.get() == b""


async def test_bytes_without_a_content_type_that_are_json_arrive_parsed_as_upstream_does(place: Place) -> None:
    broker = place.broker()
    got: asyncio.Queue[tuple[object, bytes]] = asyncio.Queue()

    @broker.subscriber("orders")
    async def handle(body: object, message: OutboxMessage) -> None:
        got.put_nowait((body, message.body))

    async with running(broker):
        await broker.publish(b'{"id": 7}', "orders")
        assert await got.get() == ({"id": 7}, b'{"id": 7}')


async def test_text_arrives_as_text_even_if_it_looks_like_json(both: Place) -> None:
    broker = both.broker()
    got: asyncio.Queue[str] = asyncio.Queue()

    @broker.subscriber("orders")
    async def handle(body: str) -> None:
        got.put_nowait(body)

    async with running(broker):
        await broker.publish("Zoë ☃", "orders")
        await broker.publish('{"id": 7}', "orders")
        assert await got.get() == "Zoë ☃"
        assert await got.get() == '{"id": 7}'


@pytest.mark.parametrize("body", [None, True, 0, 2.5, [], [1, "two", None], {}, {"a": {"b": [1]}}])
async def test_plain_data_arrives_as_it_was(place: Place, body: object) -> None:
    broker = place.broker()
    got: asyncio.Queue[object] = asyncio.Queue()

    @broker.subscriber("orders")
    async def handle(body: object) -> None:
        got.put_nowait(body)

    async with running(broker):
        await broker.publish(body, "orders")
        assert await got.get() == body


async def test_the_fields_of_a_dict_can_be_arguments(place: Place) -> None:
    broker = place.broker()
    got: asyncio.Queue[object] = asyncio.Queue()

    @broker.subscriber("orders")
    async def handle(id: int, name: str = "nobody") -> None:
        got.put_nowait((id, name))

    async with running(broker):
        await broker.publish({"id": "7", "name": "Zoë"}, "orders")
        await broker.publish({"id": 8}, "orders")
        assert await got.get() == (7, "Zoë")
        assert await got.get() == (8, "nobody")


async def test_the_items_of_a_list_can_be_arguments(place: Place) -> None:
    broker = place.broker()
    got: asyncio.Queue[object] = asyncio.Queue()

    @broker.subscriber("orders")
    async def handle(first: int, second: int, *rest: tuple[int, ...]) -> None:
        got.put_nowait((first, second, rest))

    async with running(broker):
        await broker.publish([1, 2.0, 3.0, "4"], "orders")
        assert await got.get() == (1, 2, (3, 4))


async def test_a_handler_without_parameters_takes_every_message(place: Place) -> None:
    broker = place.broker()
    handled: list[None] = []

    @broker.subscriber("orders")
    async def handle() -> None:
        handled.append(None)

    async with running(broker):
        for body in ({"id": 7}, [1, 2], "text", b"bytes", None):
            await broker.publish(body, "orders")
        await until(lambda: (len(handled), place.rows()), (5, []))


@dataclass
class Point:
    x: int


NOON = datetime(2026, 11, 25, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    ("body", "wanted", "expected"),
    [
        ("hello", str, "hello"),
        (b"hello", bytes, b"hello"),
        (1, int, 1),
        (1, float, 1.0),
        (1.5, float, 1.5),
        (False, bool, False),
        ({"m": 1}, dict[str, int], {"m": 1}),
        ([1, 2], list[int], [1, 2]),
        (NOON, datetime, NOON),
        (Point(1), Point, Point(1)),
        (Point(1), dict, {"x": 1}),
        ({"x": 1}, Point, Point(1)),
        (b'{"x": 1}', Point, Point(1)),
        (Order(id=1), Order, Order(id=1)),
        (Order(id=1), dict, {"id": 1, "price": 1.5}),
        ({"id": 1}, Order, Order(id=1)),
        (b'{"id": 1}', Order, Order(id=1)),
    ],
    ids=repr,
)
async def test_a_body_arrives_as_what_the_handler_asks_for(
    place: Place, body: object, wanted: type, expected: object
) -> None:
    broker = place.broker()
    got: asyncio.Queue[object] = asyncio.Queue()

    async def handle(body: object) -> None:
        got.put_nowait(body)

    handle.__annotations__["body"] = wanted
    broker.subscriber("orders")(handle)
    async with running(broker):
        await broker.publish(body, "orders")
        arrived = await got.get()

    assert (arrived, type(arrived)) == (expected, type(expected))


async def test_a_body_that_is_not_what_the_handler_wants_is_retried_and_then_buried(place: Place) -> None:
    broker = place.broker()

    @broker.subscriber("orders", retry_strategy=ConstantRetry(delay_seconds=0.01, max_attempts=2))
    async def handle(order: Order) -> None: ...

    async with running(broker):
        await broker.publish({"id": 1, "price": -1}, "orders")
        await until(lambda: len(place.rows(place.tables.dead_letters)), 1)

    (grave,) = place.rows(place.tables.dead_letters)
    assert (grave.failure_reason, grave.attempts_count) == ("retry_terminal", 2)
    assert grave.last_exception.startswith("ValidationError: 1 validation error")


async def test_an_undecodable_body_is_buried_at_the_first_try(both: Place) -> None:
    broker = both.broker()
    handled: list[object] = []

    @broker.subscriber("orders")
    async def handle(body: object) -> None:
        handled.append(body)

    async with running(broker):
        await broker.publish(b"{not json", "orders", headers={"content-type": "application/json"})
        await broker.publish(b"\xff\xfe", "orders", headers={"content-type": "text/plain"})
        await broker.publish("fine", "orders")
        await until(lambda: handled, ["fine"])
        await until(lambda: len(both.rows(both.tables.dead_letters)), 2)

    first, second = both.rows(both.tables.dead_letters)
    assert (first.failure_reason, first.attempts_count) == ("undecodable", 1)
    assert first.last_exception.startswith("Undecodable: the body is not application/json: ")
    assert (second.failure_reason, second.payload) == ("undecodable", b"\xff\xfe")
    assert second.last_exception.startswith("Undecodable: the body is not text/plain: ")


# Batches


async def test_a_batch_subscriber_gets_lists(both: Place) -> None:
    broker = both.broker()
    got: list[list[Order]] = []

    @broker.subscriber("orders", batch=True, max_records=3)
    async def handle(orders: list[Order]) -> None:
        got.append(orders)

    await broker.publish_batch(*({"id": number} for number in range(7)), queue="orders")
    async with running(broker):
        await until(lambda: [order.id for orders in got for order in orders], [0, 1, 2, 3, 4, 5, 6])
        await until(both.rows, [])

    assert [len(orders) for orders in got] == [3, 3, 1]


async def test_a_batch_knows_the_headers_of_each_message(place: Place) -> None:
    broker = place.broker()
    got: asyncio.Queue[list[str]] = asyncio.Queue()

    @broker.subscriber("orders", batch=True)
    async def handle(bodies: list[int], message: OutboxMessage) -> None:
        got.put_nowait([headers["number"] for headers in message.batch_headers])

    for number in range(3):
        await broker.publish(number, "orders", headers={"number": str(number)})
    async with running(broker):
        assert await got.get() == ["0", "1", "2"]


async def test_a_batch_is_retried_as_a_whole(place: Place) -> None:
    broker = place.broker()
    got: list[list[int]] = []

    @broker.subscriber("orders", batch=True, retry_strategy=ConstantRetry(delay_seconds=0.01))
    async def handle(numbers: list[int]) -> None:
        got.append(sorted(numbers))
        if len(got) == 1:
            raise ValueError("first time")

    await broker.publish_batch(1, 2, queue="orders")
    async with running(broker):
        await until(place.rows, [])

    assert got == [[1, 2], [1, 2]]


async def test_an_undecodable_body_does_not_take_its_batch_to_the_grave(both: Place) -> None:
    broker = both.broker()
    got: list[int] = []

    @broker.subscriber("orders", batch=True)
    async def handle(numbers: list[int]) -> None:
        got.extend(numbers)

    await broker.publish(1, "orders")
    await broker.publish(b"{", "orders", headers={"content-type": "application/json"})
    await broker.publish(2, "orders")
    async with running(broker):
        await until(both.rows, [])

    assert sorted(got) == [1, 2]
    graves = both.rows(both.tables.dead_letters)
    assert [(row.payload, row.failure_reason) for row in graves] == [(b"{", "undecodable")]


async def test_a_body_that_is_not_what_the_handler_wants_fails_its_whole_batch(place: Place) -> None:
    broker = place.broker()
    got: list[list[Order]] = []

    @broker.subscriber("orders", batch=True, retry_strategy=ConstantRetry(delay_seconds=0.01, max_attempts=2))
    async def handle(orders: list[Order]) -> None:
        got.append(orders)

    await broker.publish_batch({"id": 1}, {"id": "one"}, queue="orders")
    async with running(broker):
        await until(lambda: len(place.rows(place.tables.dead_letters)), 2)

    assert got == []
    graves = place.rows(place.tables.dead_letters)
    assert [(row.failure_reason, row.attempts_count) for row in graves] == [("retry_terminal", 2)] * 2


# Several handlers


async def test_filters_choose_the_handler(place: Place) -> None:
    broker = place.broker()
    got: list[tuple[str, object]] = []
    subscriber = broker.subscriber("orders", retry_strategy=NoRetry())

    async def is_new(message: StreamMessage[Any]) -> bool:
        return message.headers.get("kind") == "new"

    @subscriber(filter=is_new)
    async def handle_new(body: int) -> None:
        got.append(("new", body))

    @subscriber(filter=lambda message: message.headers.get("kind") == "old")
    def handle_old(body: int) -> None:
        got.append(("old", body))

    async with running(broker):
        await broker.publish(1, "orders", headers={"kind": "new"})
        await broker.publish(2, "orders", headers={"kind": "old"})
        await until(lambda: sorted(got), [("new", 1), ("old", 2)])
        await broker.publish({"card": "4111"}, "orders", headers={"kind": "odd"})
        await until(lambda: len(place.rows(place.tables.dead_letters)), 1)

    (grave,) = place.rows(place.tables.dead_letters)
    assert grave.failure_reason == "retry_terminal"
    assert grave.last_exception.startswith("SubscriberNotFound: ")
    assert grave.last_exception.endswith(f"Delivery(id=3, queue='orders', message_id='{grave.message_id}')")


async def test_a_handler_without_a_filter_takes_what_the_others_leave(place: Place) -> None:
    broker = place.broker()
    got: list[tuple[str, object]] = []
    subscriber = broker.subscriber("orders")

    @subscriber(filter=lambda message: message.content_type == "application/json")
    async def handle_json(body: object) -> None:
        got.append(("json", body))

    @subscriber
    async def handle_rest(body: object) -> None:
        got.append(("rest", body))

    async with running(broker):
        await broker.publish({"id": 7}, "orders")
        await broker.publish("text", "orders")
        await until(lambda: sorted(got), [("json", {"id": 7}), ("rest", "text")])


async def test_a_handler_can_be_added_to_a_subscriber_that_runs(place: Place) -> None:
    broker = place.broker()
    got: list[tuple[str, int]] = []
    subscriber = broker.subscriber("orders", persistent=False, retry_strategy=NoRetry())

    @subscriber(filter=lambda message: message.headers.get("kind") == "new")
    async def first(body: int) -> None:
        got.append(("first", body))

    async with running(broker):
        await subscriber.start()
        await broker.publish(1, "orders", headers={"kind": "new"})
        await until(lambda: got, [("first", 1)])

        @subscriber
        async def late(body: int) -> None:
            got.append(("late", body))

        await broker.publish("2", "orders")
        await broker.publish(3, "orders", headers={"kind": "new"})
        await until(lambda: sorted(got), [("first", 1), ("first", 3), ("late", 2)])


async def test_one_function_can_serve_several_subscribers(place: Place) -> None:
    broker = place.broker()
    got: list[tuple[str, int]] = []

    @broker.subscriber("orders")
    @broker.subscriber("letters")
    async def handle(body: int, message: OutboxMessage) -> None:
        got.append((message.queue, body))

    async with running(broker):
        await broker.publish(1, "orders")
        await broker.publish(2, "letters")
        await until(lambda: sorted(got), [("letters", 2), ("orders", 1)])


async def test_one_subscriber_serves_several_queues(place: Place) -> None:
    broker = place.broker()
    got: list[tuple[str, int]] = []

    @broker.subscriber(["orders", "letters"])
    async def handle(body: int, message: OutboxMessage) -> None:
        got.append((message.queue, body))

    async with running(broker):
        await broker.publish(1, "orders")
        await broker.publish(2, "letters")
        await until(lambda: sorted(got), [("letters", 2), ("orders", 1)])


# Synchronous handlers


async def test_a_sync_handler_runs_in_another_thread(both: Place) -> None:
    broker = both.broker()
    got: list[tuple[int, bool]] = []

    @broker.subscriber("orders")
    def handle(body: int) -> None:
        got.append((body, threading.current_thread() is threading.main_thread()))

    async with running(broker):
        await broker.publish(7, "orders")
        await until(lambda: got, [(7, False)])
        await until(both.rows, [])


async def test_a_sync_handlers_failure_is_a_failure(place: Place) -> None:
    broker = place.broker()
    attempts: list[int] = []

    @broker.subscriber("orders", retry_strategy=ConstantRetry(delay_seconds=0.01))
    def handle(body: int, message: OutboxMessage) -> None:
        attempts.append(message.attempt)
        if message.attempt < 3:
            raise ValueError(body)

    async with running(broker):
        await broker.publish(7, "orders")
        await until(place.rows, [])

    assert attempts == [1, 2, 3]


async def test_an_object_with_an_async_call_is_a_handler(place: Place) -> None:
    broker = place.broker()
    got: list[int] = []

    class Handler:
        async def __call__(self, body: int) -> None:
            got.append(body)

    broker.subscriber("orders")(Handler())
    async with running(broker):
        await broker.publish(7, "orders")
        await until(lambda: got, [7])


# Dependencies and context


async def test_dependencies_are_solved_and_closed_for_each_message(both: Place) -> None:
    broker = both.broker()
    events: list[str] = []

    async def resource() -> AsyncIterator[str]:
        events.append("open")
        try:
            yield "resource"
        finally:
            events.append("close")

    def length(body: str) -> int:
        return len(body)

    @broker.subscriber("orders")
    async def handle(body: str, got: Annotated[str, Depends(resource)], size: Annotated[int, Depends(length)]) -> None:
        events.append(f"{body}:{got}:{size}")

    async with running(broker):
        await broker.publish("four", "orders")
        await until(lambda: events, ["open", "four:resource:4", "close"])


async def test_dependencies_of_broker_and_subscriber_run_for_each_message(place: Place) -> None:
    events: list[str] = []

    async def of_broker() -> None:
        events.append("broker")

    async def of_subscriber() -> None:
        events.append("subscriber")

    broker = place.broker(dependencies=[Depends(of_broker)])

    @broker.subscriber("orders", dependencies=[Depends(of_subscriber)])
    async def handle(body: int) -> None:
        events.append("handler")

    async with running(broker):
        await broker.publish(1, "orders")
        await until(lambda: events, ["broker", "subscriber", "handler"])


def worker_threads() -> set[threading.Thread]:
    """The threads in which FastStream has run something; they stay for a while."""
    return {thread for thread in threading.enumerate() if thread.name == "AnyIO worker thread"}


async def test_our_annotations_resolve_without_a_thread(place: Place) -> None:
    broker = place.broker(logger=StandardLogger("test"))
    application = FastStream(broker)
    got: list[tuple[Any, ...]] = []

    @broker.subscriber("orders")
    async def handle(
        body: int,
        logger: Logger,
        message: OutboxMessage,
        its_broker: OutboxBroker,
        context: ContextRepository,
        queue: Annotated[str, Context("message.queue")],
        absent: Annotated[str, Context("nothing", default="default")],
        app: Application,
    ) -> None:
        got.append((body, logger, message, its_broker, context.get("broker"), queue, absent, app))

    before = worker_threads()
    application.context.set_global("app", application)
    async with running(broker):
        await broker.publish(7, "orders")
        await until(lambda: len(got), 1)
        started = worker_threads() - before

    body, logger, message, its_broker, from_context, queue, absent, app = got[0]
    assert isinstance(logger, StandardLogger)
    assert isinstance(message, CoreMessage)
    assert isinstance(its_broker, CoreBroker)
    assert (body, its_broker, queue, absent, app) == (7, broker, "orders", "default", application)
    assert from_context is broker
    assert started == set()


async def test_upstreams_context_works_beside_ours_at_the_price_of_a_thread(place: Place) -> None:
    broker = place.broker()
    got: list[str] = []

    @broker.subscriber("orders")
    async def handle(body: int, message: Annotated[CoreMessage, UpstreamContext("message")]) -> None:
        got.append(message.queue)

    before = worker_threads()
    async with running(broker):
        await broker.publish(7, "orders")
        await until(lambda: got, ["orders"])
        started = worker_threads() - before

    assert len(started) == 1


async def test_the_delivery_after_a_death_is_counted_in_the_message_too(both: Place) -> None:
    """The first one is not known; see docs/decisions/0003-who-is-blamed.md."""
    broker = both.broker()
    got: list[tuple[int, int]] = []

    @broker.subscriber("orders")
    async def handle(body: int, message: OutboxMessage) -> None:
        got.append((message.attempt, message.deliveries))

    await broker.publish(7, "orders")
    token = uuid4()
    both.run(f"UPDATE outbox SET acquired_token = '{token if both.is_postgresql else token.hex}'")
    async with running(broker):
        await until(lambda: (got, both.rows()), ([(1, 1)], []))


async def test_a_message_tells_what_it_is(both: Place) -> None:
    broker = both.broker()
    got: asyncio.Queue[CoreMessage] = asyncio.Queue()

    @broker.subscriber("orders")
    async def handle(body: int, message: OutboxMessage) -> None:
        got.put_nowait(message)

    async with running(broker):
        await broker.publish(
            7,
            "orders",
            key="k",
            priority=3,
            headers={"tenant": "acme"},
            correlation_id="c",
            reply_to="",
            message_id="0190163d-8694-739b-aea5-966c26f8ad91",
        )
        message = await got.get()

    assert (message.queue, message.key, message.priority, message.attempt, message.deliveries) == (
        "orders",
        "k",
        3,
        1,
        1,
    )
    assert (message.message_id, message.correlation_id, message.body) == (
        "0190163d-8694-739b-aea5-966c26f8ad91",
        "c",
        b"7",
    )
    assert message.headers == {"tenant": "acme", "content-type": "application/json", "correlation_id": "c"}
    assert message.lease_lost is False


def ask_for_message(message: CoreMessage) -> None: ...
def ask_for_broker(broker: SqlAlchemyBroker) -> None: ...
def ask_for_either(broker: CoreBroker | None) -> None: ...
def ask_through_a_dependency(value: Annotated[None, Depends(ask_for_message)]) -> None: ...


@pytest.mark.skipif(not HINTS, reason="FastStream looks at them since 0.7.8")
@pytest.mark.parametrize(
    ("handler", "argument", "annotation"),
    [
        (ask_for_message, "message", "OutboxMessage"),
        (ask_for_broker, "broker", "OutboxBroker"),
        (ask_for_either, "broker", "OutboxBroker"),
        (ask_through_a_dependency, "message", "OutboxMessage"),
    ],
)
async def test_a_class_where_an_annotation_is_meant_is_refused_at_the_start(
    place: Place, handler: Any, argument: str, annotation: str
) -> None:
    broker, router = place.broker(), OutboxRouter()
    router.subscriber("orders")(handler)
    broker.include_router(router)

    with pytest.raises(SetupError) as caught:
        await broker.start()

    assert str(caught.value).startswith(f"`{argument}` ")
    assert f"instead: `outbox_core.faststream.annotations.{annotation}`" in str(caught.value)
    assert broker.running is False


async def test_without_apply_types_classes_are_not_looked_at(place: Place) -> None:
    broker = place.broker(apply_types=False)
    got: list[object] = []

    @broker.subscriber("orders")
    async def handle(message: CoreMessage) -> None:
        got.append(message)

    async with running(broker):
        await broker.publish(7, "orders")
        await until(lambda: got, [7])


# Parsers and decoders


async def test_a_custom_decoder_replaces_ours(place: Place) -> None:
    async def decode(message: StreamMessage[Any]) -> object:
        return json.loads(message.body[::-1])

    broker = place.broker(decoder=decode)
    got: list[object] = []

    @broker.subscriber("orders")
    async def handle(body: object) -> None:
        got.append(body)

    async with running(broker):
        await broker.publish(b"]2,1[", "orders")
        await until(lambda: got, [[1, 2]])


async def test_a_custom_parser_can_call_ours(place: Place) -> None:
    async def parse(delivery: Any, original: Any) -> CoreMessage:
        message: CoreMessage = await original(delivery)
        message.headers["parsed"] = "yes"
        return message

    broker = place.broker()
    got: list[str] = []

    @broker.subscriber("orders", parser=parse)
    async def handle(body: int, message: OutboxMessage) -> None:
        got.append(message.headers["parsed"])

    async with running(broker):
        await broker.publish(1, "orders")
        await until(lambda: got, ["yes"])


async def test_a_synchronous_decoder_of_one_subscriber_leaves_the_others_alone(place: Place) -> None:
    def decode(message: StreamMessage[Any]) -> object:
        return json.loads(message.body[::-1])

    broker = place.broker()
    got: list[tuple[str, object]] = []

    @broker.subscriber("orders", decoder=decode)
    @broker.subscriber("letters")
    async def handle(body: object, message: OutboxMessage) -> None:
        got.append((message.queue, body))

    async with running(broker):
        await broker.publish([1, 2], "letters")
        await broker.publish(b"]2,1[", "orders")
        await until(lambda: sorted(got), [("letters", [1, 2]), ("orders", [1, 2])])


async def test_each_handler_of_a_subscriber_may_have_its_own_parser(place: Place) -> None:
    parsed: list[bytes] = []

    async def parse(delivery: Any, original: Any) -> CoreMessage:
        message: CoreMessage = await original(delivery)
        parsed.append(message.body)
        return message

    broker = place.broker()
    got: list[tuple[str, object]] = []
    subscriber = broker.subscriber("orders")

    @subscriber(filter=lambda message: message.content_type == "application/json")
    async def handle_json(body: object) -> None:
        got.append(("json", body))

    @subscriber(parser=parse)
    async def handle_rest(body: object) -> None:
        got.append(("rest", body))

    async with running(broker):
        await broker.publish({"id": 7}, "orders")
        await broker.publish("text", "orders")
        await until(lambda: sorted(got), [("json", {"id": 7}), ("rest", "text")])

    assert parsed == [b"text"]


@pytest.mark.parametrize("where", ["broker", "router", "subscriber"])
async def test_the_nearest_parser_and_decoder_win(place: Place, where: str) -> None:
    used: list[str] = []

    def noting(name: str) -> dict[str, Any]:
        async def parse(delivery: Any, original: Any) -> Any:
            used.append(f"parser of {name}")
            return await original(delivery)

        async def decode(message: Any, original: Any) -> Any:
            used.append(f"decoder of {name}")
            return await original(message)

        return {"parser": parse, "decoder": decode}

    broker = place.broker(**noting("broker"))
    router = OutboxRouter(**noting("router") if where in ("router", "subscriber") else {})
    subscriber = router.subscriber("orders", **noting("subscriber") if where == "subscriber" else {})
    handled: list[int] = []

    @subscriber
    async def handle(body: int) -> None:
        handled.append(body)

    broker.include_router(router)
    async with running(broker):
        await broker.publish(1, "orders")
        await until(lambda: handled, [1])

    assert used == [f"parser of {where}", f"decoder of {where}"]


async def test_a_parser_that_fails_is_a_failure(place: Place) -> None:
    async def parse(delivery: Any) -> CoreMessage:
        raise RuntimeError("unparsable")

    broker = place.broker()

    @broker.subscriber("orders", parser=parse, retry_strategy=NoRetry())
    async def handle(body: int) -> None: ...

    async with running(broker):
        await broker.publish(1, "orders")
        await until(
            lambda: [row.last_exception for row in place.rows(place.tables.dead_letters)], ["RuntimeError: unparsable"]
        )


# At once


@pytest.mark.parametrize("max_workers", [1, 4])
async def test_as_many_handlers_run_at_once_as_there_are_workers(both: Place, max_workers: int) -> None:
    broker = both.broker()
    now, most, done = 0, 0, 0
    full, release = asyncio.Event(), asyncio.Event()

    @broker.subscriber("orders", max_workers=max_workers)
    async def handle(body: int) -> None:
        nonlocal now, most, done
        now += 1
        most = max(most, now)
        if now == max_workers:
            full.set()
        await release.wait()
        now -= 1
        done += 1

    await broker.publish_batch(*range(12), queue="orders")
    async with running(broker):
        await full.wait()
        release.set()
        await until(both.rows, [])

    assert (most, done) == (max_workers, 12)


async def test_a_slow_queue_does_not_hold_up_another(place: Place) -> None:
    broker = place.broker()
    got: list[int] = []
    release = asyncio.Event()

    @broker.subscriber("slow")
    async def slow(body: int) -> None:
        await release.wait()

    @broker.subscriber("fast")
    async def fast(body: int) -> None:
        got.append(body)

    await broker.publish_batch(1, 2, 3, queue="slow")
    async with running(broker):
        await broker.publish_batch(4, 5, queue="fast")
        await until(lambda: got, [4, 5])
        release.set()


async def test_a_higher_priority_is_handled_first(both: Place) -> None:
    broker = both.broker()
    got: list[str] = []

    @broker.subscriber("orders")
    async def handle(body: str) -> None:
        got.append(body)

    await broker.publish("low", "orders", priority=-1)
    await broker.publish("normal", "orders")
    await broker.publish("high", "orders", priority=5)
    async with running(broker):
        await until(lambda: got, ["high", "normal", "low"])
