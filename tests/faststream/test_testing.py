"""`TestOutboxBroker`: handlers tested without a database, or with the real one and mocks."""

import asyncio
from datetime import timedelta
from typing import Any

import pytest
from faststream import BaseMiddleware, FastStream, TestApp
from faststream.exceptions import RejectMessage, SubscriberNotFound
from pydantic import BaseModel, NonNegativeFloat, ValidationError
from sqlalchemy.orm import Session

from outbox_core.errors import CannotEncode, InvalidMessage, Undecodable
from outbox_sqlalchemy import OutboxBroker, OutboxMessage, OutboxResponse, OutboxRouter, TestOutboxBroker
from tests.places import Place, until


class Data(BaseModel):
    data: NonNegativeFloat


async def test_a_handler_runs_at_once_and_its_mock_knows_with_what() -> None:
    broker = OutboxBroker()

    @broker.subscriber("test")
    async def handle(body: str) -> None: ...

    async with TestOutboxBroker(broker) as tested:
        await tested.publish("Hi!", "test")

        handle.mock.assert_called_once_with("Hi!")
    assert tested is broker


async def test_a_chain_runs_to_its_end() -> None:
    broker = OutboxBroker()

    @broker.publisher("output_data")
    @broker.subscriber("input_data")
    async def on_input(message: Data) -> Data:
        return Data(data=message.data + 1.0)

    @broker.subscriber("output_data")
    async def on_output(message: Data) -> None: ...

    async with TestOutboxBroker(broker):
        await broker.publish(Data(data=0.2), "input_data")

        on_input.mock.assert_called_once_with(dict(Data(data=0.2)))
        on_output.mock.assert_called_once_with({"data": 1.2})


async def test_a_publisher_without_a_subscriber_has_a_mock_too() -> None:
    broker = OutboxBroker()
    publisher = broker.publisher("letters")

    @publisher
    @broker.subscriber("orders")
    async def handle(body: int) -> int:
        return body + 1

    async with TestOutboxBroker(broker):
        await broker.publish(1, queue="orders")

        publisher.mock.assert_called_once_with(2)
        await publisher.publish(3)
        publisher.mock.assert_called_with(3)


async def test_the_recorded_call_knows_headers_and_correlation_id() -> None:
    broker = OutboxBroker()

    @broker.subscriber("orders")
    async def handle(body: int) -> None: ...

    async with TestOutboxBroker(broker):
        await broker.publish(1, "orders", headers={"tenant": "acme"}, correlation_id="c")

        await handle.assert_called_once_with(1, headers={"tenant": "acme"}, correlation_id="c")


async def test_subscribers_can_be_registered_inside_the_test() -> None:
    broker = OutboxBroker()
    async with TestOutboxBroker(broker):

        @broker.subscriber("orders")
        async def handle(body: int) -> None: ...

        await broker.start()
        await broker.publish(1, "orders")

        handle.mock.assert_called_once_with(1)


async def test_errors_surface_from_publish() -> None:
    broker = OutboxBroker()

    @broker.subscriber("orders")
    async def handle(message: Data) -> None:
        if message.data == 13:
            raise RuntimeError("unlucky")

    async with TestOutboxBroker(broker):
        with pytest.raises(ValidationError):
            await broker.publish({"data": -1}, "orders")
        with pytest.raises(RuntimeError, match="unlucky"):
            await broker.publish({"data": 13}, "orders")
        with pytest.raises(Undecodable):
            await broker.publish(b"{", "orders", headers={"content-type": "application/json"})


async def test_raised_votes_do_not_surface() -> None:
    broker = OutboxBroker()

    @broker.subscriber("orders")
    async def handle(body: int) -> None:
        raise RejectMessage

    async with TestOutboxBroker(broker):
        await broker.publish(1, "orders")

        handle.mock.assert_called_once_with(1)


