"""Middlewares around handlers: their order, and what their failures do to the message."""

from collections.abc import Awaitable, Callable
from types import MappingProxyType, TracebackType
from typing import Any

import pytest
from faststream import BaseMiddleware, ExceptionMiddleware, PublishCommand
from faststream.exceptions import AckMessage, RejectMessage, SkipMessage
from faststream.message import StreamMessage

from outbox_core.retry import ConstantRetry, NoRetry
from outbox_sqlalchemy import OutboxRouter
from tests.faststream.telling import telling
from tests.places import Place, running, until

SOON = ConstantRetry(delay_seconds=0.01, max_attempts=3)


def noting(name: str, events: list[str]) -> type[BaseMiddleware]:
    """A middleware that writes down when it is called."""

    def reach(stage: str, what: object) -> None:
        events.append(f"{name} publish to {what}" if stage == "publish" else f"{name} {stage}")

    return telling(reach)


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


async def test_middlewares_of_nested_routers_and_of_an_include_nest_inwards(place: Place) -> None:
    events: list[str] = []
    broker = place.broker(middlewares=[noting("broker", events)])
    outer = OutboxRouter("shop.", middlewares=[noting("outer", events)])
    inner = OutboxRouter("eu.", middlewares=[noting("inner", events)])
    publisher = inner.publisher("letters")

    @inner.subscriber("orders")
    async def handle(body: int) -> None:
        events.append("handler")

    outer.include_router(inner)
    broker.include_router(outer, middlewares=[noting("include", events)])
    async with running(broker):
        await place.broker().publish(7, "shop.eu.orders")
        await until(place.rows, [])
        inwards = ["broker", "include", "outer", "inner"]
        assert events == [
            *(f"{name} receive" for name in inwards),
            *(f"{name} consume" for name in inwards),
            "handler",
            *(f"{name} consumed" for name in reversed(inwards)),
            *(f"{name} exit" for name in reversed(inwards)),
        ]
        events.clear()
        await publisher.publish(8)
        assert events == [f"{name} publish to shop.eu.letters" for name in inwards]


async def test_a_middleware_that_is_inserted_is_the_outermost(place: Place) -> None:
    events: list[str] = []
    broker = place.broker(middlewares=[noting("first", events)])
    broker.insert_middleware(noting("inserted", events))
    broker.add_middleware(noting("added", events))

    await broker.publish(7, "orders")

    assert events == [f"{name} publish to orders" for name in ("inserted", "first", "added")]


@pytest.mark.parametrize("before", [True, False])
async def test_a_middleware_that_is_added_counts_for_subscribers_of_before_and_after(
    place: Place, before: bool
) -> None:
    events: list[str] = []
    broker = place.broker()
    if not before:
        broker.add_middleware(noting("late", events))

    @broker.subscriber("orders")
    async def handle(body: int) -> None: ...

    if before:
        broker.add_middleware(noting("late", events))
    async with running(broker):
        await place.broker().publish(7, "orders")
        await until(place.rows, [])

    assert events == ["late receive", "late consume", "late consumed", "late exit"]


class Twice(BaseMiddleware):
    """Every body twice, each time it is published."""

    async def publish_scope(self, call_next: Callable[[PublishCommand], Awaitable[Any]], cmd: PublishCommand) -> Any:
        cmd.body *= 2
        return await call_next(cmd)


async def test_a_middleware_changes_what_is_published_answered_and_returned(both: Place) -> None:
    broker = both.broker(middlewares=[Twice])

    @broker.subscriber("orders")
    @broker.publisher("letters")
    async def handle(body: str) -> str:
        return body

    async with running(broker):
        await broker.publish("r", "orders", reply_to="answers")
        expected = [("answers", b"rrrr"), ("letters", b"rrrr")]
        await until(lambda: sorted((row.queue, row.payload) for row in both.rows()), expected)


