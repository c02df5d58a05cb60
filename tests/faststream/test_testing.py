"""`TestOutboxBroker`: handlers tested without a database, or with the real one and mocks."""

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from faststream import AckPolicy, BaseMiddleware, FastStream, TestApp
from faststream.exceptions import NackMessage, RejectMessage, SubscriberNotFound
from pydantic import BaseModel, NonNegativeFloat, ValidationError
from sqlalchemy import text
from sqlalchemy.ext.asyncio import create_async_engine

from outbox_core.errors import CannotEncode, InvalidMessage, NotStarted, OptionError, Undecodable
from outbox_core.faststream import OutboxBroker as CoreBroker
from outbox_core.memory import MemoryStore
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
        return OutboxResponse(body + 1, queue="letters")

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


async def test_the_broker_is_itself_again_after_a_test_that_failed(place: Place) -> None:
    broker = place.broker()

    @broker.subscriber("orders")
    async def handle(body: int) -> None: ...

    with pytest.raises(AssertionError):
        async with TestOutboxBroker(broker):
            raise AssertionError
    await broker.publish(2, "orders")

    assert [row.payload for row in place.rows()] == [b"2"]


async def test_publishes_from_threads_and_from_other_tasks_are_in_memory_too(place: Place) -> None:
    broker = place.broker()
    go_on = asyncio.Event()

    @broker.subscriber("orders")
    async def handle(body: int) -> None: ...

    async def before() -> None:
        await go_on.wait()
        await broker.publish(1, "orders")

    task = asyncio.create_task(before())
    async with TestOutboxBroker(broker):
        go_on.set()
        await task
        await asyncio.to_thread(lambda: asyncio.run(broker.publish(2, "orders")))

        assert [call.args for call in handle.mock.call_args_list] == [(1,), (2,)]
    assert place.rows() == []


async def test_a_scheduled_message_and_a_timer_are_handled_at_once() -> None:
    broker = OutboxBroker()

    @broker.subscriber("orders")
    async def handle(body: int, message: OutboxMessage) -> tuple[str | None, int]:
        return message.key, message.priority

    async with TestOutboxBroker(broker):
        await broker.publish(1, "orders", activate_in=timedelta(days=1), key="k", priority=3)
        await broker.publish(2, "orders", activate_at=datetime.now(UTC) + timedelta(days=1))
        await broker.publish(3, "orders", timer_id="t", activate_in=timedelta(days=1))
        await broker.publish(4, "orders", timer_id="t", activate_in=timedelta(days=1))

        assert [call.args for call in handle.mock.call_args_list] == [(1,), (2,), (3,), (4,)]


async def test_a_message_id_is_kept_and_free_again_when_its_message_is_handled() -> None:
    broker = OutboxBroker()
    seen: list[str] = []

    @broker.subscriber("orders")
    async def handle(body: int, message: OutboxMessage) -> None:
        seen.append(message.message_id)

    id = "0197a3c0-0000-7000-8000-000000000001"
    async with TestOutboxBroker(broker):
        first = await broker.publish(1, "orders", message_id=id)
        second = await broker.publish(1, "orders", message_id=id)

    assert seen == [id, id]
    assert first != second


async def test_a_batch_subscriber_answers_a_request() -> None:
    broker = OutboxBroker()

    @broker.subscriber("questions", batch=True)
    async def answer(bodies: list[int]) -> int:
        return sum(bodies) + 1

    async with TestOutboxBroker(broker):
        assert await (await broker.request(41, "questions")).decode() == 42


async def test_a_subscriber_registered_inside_needs_no_start() -> None:
    broker = OutboxBroker()
    got: list[int] = []
    async with TestOutboxBroker(broker):

        @broker.subscriber("orders")
        async def handle(body: int) -> None:
            got.append(body)

        await broker.publish(1, "orders")

    assert got == [1]


async def test_a_subscriber_that_could_not_start_fails_its_test() -> None:
    broker = OutboxBroker()

    @broker.subscriber("orders", transactional=True, ack_policy=AckPolicy.ACK_FIRST)
    async def handle(body: int) -> None: ...

    with pytest.raises(OptionError, match="cannot be transactional"):
        await TestOutboxBroker(broker).__aenter__()
    assert not broker.running