async def test_the_real_checks_and_the_real_encoder_run() -> None:
    broker = OutboxBroker()

    @broker.subscriber("orders")
    async def handle(body: Any) -> None: ...

    async with TestOutboxBroker(broker):
        with pytest.raises(CannotEncode):
            await broker.publish(object(), "orders")
        with pytest.raises(InvalidMessage):
            await broker.publish(1, "")
        with pytest.raises(InvalidMessage):
            await broker.publish(1, "orders", activate_in=timedelta(seconds=-1))
        await broker.publish({"at": timedelta(seconds=2)}, "orders", activate_in=timedelta(hours=1))

        handle.mock.assert_called_once_with({"at": 2.0})


async def test_a_message_for_nobody_is_accepted() -> None:
    broker = OutboxBroker()
    async with TestOutboxBroker(broker):
        assert isinstance(await broker.publish(1, "nowhere"), int)


async def test_a_batch_reaches_each_kind_of_subscriber() -> None:
    broker = OutboxBroker()

    @broker.subscriber("orders")
    async def one(body: int) -> None: ...

    @broker.subscriber("letters", batch=True)
    async def many(bodies: list[int]) -> None: ...

    async with TestOutboxBroker(broker):
        ids = await broker.publish_batch(1, 2, queue="orders")
        await broker.publish_batch(3, 4, queue="letters")
        await broker.publish(5, "letters")

        assert [call.args for call in one.mock.call_args_list] == [(1,), (2,)]
        assert [call.args for call in many.mock.call_args_list] == [([3, 4],), ([5],)]
        assert len(set(ids)) == 2


async def test_a_request_returns_what_the_handler_answers() -> None:
    broker = OutboxBroker()

    @broker.subscriber("questions")
    async def answer(body: int) -> dict[str, int]:
        return {"answer": body + 1}

    async with TestOutboxBroker(broker):
        response = await broker.request(41, "questions", correlation_id="c", timeout=1)

        assert await response.decode() == {"answer": 42}
        assert response.correlation_id == "c"


async def test_a_request_to_nobody_says_so() -> None:
    broker = OutboxBroker()
    async with TestOutboxBroker(broker):
        with pytest.raises(SubscriberNotFound, match="'nowhere'"):
            await broker.request(1, "nowhere")


async def test_a_request_ends_at_its_timeout() -> None:
    broker = OutboxBroker()

    @broker.subscriber("questions")
    async def answer(body: int) -> None:
        await asyncio.Event().wait()

    async with TestOutboxBroker(broker):
        with pytest.raises(TimeoutError):
            await broker.request(1, "questions", timeout=0.01)


async def test_responses_and_answers_go_on_in_memory() -> None:
    broker = OutboxBroker()
    got: list[tuple[str, int]] = []

    @broker.subscriber("orders")
    async def handle(body: int) -> OutboxResponse:
        return OutboxResponse(body + 1, queue="letters", session=object())

    @broker.subscriber(["letters", "answers"])
    async def collect(body: int, message: OutboxMessage) -> None:
        got.append((message.queue, body))

    async with TestOutboxBroker(broker):
        await broker.publish(1, "orders", reply_to="answers")

    assert sorted(got) == [("answers", 2), ("letters", 2)]


async def test_a_router_of_the_broker_is_tested_with_it() -> None:
    broker, router = OutboxBroker(), OutboxRouter("shop.")

    @router.subscriber("orders")
    async def handle(body: int) -> None: ...

    broker.include_router(router)
    async with TestOutboxBroker(broker):
        await broker.publish(1, "shop.orders")

        handle.mock.assert_called_once_with(1)


async def test_a_missing_transaction_is_allowed_in_tests() -> None:
    broker = OutboxBroker(require_transaction="error")

    @broker.subscriber("orders")
    async def handle(body: int) -> None: ...

    async with TestOutboxBroker(broker):
        await broker.publish(1, "orders")

        handle.mock.assert_called_once_with(1)


