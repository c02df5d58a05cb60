"""Starting and stopping: brokers, single subscribers, applications."""

import asyncio
import logging
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from faststream import FastStream
from faststream.exceptions import FeatureNotSupportedException, StopApplication, StopConsume
from sqlalchemy import MetaData

from outbox_core.errors import OptionError
from outbox_core.events import Event, WorkerStarted, WorkerStopped
from outbox_core.retry import ConstantRetry
from outbox_sqlalchemy import OutboxBroker, OutboxMessage, make_outbox_tables
from tests.places import Place, running, until


async def test_entering_a_broker_consumes_nothing(both: Place) -> None:
    events: list[Event] = []
    broker = both.broker(observers=[events.append])

    @broker.subscriber("orders")
    async def handle(body: int) -> None: ...

    async with broker:
        await broker.publish(7, "orders")

    assert len(both.rows()) == 1
    assert both.rows()[0].acquired_token is None
    assert events == []


async def test_starting_twice_is_starting_once(both: Place) -> None:
    events: list[Event] = []
    broker = both.broker(observers=[events.append], worker_name="w")
    got: list[int] = []

    @broker.subscriber("orders")
    async def handle(body: int) -> None:
        got.append(body)

    async with broker:
        await broker.start()
        await broker.start()
        await broker.publish_batch(1, 2, 3, queue="orders")
        await until(lambda: got, [1, 2, 3])

    assert [event.worker for event in events if isinstance(event, WorkerStarted)] == ["w"]
    assert [event.worker for event in events if isinstance(event, WorkerStopped)] == ["w"]


async def test_stopping_twice_or_before_a_start_does_nothing(place: Place) -> None:
    broker = place.broker()

    @broker.subscriber("orders")
    async def handle(body: int) -> None: ...

    await broker.stop()
    await broker.start()
    await broker.stop()
    await broker.stop()

    assert broker.running is False


async def test_a_dynamic_subscriber_starts_and_stops_beside_a_running_broker(both: Place) -> None:
    broker = both.broker()
    got: list[tuple[str, int]] = []

    @broker.subscriber("orders")
    async def handle(body: int) -> None:
        got.append(("orders", body))

    async with running(broker):
        subscriber = broker.subscriber("letters", persistent=False)

        @subscriber
        async def dynamic(body: int) -> None:
            got.append(("letters", body))

        await broker.publish(1, "letters")
        await subscriber.start()
        await until(lambda: got, [("letters", 1)])
        await subscriber.stop()
        await broker.publish(2, "letters")
        await broker.publish(3, "orders")
        await until(lambda: got, [("letters", 1), ("orders", 3)])
        await until(lambda: [row.payload for row in both.rows()], [b"2"])

        await subscriber.start()
        await until(lambda: got, [("letters", 1), ("orders", 3), ("letters", 2)])


async def test_a_dynamic_subscriber_needs_no_started_broker(place: Place) -> None:
    broker = place.broker()
    got: list[int] = []

    async with broker:
        subscriber = broker.subscriber("letters", persistent=False)

        @subscriber
        async def dynamic(body: int) -> None:
            got.append(body)

        async with subscriber:
            await broker.publish(1, "letters")
            await until(lambda: got, [1])

    assert await broker.ping(1) is False


@pytest.mark.parametrize("max_workers", [1, 3])
async def test_stop_consume_ends_this_subscriber_at_once_and_no_other(both: Place, max_workers: int) -> None:
    broker = both.broker()
    got: list[int] = []
    others: list[int] = []

    @broker.subscriber("orders", prefetch=10, max_workers=max_workers, retry_strategy=ConstantRetry(delay_seconds=600))
    async def handle(body: int) -> None:
        got.append(body)
        raise StopConsume

    @broker.subscriber("letters")
    async def other(body: int) -> None:
        others.append(body)

    await broker.publish_batch(*range(10), queue="orders")
    async with running(broker):
        await until(lambda: [row.leased_until for row in both.rows()], [None] * 10)
        await broker.publish(7, "letters")
        await until(lambda: others, [7])

    assert 1 <= len(got) <= max_workers
    assert sum(row.attempts_count for row in both.rows()) == len(got)
    assert sum(row.deliveries_count for row in both.rows()) == len(got)


async def test_a_subscriber_that_stopped_itself_can_be_started_again(place: Place) -> None:
    broker = place.broker()
    got: list[int] = []
    subscriber = broker.subscriber("orders", retry_strategy=ConstantRetry(delay_seconds=0.01))

    @subscriber
    async def handle(body: int, message: OutboxMessage) -> None:
        got.append(body)
        if message.attempt == 1:
            raise StopConsume

    async with running(broker):
        await broker.publish(1, "orders")
        await until(lambda: (got, [row.leased_until for row in place.rows()]), ([1], [None]))
        assert subscriber.running is False
        await subscriber.start()
        await until(lambda: (got, place.rows()), ([1, 1], []))