@pytest.mark.parametrize(
    ("change", "published"),
    [
        (lambda bodies: tuple(reversed(bodies)), [b"null", b"2", b"1"]),
        (lambda bodies: bodies[1:], [b"2", b"null"]),
        (lambda bodies: bodies[-1:], [b"null"]),
        (lambda bodies: (), []),
    ],
)
async def test_a_middleware_changes_the_bodies_of_a_batch(
    both: Place, change: Callable[[tuple[Any, ...]], tuple[Any, ...]], published: list[bytes]
) -> None:
    seen: list[tuple[Any, ...]] = []

    class Change(BaseMiddleware):
        async def publish_scope(
            self, call_next: Callable[[PublishCommand], Awaitable[Any]], cmd: PublishCommand
        ) -> Any:
            seen.append(cmd.batch_bodies)
            cmd.batch_bodies = change(cmd.batch_bodies)  # type: ignore[misc]  # settable on a batch command
            return await call_next(cmd)

    broker = both.broker(middlewares=[Change])

    ids = await broker.publish_batch(1, 2, None, queue="orders")

    assert seen == [(1, 2, None)]
    assert [row.payload for row in both.rows()] == published
    assert len(ids) == len(published)


async def test_a_publish_whose_body_a_middleware_takes_away_inserts_nothing(place: Place) -> None:
    class Drop(BaseMiddleware):
        async def publish_scope(
            self, call_next: Callable[[PublishCommand], Awaitable[Any]], cmd: PublishCommand
        ) -> Any:
            cmd.batch_bodies = ()  # type: ignore[misc]  # as above
            return await call_next(cmd)

    broker = place.broker(middlewares=[Drop])

    assert await broker.publish(1, "orders") is None
    assert place.rows() == []


async def test_a_middleware_changes_headers_and_not_those_of_the_caller(place: Place) -> None:
    class Stamp(BaseMiddleware):
        async def publish_scope(
            self, call_next: Callable[[PublishCommand], Awaitable[Any]], cmd: PublishCommand
        ) -> Any:
            cmd.headers["stamped"] = "yes"
            cmd.add_headers({"tenant": "none"}, override=False)
            return await call_next(cmd)

    broker = place.broker(middlewares=[Stamp])
    headers = {"tenant": "acme"}
    publisher = broker.publisher("orders", headers=headers)

    await broker.publish(1, "orders", headers=headers)
    await broker.publish(2, "orders", headers=MappingProxyType(headers))
    await publisher.publish(3)
    await broker.publish(4, "orders")

    assert headers == {"tenant": "acme"}
    assert [(row.headers["tenant"], row.headers["stamped"]) for row in place.rows()] == [
        *[("acme", "yes")] * 3,
        ("none", "yes"),
    ]


async def test_a_middleware_sees_what_the_handler_raised(place: Place) -> None:
    seen: list[tuple[str, str]] = []

    class Look(BaseMiddleware):
        async def consume_scope(
            self, call_next: Callable[[StreamMessage[Any]], Awaitable[Any]], msg: StreamMessage[Any]
        ) -> Any:
            try:
                return await call_next(msg)
            except Exception as error:
                seen.append(("consume_scope", repr(error)))
                raise

        async def after_processed(
            self,
            exc_type: type[BaseException] | None = None,
            exc_val: BaseException | None = None,
            exc_tb: TracebackType | None = None,
        ) -> bool | None:
            seen.append(("after_processed", repr(exc_val)))
            return await super().after_processed(exc_type, exc_val, exc_tb)

    broker = place.broker(middlewares=[Look])

    @broker.subscriber("orders", retry_strategy=NoRetry())
    async def handle(body: int) -> None:
        raise ValueError(body)

    async with running(broker):
        await broker.publish(7, "orders")
        await until(lambda: len(place.rows(place.tables.dead_letters)), 1)

    assert seen == [("consume_scope", "ValueError(7)"), ("after_processed", "ValueError(7)")]


async def test_a_middleware_that_swallows_a_failure_makes_it_a_success(place: Place) -> None:
    class Forgive(BaseMiddleware):
        async def after_processed(
            self,
            exc_type: type[BaseException] | None = None,
            exc_val: BaseException | None = None,
            exc_tb: TracebackType | None = None,
        ) -> bool | None:
            return True

    broker = place.broker(middlewares=[Forgive])

    @broker.subscriber("orders", retry_strategy=NoRetry())
    async def handle(body: int) -> None:
        raise ValueError(body)

    async with running(broker):
        await broker.publish(7, "orders")
        await until(place.rows, [])

    assert place.rows(place.tables.dead_letters) == []


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


