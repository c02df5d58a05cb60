"""`get_one` and `async for`: messages for those who ask, and whose vote is in the database when it returns."""

import asyncio
from collections.abc import Awaitable, Callable
from time import monotonic
from typing import Any
from uuid import uuid4

import pytest
from faststream import AckPolicy, BaseMiddleware
from faststream.message import StreamMessage

from outbox_core.errors import CannotPull, NotStarted, OptionError, OutboxError, Undecodable, WrongType
from outbox_core.faststream import OutboxMessage
from outbox_core.faststream._compat import DefaultCodec
from outbox_core.faststream.message import decode_body
from outbox_core.retry import ConstantRetry, NoRetry
from outbox_sqlalchemy import OutboxBroker, OutboxRouter, TestOutboxBroker
from tests.faststream.test_middlewares import noting
from tests.places import Place, running, until

RARELY = {"min_fetch_interval": 60.0, "max_fetch_interval": 60.0}


async def got(subscriber: Any) -> OutboxMessage:
    """A message that comes in time."""
    message = await subscriber.get_one(timeout=5)
    assert isinstance(message, OutboxMessage)
    return message


def leased(place: Place) -> list[bytes]:
    return [row.payload for row in place.rows() if row.acquired_token is not None]


# One message


async def test_a_message_is_pulled_as_it_was_published(both: Place) -> None:
    broker = both.broker()
    subscriber = broker.subscriber("orders")
    await broker.publish({"id": 7}, "orders", headers={"tenant": "acme"}, key="k", correlation_id="c")

    async with running(broker):
        message = await got(subscriber)

        assert await message.decode() == {"id": 7}
        assert (message.queue, message.key, message.correlation_id) == ("orders", "k", "c")
        assert message.headers["tenant"] == "acme"
        assert (message.attempt, message.deliveries, message.lease_lost) == (1, 1, False)


async def test_a_subscriber_without_a_handler_consumes_nothing_by_itself(both: Place) -> None:
    broker = both.broker()
    handled: list[int] = []
    broker.subscriber("orders")

    @broker.subscriber("letters")
    async def handle(body: int) -> None:
        handled.append(body)

    await broker.publish(1, "orders")
    async with running(broker):
        await broker.publish(2, "letters")
        await until(lambda: handled, [2])
        await broker.drained()

    assert [(row.payload, row.attempts_count, row.acquired_token) for row in both.rows()] == [(b"1", 0, None)]


async def test_without_a_message_there_is_none_after_the_timeout(both: Place) -> None:
    broker = both.broker()
    subscriber = broker.subscriber("orders")

    async with running(broker):
        before = monotonic()
        assert await subscriber.get_one(timeout=0.3) is None

    assert 0.3 <= monotonic() - before < 2


@pytest.mark.parametrize("both", ["asyncpg"], indirect=True)
async def test_who_waits_is_woken_by_a_publish(both: Place) -> None:
    broker = both.broker()
    subscriber = broker.subscriber("orders", **RARELY)

    async with running(broker):
        assert await subscriber.get_one(timeout=0.3) is None
        waiting = asyncio.create_task(got(subscriber))
        await asyncio.sleep(0.3)
        published = monotonic()
        await both.broker().publish(7, "orders")
        await waiting

    assert monotonic() - published < 2


async def test_two_who_wait_get_different_messages(both: Place) -> None:
    broker = both.broker()
    subscriber = broker.subscriber("orders")

    async with running(broker):
        waiting = [asyncio.create_task(got(subscriber)) for _ in range(2)]
        await broker.publish_batch(1, 2, queue="orders")
        messages = await asyncio.gather(*waiting)

    assert sorted([await message.decode() for message in messages]) == [1, 2]


async def test_the_highest_priority_comes_first(both: Place) -> None:
    broker = both.broker()
    subscriber = broker.subscriber("orders")
    await broker.publish("low", "orders")
    await broker.publish("high", "orders", priority=9)

    async with running(broker):
        assert [await (await got(subscriber)).decode() for _ in range(2)] == ["high", "low"]


