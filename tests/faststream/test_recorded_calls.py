"""What a test asks its handlers and publishers afterwards: FastStream's mocks and assertions, on an outbox."""

from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from faststream import BaseMiddleware
from faststream.exceptions import SetupError
from faststream.message import StreamMessage
from pydantic import BaseModel

from outbox_core.faststream import OutboxPublisher
from outbox_sqlalchemy import OutboxBroker, OutboxRouter, TestOutboxBroker


class Person(BaseModel):
    name: str
    age: int


JOHN, JANE = Person(name="John", age=19), Person(name="Jane", age=20)


async def test_a_handlers_calls_are_searched_by_body_headers_correlation_id_and_context() -> None:
    broker = OutboxBroker()

    @broker.subscriber("people")
    async def handle(person: Person) -> None: ...

    async with TestOutboxBroker(broker):
        with pytest.raises(AssertionError, match="`handle` was not called"):
            await handle.assert_called_with(JOHN)
        await broker.publish(JOHN, "people", headers={"n": "1"}, correlation_id="c")
        await handle.assert_called_once_with(
            {"name": "John", "age": 19},
            headers={"n": "1"},
            correlation_id="c",
            context={"broker": broker, "message.queue": "people"},
        )
        await broker.publish(JANE, "people", headers={"n": "2"})

        await handle.assert_called_with(JANE, headers={"n": "2"})
        await handle.assert_any_call(JOHN, headers={"n": "1"})
        with pytest.raises(AssertionError, match="Called 2 times"):
            await handle.assert_called_once_with(JANE)
        with pytest.raises(AssertionError, match=r"(?s)body:.*headers:"):
            await handle.assert_called_with(JOHN, headers={"n": "1"})
        with pytest.raises(AssertionError, match=r"(?s)call 1:.*call 2:"):
            await handle.assert_any_call({"name": "Jack"})


@pytest.mark.parametrize("subscribed", [True, False])
async def test_a_publishers_calls_are_searched_in_the_same_way(subscribed: bool) -> None:
    broker, router = OutboxBroker(), OutboxRouter()
    publisher = router.publisher("people")

    @router.subscriber("orders")
    async def handle() -> None:
        await publisher.publish(JOHN, headers={"n": "1"}, correlation_id="c")
        await publisher.publish(JANE)

    if subscribed:

        @router.subscriber("people")
        async def collect(person: Person) -> None: ...

    broker.include_router(router)
    async with TestOutboxBroker(broker):
        await broker.publish(None, "orders")

        assert [call.args for call in publisher.mock.call_args_list] == [(dict(JOHN),), (dict(JANE),)]
        await publisher.assert_any_call(JOHN, headers={"n": "1"}, correlation_id="c")
        await publisher.assert_called_with({"name": "Jane", "age": 20})


async def test_there_are_no_mocks_outside_of_a_test_broker() -> None:
    broker = OutboxBroker()
    publisher = broker.publisher("letters")

    @broker.subscriber("orders")
    async def handle(body: int) -> None: ...

    def nothing_is_recorded() -> None:
        for recorded in (handle, publisher):
            with pytest.raises(SetupError, match="is not under a test broker"):
                recorded.mock.assert_not_called()

    nothing_is_recorded()
    async with TestOutboxBroker(broker):
        handle.mock.assert_not_called()
        publisher.mock.assert_not_called()
    nothing_is_recorded()


async def test_what_a_test_broker_adds_it_takes_away() -> None:
    broker = OutboxBroker()
    publishers = [broker.publisher("letters"), broker.publisher("orders")]

    @broker.subscriber("orders")
    async def handle(body: int) -> None: ...

    for _ in range(2):
        async with TestOutboxBroker(broker):
            assert len(broker.subscribers) == 2
            await publishers[0].publish(1)
            publishers[0].mock.assert_called_once_with(1)
        assert len(broker.subscribers) == 1


async def test_what_a_parser_raises_is_raised_by_the_publish() -> None:
    async def parse(delivery: Any) -> Any:
        raise RuntimeError("unparsable")

    broker = OutboxBroker()

    @broker.subscriber("orders", parser=parse)
    async def handle(body: int) -> None: ...

    async with TestOutboxBroker(broker):
        with pytest.raises(RuntimeError, match="unparsable"):
            await broker.publish(1, "orders")


# Requests, which there are in tests only


def publisher_of(broker: OutboxBroker, kind: str) -> OutboxBroker | OutboxPublisher:
    """What requests, with a subscriber of "questions" behind it that returns its message."""

    async def answer(body: str) -> str:
        return body

    if kind == "publisher of a router":
        router = OutboxRouter()
        publisher = router.publisher("questions")
        router.subscriber("questions")(answer)
        broker.include_router(router)
        return publisher
    broker.subscriber("questions")(answer)
    return broker if kind == "broker" else broker.publisher("questions")


@pytest.mark.parametrize("kind", ["broker", "publisher", "publisher of a router"])
async def test_a_request_keeps_its_correlation_id_and_headers(kind: str) -> None:
    seen: list[dict[str, Any]] = []

    class Note(BaseMiddleware):
        async def publish_scope(self, call_next: Callable[[Any], Awaitable[Any]], cmd: Any) -> Any:
            seen.append(dict(cmd.headers))
            return await call_next(cmd)

    broker = OutboxBroker(middlewares=[Note])
    asker = publisher_of(broker, kind)

    async with TestOutboxBroker(broker):
        response = await asker.request("?", "questions", timeout=1, correlation_id="c", headers={"n": "1"})

    assert (await response.decode(), response.correlation_id) == ("?", "c")
    assert seen == [{"n": "1"}]


@pytest.mark.parametrize("kind", ["broker", "publisher", "publisher of a router"])
async def test_both_ways_of_a_request_go_through_the_middlewares(kind: str) -> None:
    class Twice(BaseMiddleware):
        async def publish_scope(self, call_next: Callable[[Any], Awaitable[Any]], cmd: Any) -> Any:
            cmd.body *= 2
            return await call_next(cmd)

        async def consume_scope(
            self, call_next: Callable[[StreamMessage[Any]], Awaitable[Any]], msg: StreamMessage[Any]
        ) -> Any:
            msg.body *= 2
            return await call_next(msg)

    broker = OutboxBroker(middlewares=[Twice])
    asker = publisher_of(broker, kind)

    async with TestOutboxBroker(broker):
        response = await asker.request("?", "questions", timeout=1)

        assert await response.decode() == "?" * 2 * 2 * 2  # published, consumed, and the answer consumed


@pytest.mark.parametrize("option", [{"prority": 1}, {"headers": {"n": "1"}, "using": "default"}])
async def test_an_option_that_a_request_does_not_have_is_refused(option: dict[str, Any]) -> None:
    publisher = OutboxBroker().publisher("questions")

    with pytest.raises(TypeError, match="publish has no option"):
        await publisher.request("?", **option)