async def test_middlewares_run_in_tests() -> None:
    seen: list[str] = []

    class Note(BaseMiddleware):
        async def on_receive(self) -> None:
            seen.append("receive")

        async def publish_scope(self, call_next: Any, cmd: Any) -> Any:
            seen.append("publish")
            return await call_next(cmd)

    broker = OutboxBroker(middlewares=[Note])

    @broker.subscriber("orders")
    async def handle(body: int) -> None: ...

    async with TestOutboxBroker(broker):
        await broker.publish(1, "orders")

    assert seen == ["publish", "receive"]


async def test_a_broker_is_pinged_successfully_in_tests() -> None:
    async with TestOutboxBroker(OutboxBroker()) as broker:
        assert await broker.ping(1)


async def test_an_application_can_be_tested_around_the_broker() -> None:
    broker = OutboxBroker()
    hooks: list[str] = []
    app = FastStream(broker, on_startup=[lambda: hooks.append("startup")])

    @broker.subscriber("orders")
    async def handle(body: int) -> None: ...

    async with TestOutboxBroker(broker), TestApp(app):
        await broker.publish(1, "orders")

        handle.mock.assert_called_once_with(1)
    assert hooks == ["startup"]


async def test_two_brokers_are_tested_together() -> None:
    first, second = OutboxBroker(), OutboxBroker()

    @first.subscriber("orders")
    @second.publisher("letters")
    async def forward(body: int) -> int:
        return body

    @second.subscriber("letters")
    async def handle(body: int) -> None: ...

    async with TestOutboxBroker(first, second):
        await first.publish(1, "orders")

        handle.mock.assert_called_once_with(1)


async def test_the_broker_is_itself_again_afterwards(place: Place) -> None:
    broker = place.broker()

    @broker.subscriber("orders")
    async def handle(body: int) -> None: ...

    async with TestOutboxBroker(broker):
        await broker.publish(1, "orders")
    await broker.publish(2, "orders")

    assert [row.payload for row in place.rows()] == [b"2"]


async def test_a_sync_publish_is_checked_and_goes_nowhere(place: Place) -> None:
    broker = place.broker()

    @broker.subscriber("orders")
    async def handle(body: int) -> None: ...

    async with TestOutboxBroker(broker):
        with Session(place.sync_engine) as session:
            row_id = broker.publish_sync(1, "orders", session=session)
            with pytest.raises(CannotEncode):
                broker.publish_sync(object(), "orders", session=session)
            session.commit()

        handle.mock.assert_not_called()
    assert isinstance(row_id, int)
    assert place.rows() == []


# With the real database


async def test_with_real_the_database_is_real_and_the_mocks_are_there(both: Place) -> None:
    broker = both.broker()

    @broker.subscriber("orders")
    @broker.publisher("letters")
    async def handle(body: int) -> int:
        return body + 1

    @broker.subscriber("letters")
    async def collect(body: int) -> None: ...

    async with TestOutboxBroker(broker, with_real=True):
        row_id = await broker.publish(1, "orders")
        await collect.wait_call(5)

        handle.mock.assert_called_once_with(1)
        collect.mock.assert_called_once_with(2)
        await until(both.rows, [])
    assert row_id == 1


async def test_with_real_a_publisher_without_a_subscriber_gets_a_fake_one(place: Place) -> None:
    broker = place.broker()
    publisher = broker.publisher("letters")

    @publisher
    @broker.subscriber("orders")
    async def handle(body: int) -> int:
        return body + 1

    async with TestOutboxBroker(broker, with_real=True):
        await broker.publish(1, "orders")
        await handle.wait_call(5)
        await until(lambda: publisher.mock.call_count, 1)

        publisher.mock.assert_called_once_with(2)
        await until(place.rows, [])


async def test_with_real_a_failure_is_seen_by_the_waiter(place: Place) -> None:
    broker = place.broker()

    @broker.subscriber("orders")
    async def handle(body: int) -> None:
        raise ValueError(body)

    async with TestOutboxBroker(broker, with_real=True):
        await broker.publish(7, "orders")

        with pytest.raises(ValueError, match="7"):
            await handle.wait_call(5)