async def test_a_paused_queue_gives_nothing_until_it_is_resumed(both: Place) -> None:
    broker = both.broker()
    subscriber = broker.subscriber("orders")
    await broker.pause("orders")
    await broker.publish(7, "orders")

    async with running(broker):
        assert await subscriber.get_one(timeout=0.2) is None
        await broker.resume("orders")
        assert await (await got(subscriber)).decode() == 7


async def test_queues_have_the_prefix_of_their_router(place: Place) -> None:
    broker = place.broker()
    router = OutboxRouter(prefix="shop_")
    subscriber = router.subscriber(["orders", "letters"])
    broker.include_router(router)
    await broker.publish("order", "shop_orders")
    await broker.publish("letter", "shop_letters")
    await broker.publish("other", "orders")

    async with running(broker):
        messages = [await got(subscriber) for _ in range(2)]
        assert await subscriber.get_one(timeout=0.1) is None

    assert sorted(message.queue for message in messages) == ["shop_letters", "shop_orders"]


async def test_a_dynamic_subscriber_is_pulled_without_a_started_broker(both: Place) -> None:
    broker = both.broker()

    async with broker:
        subscriber = broker.subscriber("orders", persistent=False)
        await broker.publish(7, "orders")
        async with subscriber:
            message = await got(subscriber)
            await message.ack()

    assert both.rows() == []


async def test_a_cancelled_get_one_loses_nothing(both: Place) -> None:
    broker = both.broker()
    subscriber = broker.subscriber("orders")

    async with running(broker):
        for _ in range(20):
            waiting = asyncio.create_task(subscriber.get_one(timeout=5))
            await asyncio.sleep(0)
            publishing = asyncio.create_task(broker.publish(7, "orders"))
            await asyncio.wait([publishing], timeout=0.002)
            waiting.cancel()
            await asyncio.wait([waiting, publishing])
            message = waiting.result() if not waiting.cancelled() else await got(subscriber)
            assert message is not None
            await message.ack()

    assert both.rows() == []


# Votes


@pytest.mark.parametrize(
    ("cast", "left", "dead"),
    [
        (lambda message: message.ack(), [], []),
        (lambda message: message.nack(), [(1, 1, None)], []),
        (lambda message: message.nack(delay=600), [(1, 1, None)], []),
        (lambda message: message.snooze(600), [(0, 0, None)], []),
        (lambda message: message.reject(), [], ["rejected"]),
    ],
    ids=["ack", "nack", "nack-delay", "snooze", "reject"],
)
async def test_a_vote_is_in_the_database_when_it_returns(
    both: Place,
    cast: Callable[[OutboxMessage], Awaitable[None]],
    left: list[tuple[int, int, None]],
    dead: list[str],
) -> None:
    broker = both.broker()
    subscriber = broker.subscriber("orders", retry_strategy=ConstantRetry(delay_seconds=600))
    await broker.publish(7, "orders")

    async with running(broker):
        message = await got(subscriber)
        await cast(message)

        rows = both.rows()
        assert [(row.attempts_count, row.deliveries_count, row.acquired_token) for row in rows] == left
        assert [row.failure_reason for row in both.rows(both.tables.dead_letters)] == dead
        assert not message.lease_lost
        assert await subscriber.get_one(timeout=0.1) is None


async def test_the_first_vote_stands(both: Place) -> None:
    broker = both.broker()
    subscriber = broker.subscriber("orders")
    await broker.publish(7, "orders")

    async with running(broker):
        message = await got(subscriber)
        await message.reject()
        await message.ack()

    assert [row.failure_reason for row in both.rows(both.tables.dead_letters)] == ["rejected"]


async def test_nacks_end_among_the_dead_letters(both: Place) -> None:
    broker = both.broker()
    subscriber = broker.subscriber("orders", retry_strategy=ConstantRetry(delay_seconds=0.01, max_attempts=3))
    await broker.publish(7, "orders")

    async with running(broker):
        attempts = []
        for _ in range(3):
            message = await got(subscriber)
            attempts.append(message.attempt)
            await message.nack()

    assert attempts == [1, 2, 3]
    assert [row.failure_reason for row in both.rows(both.tables.dead_letters)] == ["retry_terminal"]


