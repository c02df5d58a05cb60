"""What looks wrong and is not: it is taken on purpose, and does no harm."""

from collections.abc import Callable
from enum import StrEnum
from typing import Any

import pytest
from sqlalchemy.ext.asyncio import AsyncSession

from outbox_core.envelope import decode
from outbox_core.errors import UnknownOption
from outbox_sqlalchemy import OutboxBroker
from tests.bad_inputs.values import ONE
from tests.places import Place, running, statements_on, until


class Queue(StrEnum):
    ORDERS = "orders"


@pytest.mark.parametrize(
    "name",
    ["'; DROP TABLE outbox; --", '"', "%s", ":queue", "\\", "$1", "{0}", "../..", "\u202egnp", "🚲", "👩\u200d🔧"],
)
async def test_a_name_is_a_parameter_and_never_a_part_of_a_statement(place: Place, name: str) -> None:
    broker = place.broker()

    await broker.publish(name, name, key=name, timer_id=name, headers={"a": name}, correlation_id=name, reply_to=name)
    await broker.pause(name)

    (row,) = place.rows()
    assert (row.queue, row.key, row.timer_id, row.payload.decode()) == (name, name, name, name)
    assert (row.headers["a"], row.headers["correlation_id"], row.headers["reply_to"]) == (name, name, name)
    assert (await broker.stats())[name].paused
    assert await broker.cancel_timer(queue=name, timer_id=name)


async def test_a_member_of_a_str_enum_is_its_value(place: Place) -> None:
    await place.broker().publish(1, Queue.ORDERS, key=Queue.ORDERS, headers={"a": Queue.ORDERS})

    (row,) = place.rows()
    assert (row.queue, row.key, row.headers["a"]) == ("orders", "orders", "orders")


async def test_a_large_number_arrives_as_it_is(place: Place) -> None:
    await place.broker().publish({"n": 2**70}, "orders")

    (row,) = place.rows()
    assert decode(row.payload, row.headers["content-type"]) == {"n": 2**70}


async def test_none_is_json_null(place: Place) -> None:
    await place.broker().publish(None, "orders")

    (row,) = place.rows()
    assert (row.payload, row.headers["content-type"]) == (b"null", "application/json")


async def test_nobody_else_chooses_the_identity_of_a_message(place: Place) -> None:
    await place.broker().publish(1, "orders", headers={"message-id": "mine", "message_id": "mine"}, message_id=ONE)

    (row,) = place.rows()
    assert (row.message_id, row.headers["message-id"]) == (ONE, "mine")


async def test_the_headers_of_one_message_may_be_those_of_the_next(place: Place) -> None:
    broker = place.broker()
    inbound = {"content-type": "application/json", "correlation_id": "c", "reply_to": "answers", "tenant": "acme"}

    await broker.publish("text", "orders", headers=inbound)
    await broker.publish("text", "orders", headers=inbound, correlation_id="d", reply_to="others")

    assert [row.headers for row in place.rows()] == [
        {**inbound, "content-type": "text/plain"},
        {**inbound, "content-type": "text/plain", "correlation_id": "d", "reply_to": "others"},
    ]


@pytest.mark.parametrize("reply_to", [None, ""])
async def test_there_may_be_no_queue_for_answers(place: Place, reply_to: str | None) -> None:
    await place.broker().publish(1, "orders", reply_to=reply_to)

    (row,) = place.rows()
    assert "reply_to" not in row.headers


async def test_an_empty_batch_is_nothing(place: Place) -> None:
    with statements_on(place.engine.sync_engine) as sent:
        assert await place.broker().publish_batch(queue="orders") == []

    assert sent == []


async def test_a_batch_may_be_large(place: Place) -> None:
    async with AsyncSession(place.engine) as session, session.begin():
        row_ids = await place.broker().publish_batch(*range(50_000), queue="orders", session=session)

    assert len(set(row_ids)) == 50_000


@pytest.mark.parametrize("limit", [100, 2_000_000])
async def test_the_limit_of_a_payload_can_be_moved(place: Place, limit: int) -> None:
    broker = place.broker(max_payload_bytes=limit)

    await broker.publish(b"x" * limit, "orders")
    with pytest.raises(ValueError, match=f"must be at most {limit:,} bytes, got {limit + 1:,}"):
        await broker.publish(b"x" * (limit + 1), "orders")

    assert [len(row.payload) for row in place.rows()] == [limit]


async def test_a_large_payload_that_is_there_is_handled(place: Place) -> None:
    await place.broker(max_payload_bytes=3_000_000).publish(b"\xff" * 3_000_000, "orders")
    broker, got = place.broker(), []

    @broker.subscriber("orders")
    async def handle(body: bytes) -> None:
        got.append(len(body))

    async with running(broker):
        await until(lambda: got, [3_000_000])


async def test_a_queue_may_have_a_subscriber_before_it_has_a_message(place: Place) -> None:
    broker, got = place.broker(), []

    @broker.subscriber("nobody-has-published-here")
    async def handle(body: int) -> None:
        got.append(body)

    async with running(broker):
        await broker.publish(7, "nobody-has-published-here")
        await until(lambda: got, [7])


async def test_a_parameter_without_an_annotation_is_the_body(place: Place) -> None:
    broker, got = place.broker(), []

    @broker.subscriber("orders")
    async def handle(body) -> None:  # type: ignore[no-untyped-def]  # the point
        got.append(body)

    async with running(broker):
        await broker.publish({"id": 7}, "orders")
        await until(lambda: got, [{"id": 7}])


async def test_two_parameters_are_two_fields_of_the_body(place: Place) -> None:
    broker, got = place.broker(), []

    @broker.subscriber("orders")
    async def handle(id: int, name: str) -> None:
        got.append((id, name))

    async with running(broker):
        await broker.publish({"id": 7, "name": "mug"}, "orders")
        await until(lambda: got, [(7, "mug")])


async def test_a_broker_that_has_started_starts_again_and_publishes_when_it_has_stopped(place: Place) -> None:
    broker = place.broker()

    @broker.subscriber("orders")
    async def handle(body: int) -> None: ...

    async with running(broker):
        await broker.start()
    await broker.publish(7, "letters")

    assert [row.payload for row in place.rows()] == [b"7"]


@pytest.mark.parametrize("option", ["heartbeat", "heartbeat_interval", "drain"])
def test_what_follows_from_the_lease_is_no_option(option: str) -> None:
    subscriber: Callable[..., Any] = OutboxBroker().subscriber

    with pytest.raises(UnknownOption, match=f"^subscriber has no option '{option}'"):
        subscriber("orders", **{option: 1})
