"""Middlewares around handlers: their order, and what their failures do to the message."""

from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Any

import pytest
from faststream import BaseMiddleware, ExceptionMiddleware, PublishCommand
from faststream.message import StreamMessage

from outbox_core.retry import ConstantRetry, NoRetry
from outbox_sqlalchemy import OutboxRouter
from tests.places import Place, running, until

SOON = ConstantRetry(delay_seconds=0.01, max_attempts=3)


def noting(name: str, events: list[str]) -> type[BaseMiddleware]:
    """A middleware that writes down when it is called."""

    class Noting(BaseMiddleware):
        async def on_receive(self) -> None:
            events.append(f"{name} receive")
            await super().on_receive()

        async def consume_scope(
            self, call_next: Callable[[StreamMessage[Any]], Awaitable[Any]], msg: StreamMessage[Any]
        ) -> Any:
            events.append(f"{name} consume")
            result = await call_next(msg)
            events.append(f"{name} consumed")
            return result

        async def publish_scope(
            self, call_next: Callable[[PublishCommand], Awaitable[Any]], cmd: PublishCommand
        ) -> Any:
            events.append(f"{name} publish to {cmd.destination}")
            return await call_next(cmd)

        async def after_processed(
            self,
            exc_type: type[BaseException] | None = None,
            exc_val: BaseException | None = None,
            exc_tb: TracebackType | None = None,
        ) -> bool | None:
            events.append(f"{name} exit")
            return await super().after_processed(exc_type, exc_val, exc_tb)

    return Noting


async def test_middlewares_nest_from_broker_to_router(both: Place) -> None:
    events: list[str] = []
    broker = both.broker(middlewares=[noting("b1", events), noting("b2", events)])
    router = OutboxRouter(middlewares=[noting("r", events)])

    @router.subscriber("orders")
    @router.publisher("letters")
    async def handle(body: int) -> int:
        events.append("handler")
        return body

    broker.include_router(router)
    await both.broker().publish(7, "orders")
    async with running(broker):
        await until(lambda: [row.queue for row in both.rows()], ["letters"])

    assert events == [
        "b1 receive",
        "b2 receive",
        "r receive",
        "b1 consume",
        "b2 consume",
        "r consume",
        "handler",
        "r consumed",
        "b2 consumed",
        "b1 consumed",
        "b1 publish to letters",
        "b2 publish to letters",
        "r publish to letters",
        "r exit",
        "b2 exit",
        "b1 exit",
    ]


async def test_a_middleware_can_be_added_to_a_broker_that_exists(place: Place) -> None:
    events: list[str] = []
    broker = place.broker()
    broker.add_middleware(noting("late", events))

    await broker.publish(7, "orders")

    assert events == ["late publish to orders"]


async def test_a_middleware_whose_on_receive_raises_has_the_message_retried(both: Place) -> None:
    tries: list[int] = []
    handled: list[int] = []

    class Moody(BaseMiddleware):
        async def on_receive(self) -> None:
            tries.append(1)
            if len(tries) < 3:
                raise RuntimeError("moody")

    broker = both.broker(middlewares=[Moody])

    @broker.subscriber("orders", retry_strategy=SOON)
    async def handle(body: int) -> None:
        handled.append(body)

    async with running(broker):
        await both.broker().publish(7, "orders")
        await until(lambda: (handled, both.rows()), ([7], []))

    assert len(tries) == 3


@pytest.mark.parametrize("where", ["on_receive", "consume_scope", "after_processed"])
async def test_a_middleware_that_always_fails_leads_to_the_dead_letters(place: Place, where: str) -> None:
    async def fail(self: BaseMiddleware, *_: object, **__: object) -> None:
        raise RuntimeError(where)

    broker = place.broker(middlewares=[type("Failing", (BaseMiddleware,), {where: fail})])

    @broker.subscriber("orders", retry_strategy=SOON)
    async def handle(body: int) -> None: ...

    async with running(broker):
        await place.broker().publish(7, "orders")
        await until(
            lambda: [(row.last_exception, row.attempts_count) for row in place.rows(place.tables.dead_letters)],
            [(f"RuntimeError: {where}", 3)],
        )


async def test_a_publish_that_fails_in_a_handler_fails_the_handler(place: Place) -> None:
    class NoLetters(BaseMiddleware):
        async def publish_scope(
            self, call_next: Callable[[PublishCommand], Awaitable[Any]], cmd: PublishCommand
        ) -> Any:
            if cmd.destination == "letters":
                raise RuntimeError("no letters")
            return await call_next(cmd)

    broker = place.broker(middlewares=[NoLetters])

    @broker.subscriber("orders", retry_strategy=NoRetry())
    @broker.publisher("letters")
    async def handle(body: int) -> int:
        return body

    async with running(broker):
        await broker.publish(7, "orders")
        await until(
            lambda: [row.last_exception for row in place.rows(place.tables.dead_letters)], ["RuntimeError: no letters"]
        )

    assert place.rows() == []


async def test_an_exception_middleware_turns_a_failure_into_a_success(both: Place) -> None:
    seen: list[str] = []
    middleware = ExceptionMiddleware()

    @middleware.add_handler(ValueError)
    async def forgive(error: ValueError) -> None:
        seen.append(repr(error))

    broker = both.broker(middlewares=[middleware])

    @broker.subscriber("orders", retry_strategy=NoRetry())
    async def handle(body: int) -> None:
        raise ValueError(body) if body == 7 else TypeError(body)

    async with running(broker):
        await broker.publish(7, "orders")
        await until(lambda: (seen, both.rows()), (["ValueError(7)"], []))
        assert both.rows(both.tables.dead_letters) == []
        await broker.publish(8, "orders")
        await until(lambda: [row.last_exception for row in both.rows(both.tables.dead_letters)], ["TypeError: 8"])


async def test_an_exception_middleware_can_reply_instead(place: Place) -> None:
    middleware = ExceptionMiddleware()

    @middleware.add_handler(ValueError, publish=True)
    async def apologise(error: ValueError) -> str:
        return f"sorry: {error}"

    broker = place.broker(middlewares=[middleware])

    @broker.subscriber("orders")
    @broker.publisher("letters")
    async def handle(body: int) -> str:
        raise ValueError(body)

    async with running(broker):
        await broker.publish(7, "orders")
        await until(lambda: [(row.queue, row.payload) for row in place.rows()], [("letters", b"sorry: 7")])


async def test_a_middleware_sees_the_message_that_it_wraps(place: Place) -> None:
    seen: list[tuple[str, object]] = []

    class Look(BaseMiddleware):
        async def consume_scope(
            self, call_next: Callable[[StreamMessage[Any]], Awaitable[Any]], msg: StreamMessage[Any]
        ) -> Any:
            seen.append((msg.message_id, await msg.decode()))
            return await call_next(msg)

    broker = place.broker(middlewares=[Look])

    @broker.subscriber("orders")
    async def handle(body: int) -> None: ...

    async with running(broker):
        await broker.publish(7, "orders", message_id="0190163d-8694-739b-aea5-966c26f8ad91")
        await until(lambda: seen, [("0190163d-8694-739b-aea5-966c26f8ad91", 7)])