async def test_a_body_that_does_not_decode_is_for_its_puller_to_reject(place: Place) -> None:
    broker = place.broker()
    subscriber = broker.subscriber("orders")
    await broker.publish(b"{", "orders", headers={"content-type": "application/json"})

    async with running(broker):
        message = await got(subscriber)
        with pytest.raises(Undecodable, match="the body is not application/json"):
            await message.decode()
        await message.reject()

    assert [row.failure_reason for row in place.rows(place.tables.dead_letters)] == ["rejected"]


@pytest.mark.parametrize("policy", [AckPolicy.ACK_FIRST, AckPolicy.ACK, AckPolicy.MANUAL])
async def test_no_policy_votes_for_who_pulls(place: Place, policy: AckPolicy) -> None:
    broker = place.broker(ack_policy=policy)
    subscriber = broker.subscriber("orders")
    await broker.publish(7, "orders")

    async with running(broker):
        await got(subscriber)
        assert leased(place) == [b"7"]

    assert [(row.attempts_count, row.acquired_token) for row in place.rows()] == [(0, None)]


# Leases


async def test_a_message_in_hand_is_nobody_elses_however_long_it_takes(both: Place) -> None:
    broker, other = both.broker(), both.broker()
    subscriber, others = (one.subscriber("orders", lease_ttl_seconds=1.0) for one in (broker, other))
    await broker.publish(7, "orders")

    async with running(broker), running(other):
        message = await got(subscriber)
        assert await others.get_one(timeout=2.5) is None
        await message.ack()

        assert (message.lease_lost, both.rows()) == (False, [])


async def test_a_vote_after_a_lost_lease_changes_nothing(both: Place) -> None:
    broker, other = both.broker(), both.broker()
    subscriber, others = broker.subscriber("orders"), other.subscriber("orders")
    await broker.publish(7, "orders")

    async with running(broker), running(other):
        message = await got(subscriber)
        both.run("UPDATE outbox SET leased_until = '2020-01-01 00:00:00'")
        taken_over = await got(others)
        await message.ack()

        assert (message.lease_lost, taken_over.lease_lost) == (True, False)
        assert leased(both) == [b"7"]
        await taken_over.ack()
        assert both.rows() == []


async def test_a_stop_gives_back_what_has_no_vote_and_a_later_vote_has_no_effect(both: Place) -> None:
    broker = both.broker(graceful_timeout=60)
    subscriber = broker.subscriber("orders")
    await broker.publish(7, "orders")

    async with running(broker):
        message = await got(subscriber)
        waiting = asyncio.create_task(subscriber.get_one(timeout=60))
        await asyncio.sleep(0)
        await subscriber.stop()
        assert await waiting is None
        await message.ack()

        assert message.lease_lost
        assert [(row.attempts_count, row.deliveries_count, row.acquired_token) for row in both.rows()] == [(0, 0, None)]
        with pytest.raises(NotStarted, match="is not started"):
            await subscriber.get_one()

        await subscriber.start()
        again = await got(subscriber)
        assert (again.raw_message.suspect, again.deliveries) == (False, 1)


# Iterating


async def test_iterating_gives_every_message_until_it_is_left(both: Place) -> None:
    broker = both.broker()
    subscriber = broker.subscriber("orders")
    await broker.publish_batch(1, 2, 3, queue="orders")
    bodies = []

    async with running(broker):
        async for message in subscriber:
            bodies.append(await message.decode())
            await message.ack()
            if len(bodies) == 2:
                break

        assert (bodies, [row.payload for row in both.rows()]) == ([1, 2], [b"3"])
        assert leased(both) == []


async def test_iterating_ends_with_the_broker(both: Place) -> None:
    broker = both.broker()
    subscriber = broker.subscriber("orders")
    bodies = []

    async def iterate() -> None:
        async for message in subscriber:
            bodies.append(await message.decode())
            await message.ack()

    async with running(broker):
        iterating = asyncio.create_task(iterate())
        await broker.publish_batch(1, 2, queue="orders")
        await until(lambda: (bodies, both.rows()), ([1, 2], []))
        await broker.stop()
        await iterating