async def test_a_handlers_calls_can_be_waited_for() -> None:
    broker = OutboxBroker()

    @broker.subscriber("orders")
    async def handle(body: int) -> None: ...

    async with TestOutboxBroker(broker):
        publishing = asyncio.create_task(broker.publish(1, "orders"))
        await handle.wait_call(5)

        handle.mock.assert_called_once_with(1)
        await publishing


def test_an_application_is_tested_without_an_event_loop_of_the_tests() -> None:
    broker = OutboxBroker()
    app = FastStream(broker)
    got: list[int] = []

    @broker.subscriber("orders")
    async def handle(body: int) -> None:
        got.append(body)

    @app.after_startup
    async def publish() -> None:
        await broker.publish(1, "orders")

    async def test() -> None:
        async with TestOutboxBroker(broker):
            with TestApp(app):
                assert got == [1]

    asyncio.run(test())


# Transactional handlers


async def test_a_transactional_handler_has_its_transaction(both: Place) -> None:
    both.run("CREATE TABLE IF NOT EXISTS written (body integer)", "DELETE FROM written")
    broker = both.broker()

    @broker.publisher("mails")
    @broker.subscriber("orders", transactional=True)
    async def handle(body: int, message: OutboxMessage) -> int:
        await message.session.execute(text("INSERT INTO written VALUES (:body)"), {"body": body})
        await broker.publish(body, "mails")
        await broker.publish(body, "mails", session=message.session)
        collect.mock.assert_not_called()
        if body < 0:
            raise ValueError(body)
        if body == 0:
            raise NackMessage
        return body

    @broker.subscriber("mails")
    async def collect(body: int) -> None: ...

    async with TestOutboxBroker(broker):
        with pytest.raises(ValueError, match="-1"):
            await broker.publish(-1, "orders")
        await broker.publish(0, "orders")
        collect.mock.assert_not_called()
        answer = await broker.request(1, "orders")

        assert await answer.decode() == 1
        assert [call.args for call in collect.mock.call_args_list] == [(1,)] * 3
    with both.sync_engine.connect() as connection:
        assert connection.execute(text("SELECT body FROM written")).fetchall() == [(1,)]
    assert both.rows() == []
    both.run("DROP TABLE written")


async def test_a_transactional_batch_is_one_transaction(place: Place) -> None:
    broker = place.broker()

    @broker.subscriber("orders", transactional=True, batch=True)
    async def handle(bodies: list[int], message: OutboxMessage) -> None:
        for body in bodies:
            await broker.publish(body, "mails", session=message.session)
        collect.mock.assert_not_called()

    @broker.subscriber("mails")
    async def collect(body: int) -> None: ...

    async with TestOutboxBroker(broker):
        await broker.publish_batch(1, 2, queue="orders")

        assert [call.args for call in collect.mock.call_args_list] == [(1,), (2,)]


async def test_a_transactional_handler_that_does_not_use_its_session_needs_no_database() -> None:
    broker = OutboxBroker(create_async_engine("postgresql+asyncpg://user:secret@127.0.0.1:1/nowhere"))

    @broker.publisher("mails")
    @broker.subscriber("orders", transactional=True)
    async def handle(body: int) -> int:
        return body

    @broker.subscriber("mails")
    async def collect(body: int) -> None: ...

    async with TestOutboxBroker(broker):
        await broker.publish(1, "orders")

        collect.mock.assert_called_once_with(1)


async def test_a_transactional_handler_without_an_engine_is_told_the_way_out() -> None:
    broker = OutboxBroker()

    @broker.subscriber("orders", transactional=True)
    async def handle(body: int) -> None: ...

    @broker.subscriber("letters")
    async def other(body: int) -> None: ...

    async with TestOutboxBroker(broker):
        with pytest.raises(NotStarted, match="needs a database in tests too; create its broker with an engine"):
            await broker.publish(1, "orders")
        await broker.publish(1, "letters")

        handle.mock.assert_not_called()
        other.mock.assert_called_once_with(1)


async def test_a_transactional_handler_on_the_memory_store_has_its_transaction() -> None:
    broker = CoreBroker(MemoryStore())

    @broker.publisher("mails")
    @broker.subscriber("orders", transactional=True)
    async def handle(body: int) -> int:
        await broker.publish(body, "mails")
        collect.mock.assert_not_called()
        return body

    @broker.subscriber("mails")
    async def collect(body: int) -> None: ...

    async with TestOutboxBroker(broker):
        await broker.publish(1, "orders")

        assert [call.args for call in collect.mock.call_args_list] == [(1,), (1,)]


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