@pytest.mark.parametrize("publish", [True, False])
@pytest.mark.parametrize("how", ["decorated", "listed"])
async def test_the_most_specific_handler_of_an_exception_middleware_is_called(
    place: Place, publish: bool, how: str
) -> None:
    seen: list[str] = []

    async def on_lookup(error: LookupError) -> str:
        seen.append("LookupError")
        return "LookupError"

    async def on_key(error: KeyError) -> str:
        seen.append("KeyError")
        return "KeyError"

    async def on_division(error: ZeroDivisionError) -> str:
        seen.append("ZeroDivisionError")
        return "ZeroDivisionError"

    handlers: dict[type[Exception], Any] = {LookupError: on_lookup, KeyError: on_key, ZeroDivisionError: on_division}
    if how == "listed":
        middleware = ExceptionMiddleware(**{"publish_handlers" if publish else "handlers": handlers})
    else:
        middleware = ExceptionMiddleware()
        for error, handler in handlers.items():
            middleware.add_handler(error, publish=publish)(handler)
    broker = place.broker(middlewares=[middleware])

    @broker.subscriber("orders", retry_strategy=NoRetry())
    @broker.publisher("letters")
    async def handle(body: int) -> None:
        raise {1: KeyError, 2: IndexError, 3: ZeroDivisionError}[body](body)

    async with running(broker):
        for body in (1, 2, 3):
            await broker.publish(body, "orders")
        await until(lambda: seen, ["KeyError", "LookupError", "ZeroDivisionError"])
        await until(lambda: [row for row in place.rows() if row.queue == "orders"], [])

    replies = [b"KeyError", b"LookupError", b"ZeroDivisionError"] if publish else []
    assert [row.payload for row in place.rows()] == replies
    assert place.rows(place.tables.dead_letters) == []


async def test_an_exception_middleware_can_skip_the_message_and_publish_nothing(place: Place) -> None:
    middleware = ExceptionMiddleware()

    @middleware.add_handler(ValueError, publish=True)
    async def skip(error: ValueError) -> None:
        raise SkipMessage

    broker = place.broker(middlewares=[middleware])

    @broker.subscriber("orders", retry_strategy=NoRetry())
    @broker.publisher("letters")
    async def handle(body: int) -> None:
        raise ValueError(body)

    async with running(broker):
        await broker.publish(7, "orders")
        await until(place.rows, [])

    assert place.rows(place.tables.dead_letters) == []


@pytest.mark.parametrize(
    ("raised", "buried"), [(SkipMessage, []), (AckMessage, []), (RejectMessage, [("rejected", None)])]
)
async def test_an_exception_middleware_leaves_raised_votes_alone(
    place: Place, raised: type[Exception], buried: list[tuple[str, str | None]]
) -> None:
    seen: list[str] = []
    middleware = ExceptionMiddleware()

    @middleware.add_handler(Exception)
    async def note(error: Exception) -> None:
        seen.append(repr(error))

    broker = place.broker(middlewares=[middleware])

    @broker.subscriber("orders", retry_strategy=NoRetry())
    async def handle(body: int) -> None:
        raise raised

    async with running(broker):
        await broker.publish(7, "orders")
        await until(place.rows, [])

    graves = place.rows(place.tables.dead_letters)
    assert [(row.failure_reason, row.last_exception) for row in graves] == buried
    assert seen == []


async def test_what_an_exception_middleware_raises_again_is_a_failure(place: Place) -> None:
    middleware = ExceptionMiddleware()

    @middleware.add_handler(ValueError, publish=True)
    async def again(error: ValueError) -> None:
        raise error

    broker = place.broker(middlewares=[middleware])

    @broker.subscriber("orders", retry_strategy=NoRetry())
    @broker.publisher("letters")
    async def handle(body: int) -> None:
        raise ValueError(body)

    async with running(broker):
        await broker.publish(7, "orders")
        await until(lambda: [row.last_exception for row in place.rows(place.tables.dead_letters)], ["ValueError: 7"])

    assert place.rows() == []


async def test_an_exception_middleware_catches_what_a_decoder_raises(place: Place) -> None:
    seen: list[str] = []
    middleware = ExceptionMiddleware()

    @middleware.add_handler(RuntimeError)
    async def note(error: RuntimeError) -> None:
        seen.append(repr(error))

    async def decode(message: StreamMessage[Any]) -> object:
        raise RuntimeError("undecodable")

    broker = place.broker(middlewares=[middleware], decoder=decode)

    @broker.subscriber("orders", retry_strategy=NoRetry())
    async def handle(body: int) -> None: ...

    async with running(broker):
        await broker.publish(7, "orders")
        await until(lambda: (seen, place.rows()), (["RuntimeError('undecodable')"], []))

    assert place.rows(place.tables.dead_letters) == []


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