# The pipeline


async def test_middlewares_parser_and_decoder_are_those_of_the_subscriber(both: Place) -> None:
    events: list[str] = []

    async def parse(raw: Any, default: Callable[[Any], Awaitable[OutboxMessage]]) -> OutboxMessage:
        events.append("parse")
        return await default(raw)

    async def decode(
        message: StreamMessage[Any], default: Callable[[StreamMessage[Any]], Awaitable[Any]]
    ) -> tuple[str, Any]:
        return "decoded", await default(message)

    broker = both.broker(middlewares=[noting("b", events)])
    router = OutboxRouter(middlewares=[noting("r", events)])
    subscriber = router.subscriber("orders", parser=parse, decoder=decode)
    broker.include_router(router)
    await both.broker().publish(7, "orders")

    async with running(broker):
        message = await got(subscriber)
        assert await message.decode() == ("decoded", 7)

    assert sorted(events[:2]) == ["b receive", "r receive"]
    assert events[2] == "parse"
    assert sorted(events[3:]) == sorted(f"{name} {what}" for name in "br" for what in ("consume", "consumed", "exit"))


async def test_a_vote_of_a_middleware_is_written(place: Place) -> None:
    class Rejecting(BaseMiddleware):
        async def consume_scope(self, call_next: Any, msg: Any) -> Any:
            await msg.reject()
            return await call_next(msg)

    broker = place.broker(middlewares=[Rejecting])
    subscriber = broker.subscriber("orders")
    await place.broker().publish(7, "orders")

    async with running(broker):
        message = await got(subscriber)
        assert place.rows() == []
        await message.ack()

    assert [row.failure_reason for row in place.rows(place.tables.dead_letters)] == ["rejected"]


async def test_what_a_middleware_raises_is_raised_and_the_message_is_tried_again(both: Place) -> None:
    tries: list[int] = []

    class Moody(BaseMiddleware):
        async def on_receive(self) -> None:
            tries.append(1)
            if len(tries) == 1:
                raise LookupError("moody")

    broker = both.broker(middlewares=[Moody])
    subscriber = broker.subscriber("orders", retry_strategy=ConstantRetry(delay_seconds=0.01))
    await both.broker().publish(7, "orders")

    async with running(broker):
        with pytest.raises(LookupError, match="moody"):
            await subscriber.get_one()
        assert [(row.attempts_count, row.acquired_token) for row in both.rows()] == [(1, None)]
        assert (await got(subscriber)).attempt == 2


async def test_a_middleware_that_keeps_the_message_is_told(place: Place) -> None:
    class Keeping(BaseMiddleware):
        async def consume_scope(self, call_next: Any, msg: Any) -> Any:
            return None

    broker = place.broker(middlewares=[Keeping])
    subscriber = broker.subscriber("orders", retry_strategy=NoRetry())
    await place.broker().publish(7, "orders")

    async with running(broker):
        with pytest.raises(WrongType, match="what a middleware's consume_scope returns must be"):
            await subscriber.get_one()

    (letter,) = place.rows(place.tables.dead_letters)
    assert (letter.failure_reason, letter.last_exception.split(":")[0]) == ("retry_terminal", "WrongType")


async def test_a_parser_must_return_a_message_that_can_vote(place: Place) -> None:
    async def parse(raw: Any) -> StreamMessage[Any]:
        return StreamMessage(raw, raw.payload)

    broker = place.broker()
    subscriber = broker.subscriber("orders", parser=parse, retry_strategy=NoRetry())
    await broker.publish(7, "orders")

    async with running(broker):
        with pytest.raises(WrongType, match="what a parser returns must be an OutboxMessage, got StreamMessage"):
            await subscriber.get_one()