async def test_a_stop_waits_for_a_subscriber_that_stops_itself(place: Place) -> None:
    broker = place.broker(graceful_timeout=5.0)
    started, release = asyncio.Event(), asyncio.Event()
    done: list[int] = []

    @broker.subscriber("orders", max_workers=2)
    async def handle(body: int) -> None:
        if body == 2:
            raise StopConsume
        started.set()
        await release.wait()
        done.append(body)

    await broker.start()
    await broker.publish(1, "orders")
    await started.wait()
    await broker.publish(2, "orders")
    await until(lambda: [row.attempts_count for row in place.rows()], [0, 1])
    stopping = asyncio.create_task(broker.stop())
    finished, _ = await asyncio.wait([stopping], timeout=0.05)
    assert not finished
    release.set()
    await stopping

    assert done == [1]
    assert [row.payload for row in place.rows()] == [b"2"]


@asynccontextmanager
async def application(*brokers: OutboxBroker, **hooks: object) -> AsyncIterator[FastStream]:
    """A FastStream application that runs, with the process's signal handlers put back at its end."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    app = FastStream(*brokers, logger=None, **hooks)  # type: ignore[arg-type]
    task = asyncio.create_task(app.run(sleep_time=0.01))
    try:
        await until(lambda: all(broker.running for broker in brokers), True)
        yield app
        app.exit()
        async with asyncio.timeout(5):
            await task
    finally:
        for number, handler in before.items():
            asyncio.get_running_loop().remove_signal_handler(number)
            signal.signal(number, handler)


async def test_a_faststream_application_runs_and_stops(both: Place) -> None:
    broker = both.broker()
    got: list[int] = []
    hooks: list[str] = []

    @broker.subscriber("orders")
    async def handle(body: int) -> None:
        got.append(body)

    async with application(
        broker,
        on_startup=[lambda: hooks.append("startup")],
        after_startup=[lambda: hooks.append("started")],
        after_shutdown=[lambda: hooks.append("stopped")],
    ):
        await broker.publish(1, "orders")
        await until(lambda: (got, both.rows()), ([1], []))

    assert broker.running is False
    assert hooks == ["startup", "started", "stopped"]
    await broker.publish(2, "orders")
    assert len(both.rows()) == 1


async def test_several_brokers_of_one_application_publish_to_each_other(both: Place) -> None:
    first, second = both.broker(), both.broker()
    got: list[tuple[str, int]] = []

    @first.subscriber("orders")
    @second.subscriber("returns")
    @second.publisher("letters")
    async def handle(body: int) -> int:
        return body + 1

    @first.subscriber("letters")
    async def collect(body: int, message: OutboxMessage) -> None:
        got.append((message.queue, body))

    async with application(first, second):
        await first.publish(1, "orders")
        await second.publish(2, "returns")
        await until(lambda: sorted(got), [("letters", 2), ("letters", 3)])
        await until(both.rows, [])

    assert (first.running, second.running) == (False, False)


async def test_an_application_may_have_several_brokers(both: Place) -> None:
    others = make_outbox_tables(metadata := MetaData(), "other_outbox")
    metadata.create_all(both.sync_engine)
    events: list[Event] = []
    got: list[tuple[str, int]] = []
    first = both.broker(observers=[events.append], worker_name="first")
    second = both.broker(observers=[events.append], worker_name="second", outbox_table=others)

    @first.subscriber("orders")
    async def handle_first(body: int) -> None:
        got.append(("first", body))
        await second.publish(body + 1, "orders")

    @second.subscriber("orders")
    async def handle_second(body: int) -> None:
        got.append(("second", body))

    async with application(first, second):
        await first.publish(1, "orders")
        await until(lambda: (got, both.rows(), both.rows(others.outbox)), ([("first", 1), ("second", 2)], [], []))
        assert (await first.ping(1.0), await second.ping(1.0)) == (True, True)

    # Both in the order in which they are listed: the first has to need the second, not the other way round.
    lives = [event for event in events if isinstance(event, WorkerStarted | WorkerStopped)]
    assert [(type(event), event.worker) for event in lives] == [
        (WorkerStarted, "first"),
        (WorkerStarted, "second"),
        (WorkerStopped, "first"),
        (WorkerStopped, "second"),
    ]
    metadata.drop_all(both.sync_engine)


@pytest.mark.parametrize("raised", [SystemExit, StopApplication])
async def test_exit_in_a_handler_ends_the_application_and_keeps_the_message(
    place: Place, raised: type[BaseException]
) -> None:
    broker = place.broker()
    got: list[int] = []

    @broker.subscriber("orders", prefetch=10, retry_strategy=ConstantRetry(delay_seconds=600))
    async def handle(body: int) -> None:
        got.append(body)
        raise raised

    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    app = FastStream(broker, logger=None)
    await broker.publish_batch(1, 2, 3, queue="orders")
    async with asyncio.timeout(5):
        await app.run(sleep_time=0.01)
    for number, handler in before.items():
        asyncio.get_running_loop().remove_signal_handler(number)
        signal.signal(number, handler)

    assert got == [1]
    assert broker.running is False
    assert [(row.payload, row.attempts_count, row.leased_until) for row in place.rows()] == [
        (b"1", 1, None),
        (b"2", 0, None),
        (b"3", 0, None),
    ]


async def test_exit_in_a_sync_handler_keeps_the_message_too(place: Place) -> None:
    broker = place.broker()
    got: list[int] = []

    @broker.subscriber("orders", prefetch=10, retry_strategy=ConstantRetry(delay_seconds=600))
    def handle(body: int) -> None:
        got.append(body)
        raise SystemExit

    await broker.publish_batch(1, 2, queue="orders")
    async with running(broker):
        await until(lambda: (got, [row.leased_until for row in place.rows()]), ([1], [None, None]))

    assert [row.attempts_count for row in place.rows()] == [1, 0]


async def test_requests_are_refused_with_the_reason(place: Place) -> None:
    broker = place.broker()

    for request in (broker.request(1, "orders"), broker.publisher("orders").request(1)):
        with pytest.raises(FeatureNotSupportedException) as caught:
            await request
        assert str(caught.value) == (
            "an outbox has no request(): a row is invisible until its transaction commits, so waiting for an answer "
            "inside it would wait for ever; publish with reply_to=… and subscribe to the answers"
        )

    assert place.rows() == []


# Logs


async def test_every_record_of_a_message_has_its_queue_and_id(place: Place, caplog: pytest.LogCaptureFixture) -> None:
    logger = logging.getLogger("test.context")
    broker = place.broker(logger=logger, log_level=logging.INFO)

    @broker.subscriber("orders", retry_strategy=ConstantRetry(delay_seconds=0.01, max_attempts=1))
    async def handle(body: int) -> None:
        raise ValueError(body)

    with caplog.at_level(logging.INFO, logger="test.context"):
        async with running(broker):
            await broker.publish(7, "orders", message_id="0190163d-8694-739b-aea5-966c26f8ad91")
            await until(lambda: len(place.rows(place.tables.dead_letters)), 1)

    records = [record for record in caplog.records if record.name == "test.context"]
    assert [(record.levelname, record.message) for record in records] == [
        ("INFO", "`Handle` waiting for messages"),
        ("INFO", "Received"),
        ("ERROR", "ValueError: 7"),
        ("INFO", "Processed"),
    ]
    assert [(record.queue, record.message_id) for record in records[1:]] == [  # type: ignore[attr-defined]
        ("orders", "0190163d-8694-739b-aea5-966c26f8ad91")
    ] * 3


async def test_a_start_is_logged_once_whatever_the_level_of_messages(
    place: Place, caplog: pytest.LogCaptureFixture
) -> None:
    logger = logging.getLogger("test.start")
    broker = place.broker(logger=logger)

    @broker.subscriber(["orders", "letters"])
    async def handle(body: int) -> None: ...

    with caplog.at_level(logging.INFO, logger="test.start"):
        async with running(broker):
            await broker.publish(7, "orders")
            await until(place.rows, [])

    records = [record for record in caplog.records if record.name == "test.start"]
    assert [(record.message, record.queue) for record in records] == [  # type: ignore[attr-defined]
        ("`Handle` waiting for messages", "orders,letters")
    ]


async def test_the_log_context_is_in_the_context(place: Place) -> None:
    broker = place.broker()
    got: list[dict[str, str]] = []

    @broker.subscriber("orders", batch=True)
    async def handle(bodies: list[int]) -> None:
        got.append(broker.context.get_local("log_context"))

    await broker.publish(1, "orders", message_id="0190163d-8694-739b-aea5-966c26f8ad91")
    async with running(broker):
        await until(lambda: got, [{"queue": "orders", "message_id": "0190163d-8694-739b-aea5-966c26f8ad91"}])


async def test_a_second_start_that_fails_leaves_the_running_broker_alone(place: Place) -> None:
    broker = place.broker()
    got: list[int] = []

    @broker.subscriber("orders")
    async def handle(body: int) -> None:
        got.append(body)

    async with running(broker):

        @broker.subscriber("orders")
        async def conflicting(body: int) -> None: ...

        with pytest.raises(OptionError, match=r"^queue 'orders' has two subscribers"):
            await broker.start()
        await broker.publish(1, "orders")
        await until(lambda: got, [1])