async def test_a_codec_and_a_decoder_exclude_each_other_and_keep_no_message(place: Place) -> None:
    broker = place.broker()
    subscriber = broker.subscriber(
        "orders", codec=DefaultCodec(), decoder=decode_body, retry_strategy=ConstantRetry(delay_seconds=600)
    )
    await broker.publish(7, "orders")

    async with running(broker):
        with pytest.raises(ValueError, match="Cannot use both 'codec' and 'decoder'"):
            await subscriber.get_one()
        assert [(row.attempts_count, row.acquired_token) for row in place.rows()] == [(1, None)]


async def test_a_get_one_that_is_cut_in_a_middleware_gives_its_message_back(place: Place) -> None:
    entered = asyncio.Event()

    class Slow(BaseMiddleware):
        async def consume_scope(self, call_next: Any, msg: Any) -> Any:
            if not entered.is_set():
                entered.set()
                await asyncio.Event().wait()
            return await call_next(msg)

    broker = place.broker(middlewares=[Slow])
    subscriber = broker.subscriber("orders")
    await place.broker().publish(7, "orders")

    async with running(broker):
        cut = asyncio.create_task(subscriber.get_one())
        await entered.wait()
        cut.cancel()
        await asyncio.wait([cut])

        assert (await got(subscriber)).deliveries == 1


async def test_propagating_headers_is_for_replies_and_no_hindrance(place: Place) -> None:
    broker = place.broker()
    subscriber = broker.subscriber("orders", propagate_inbound_headers=True)
    await broker.publish(7, "orders")

    async with running(broker):
        assert await (await got(subscriber)).decode() == 7


# Refusals


async def test_a_subscriber_with_handlers_is_not_pulled(place: Place) -> None:
    broker = place.broker()
    subscriber = broker.subscriber("orders")

    @subscriber
    async def handle(body: int) -> None: ...

    async with running(broker):
        with pytest.raises(CannotPull, match="subscriber of orders has handlers, which get its messages"):
            await subscriber.get_one()
        with pytest.raises(CannotPull, match="has handlers"):
            subscriber.__aiter__()


@pytest.mark.parametrize("option", ["batch", "transactional"])
async def test_options_for_handlers_are_refused(place: Place, option: str) -> None:
    broker = place.broker()
    subscriber = broker.subscriber("orders", **{option: True})

    async with running(broker):
        with pytest.raises(CannotPull, match=f"subscriber of orders has {option}=True, which is for handlers"):
            await subscriber.get_one()


async def test_a_subscriber_that_is_not_started_is_not_pulled(place: Place) -> None:
    subscriber = place.broker().subscriber("orders")

    with pytest.raises(NotStarted, match="subscriber of orders is not started; start it, or its broker"):
        await subscriber.get_one()
    with pytest.raises(NotStarted, match="is not started"):
        subscriber.__aiter__()


@pytest.mark.parametrize(
    ("timeout", "error", "text"),
    [
        (0, OptionError, "timeout must be between 0.001 and 86400 seconds, got 0"),
        (-1, OptionError, "got -1"),
        (float("nan"), OptionError, "got nan"),
        ("5", WrongType, "timeout must be a number of seconds, got str"),
    ],
)
async def test_a_timeout_is_a_number_of_seconds(
    place: Place, timeout: Any, error: type[OutboxError], text: str
) -> None:
    broker = place.broker()
    subscriber = broker.subscriber("orders")

    async with running(broker):
        with pytest.raises(error, match=text):
            await subscriber.get_one(timeout=timeout)


# TestOutboxBroker


async def test_in_memory_there_is_nothing_to_pull() -> None:
    broker = OutboxBroker()
    subscriber = broker.subscriber("orders")

    async with TestOutboxBroker(broker):
        with pytest.raises(CannotPull, match="nothing to pull under TestOutboxBroker"):
            await subscriber.get_one()


async def test_with_the_real_database_messages_are_pulled_in_tests_too(place: Place) -> None:
    broker = place.broker()
    subscriber = broker.subscriber("orders")

    async with TestOutboxBroker(broker, with_real=True):
        await broker.publish(7, "orders", message_id=str(uuid4()))
        message = await got(subscriber)
        await message.ack()

    assert place.rows() == []
