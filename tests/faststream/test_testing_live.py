"""`TestOutboxBroker` on a broker that is running: a rehearsal beside its work, as the AsyncAPI page's "try it out" does."""

import asyncio
import json
import signal
import socket
import sys
import textwrap
from collections import Counter
from contextlib import AsyncExitStack, suppress
from contextvars import copy_context
from pathlib import Path
from typing import Any

import httpx
import pytest
from faststream import TestApp
from faststream.asgi import AsgiFastStream
from faststream.exceptions import SubscriberNotFound
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session

from outbox_sqlalchemy import OutboxBroker, OutboxMessage, OutboxResponse, TestOutboxBroker
from tests.places import Place, running, until


def mails(place: Place) -> list[Any]:
    return [json.loads(row.payload) for row in place.rows() if row.queue == "mails"]


async def test_the_worker_goes_on_and_its_handlers_publish_for_real(both: Place) -> None:
    broker = both.broker(max_workers=4)
    begun, go_on = asyncio.Event(), asyncio.Event()

    @broker.publisher("mails")
    @broker.subscriber("orders")
    async def ship(body: int) -> int:
        begun.set()
        if body < 100:
            await go_on.wait()
        await broker.publish(body, "mails")
        return body

    outside = copy_context()
    async with running(broker):
        await broker.publish_batch(1, 2, queue="orders")
        await begun.wait()
        async with TestOutboxBroker(broker):
            go_on.set()  # handlers that began before
            await until(lambda: Counter(mails(both)), Counter([1, 1, 2, 2]))
            await asyncio.create_task(broker.publish(3, "orders"), context=outside)  # and what others publish
            await until(lambda: Counter(mails(both)), Counter([1, 1, 2, 2, 3, 3]))
            assert await broker.request(100, "orders") is not None
        await broker.publish(4, "orders")
        await until(lambda: Counter(mails(both)), Counter([1, 1, 2, 2, 3, 3, 4, 4]))
        await broker.drained()

    assert [row.queue for row in both.rows()] == ["mails"] * 8


async def test_a_slow_rehearsal_and_a_busy_worker_lose_and_double_nothing(both: Place) -> None:
    broker = both.broker(max_workers=8)
    tried: list[int] = []

    @broker.subscriber("orders")
    async def ship(body: int) -> None:
        await asyncio.sleep(0.005)
        await broker.publish(body, "mails")

    @broker.subscriber("mails")
    async def collect(body: int) -> None:
        tried.append(body)

    broker.serve(exclude=["mails"])

    async def rehearse(body: int) -> None:
        async with TestOutboxBroker(broker):
            await broker.request(body, "orders")
            await asyncio.sleep(0.01)
            await broker.publish(body, "orders")

    async with running(broker):
        await broker.publish_batch(*range(100), queue="orders")
        await asyncio.gather(*(rehearse(1_000 + number) for number in range(20)))
        await broker.drained()

    assert sorted(mails(both)) == list(range(100))
    assert Counter(tried) == Counter({1_000 + number: 2 for number in range(20)})


async def test_what_a_rehearsal_starts_stays_in_memory(place: Place) -> None:
    broker = place.broker()
    handled: list[str] = []

    @broker.subscriber("orders")
    def ship(body: int) -> OutboxResponse:
        return OutboxResponse(f"from a thread {body}", queue="mails")

    @broker.subscriber("mails")
    async def collect(body: str) -> None:
        handled.append(body)

    def publish_in_a_thread() -> None:
        with Session(place.sync_engine) as session:
            broker.publish_sync("synchronously", "mails", session=session)
            session.commit()

    async with running(broker):
        mailer = broker.publisher("mails")
        async with TestOutboxBroker(broker):
            await broker.publish(1, "orders")
            await mailer.publish("by a publisher")
            await asyncio.create_task(publish(broker, "by a task"))
            await asyncio.to_thread(publish_in_a_thread)
            await broker.publish_batch("in a batch", queue="mails")
            await broker.publish("for nobody", "nowhere")
        assert place.rows() == []

    assert handled == ["from a thread 1", "by a publisher", "by a task", "synchronously", "in a batch"]


async def publish(broker: OutboxBroker, body: str) -> None:
    await broker.publish(body, "mails")


async def test_a_task_that_outlives_the_rehearsal_publishes_for_real(place: Place) -> None:
    broker = place.broker()
    over = asyncio.Event()

    async def later() -> None:
        await over.wait()
        await broker.publish(7, "mails")

    async with running(broker):
        async with TestOutboxBroker(broker):
            task = asyncio.create_task(later())
        over.set()
        await task

    assert mails(place) == [7]


async def test_a_commit_after_the_rehearsal_hands_on_nothing(place: Place) -> None:
    broker = place.broker()
    handled: list[int] = []

    @broker.subscriber("orders")
    async def ship(body: int) -> None:
        handled.append(body)

    async with running(broker), AsyncSession(place.engine) as session:
        async with TestOutboxBroker(broker):
            await broker.publish(1, "orders", session=session)
        await session.commit()

    assert handled == []


async def test_everything_is_as_before(place: Place) -> None:
    broker = place.broker()

    @broker.subscriber("orders")
    async def ship(body: int) -> None: ...

    config = broker.config.broker_config
    async with running(broker):
        before = [config.producer, config.sync_producer, config.logger.logger, broker.start, broker.stop]
        own = vars(broker).copy()
        with suppress(LookupError):
            async with TestOutboxBroker(broker) as tested:
                assert tested is broker
                raise LookupError
        after = [config.producer, config.sync_producer, config.logger.logger, broker.start, broker.stop]

        assert after == before
        assert vars(broker) == own
        assert [subscriber.running for subscriber in broker.subscribers] == [True]
        assert not ship.is_test
        assert await broker.ping(1)
        assert await broker.publish(1, "orders") == 1
        await until(place.rows, [])
    assert not broker.running


async def test_a_stop_meanwhile_drains(both: Place) -> None:
    broker = both.broker()
    begun, handled = asyncio.Event(), []

    @broker.subscriber("orders")
    async def ship(body: int) -> None:
        begun.set()
        await asyncio.sleep(0.2)
        await broker.publish(body, "mails")
        handled.append(body)

    async with running(broker):
        await broker.publish_batch(1, 2, 3, queue="orders")
        await begun.wait()
        async with TestOutboxBroker(broker):
            rehearsed = asyncio.create_task(broker.request(7, "orders"))
            await asyncio.sleep(0)
            await broker.stop()
            assert not broker.running
            assert 1 in handled
            assert mails(both) == [1]
            await rehearsed

    assert sorted(handled) == [1, 7]
    assert [row.payload for row in both.rows() if row.queue == "orders"] == [b"2", b"3"]
    assert {row.acquired_token for row in both.rows()} == {None}
    assert not broker.running


async def test_several_running_brokers_rehearse_together(place: Place, tmp_path: Path) -> None:
    first, second = place.broker(), place.broker()
    handled: list[int] = []

    @first.subscriber("orders")
    @second.publisher("parcels")
    async def ship(body: int) -> int:
        return body + 1

    @second.subscriber("parcels")
    async def send(body: int) -> None:
        handled.append(body)

    async with running(first), running(second):
        async with TestOutboxBroker(first, second) as tested:
            assert tuple(tested) == (first, second)
            await first.publish(1, "orders")
            assert handled == [2]
            assert place.rows() == []
        await first.publish(10, "orders")
        await until(lambda: handled, [2, 11])


async def test_a_queue_that_this_process_does_not_serve_can_be_rehearsed(place: Place) -> None:
    broker = place.broker()

    @broker.subscriber("orders")
    async def ship(body: int) -> None: ...

    @broker.subscriber("questions")
    async def answer(body: int, message: OutboxMessage) -> int:
        return body + 1

    broker.serve(["orders"])
    async with running(broker), TestOutboxBroker(broker):
        response = await broker.request(41, "questions")
        assert await response.decode() == 42
        with pytest.raises(SubscriberNotFound):
            await broker.request(41, "nowhere")


async def test_a_test_inside_a_test_leaves_its_mocks(place: Place) -> None:
    broker = OutboxBroker()

    @broker.subscriber("orders")
    async def ship(body: int) -> None: ...

    async with TestOutboxBroker(broker):
        await broker.publish(1, "orders")
        async with TestOutboxBroker(broker):
            await broker.publish(2, "orders")
        await broker.publish(3, "orders")

        assert [call.args for call in ship.mock.call_args_list] == [(1,), (2,), (3,)]


# Try it out


def body(queue: str, message: Any, *, real: bool = False) -> dict[str, Any]:
    return {"channelName": queue, "message": {"message": message}, "options": {"sendToRealBroker": real}}


async def test_both_ways_to_try_it_out_answer(both: Place) -> None:
    broker, other = both.broker(), OutboxBroker(both.engine, outbox_table=both.tables, logger=None)
    handled: list[int] = []

    @broker.publisher("mails")
    @broker.subscriber("orders")
    async def ship(order: int) -> dict[str, int]:
        return {"shipped": order}

    @other.subscriber("answers")
    async def answer(order: int) -> None:
        handled.append(order)

    app = AsgiFastStream(broker, other, asyncapi_path="/docs")
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(TestApp(app))
        transport = httpx.ASGITransport(app)
        client = await stack.enter_async_context(httpx.AsyncClient(transport=transport, base_url="http://test"))

        dry = await client.post("/docs/try", json=body("orders:Ship", 1))
        assert (dry.status_code, dry.json()) == (200, {"shipped": 1})
        silent = await client.post("/docs/try", json=body("answers:Answer", 2))
        assert (silent.status_code, silent.json(), handled) == (200, "ok", [2])
        assert both.rows() == []
        unknown = await client.post("/docs/try", json=body("nowhere", 1))
        assert unknown.status_code == 404
        refused = await client.post("/docs/try", json=body("orders:Ship", "many"))
        assert refused.status_code == 500

        real = await client.post("/docs/try", json=body("orders:Ship", 3, real=True))
        assert (real.status_code, real.json()) == (200, "ok")
        await until(lambda: mails(both), [{"shipped": 3}])
        real = await client.post("/docs/try", json=body("answers:Answer", 4, real=True))
        assert real.status_code == 200
        await until(lambda: handled, [2, 4])
        assert broker.running
        assert other.running


SERVICE = """
    import asyncio, sys
    import uvicorn
    from faststream.asgi import AsgiFastStream
    from sqlalchemy import MetaData
    from sqlalchemy.ext.asyncio import create_async_engine
    from outbox_sqlalchemy import OutboxBroker, make_outbox_tables

    tables = make_outbox_tables(MetaData())
    broker = OutboxBroker(create_async_engine(sys.argv[1]), outbox_table=tables, logger=None)

    @broker.subscriber("orders")
    async def ship(order: int) -> int:
        print("begun", order, flush=True)
        await asyncio.sleep(1)
        await broker.publish(order, "mails")
        return order

    app = AsgiFastStream(broker, logger=None, asyncapi_path="/docs")
    uvicorn.run(app, port=int(sys.argv[2]), log_level="warning")
"""


@pytest.fixture
def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


async def test_a_process_that_is_terminated_during_a_rehearsal_drains(
    both: Place, tmp_path: Path, free_port: int
) -> None:
    script = tmp_path / "service.py"
    script.write_text(textwrap.dedent(SERVICE))
    url = both.async_url.render_as_string(hide_password=False)
    await both.broker().publish_batch(1, 2, queue="orders")
    process = await asyncio.create_subprocess_exec(
        sys.executable, str(script), url, str(free_port), stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    try:
        assert await process.stdout.readline() == b"begun 1\n"
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{free_port}") as client:
            await until(lambda: answers(client), True)
            rehearsal = asyncio.create_task(client.post("/docs/try", json=body("orders:Ship", 7), timeout=10))
            await process.stdout.readuntil(b"begun 7\n")
            process.send_signal(signal.SIGTERM)
            dry = await rehearsal
        assert (dry.status_code, dry.json()) == (200, 7)
        assert await asyncio.wait_for(process.wait(), 10) == -signal.SIGTERM
    finally:
        with suppress(ProcessLookupError):
            process.kill()
        await process.wait()

    shipped = mails(both)
    left = [json.loads(row.payload) for row in both.rows() if row.queue == "orders"]
    assert 1 in shipped
    assert sorted(shipped + left) == [1, 2]
    assert {row.acquired_token for row in both.rows()} == {None}


async def answers(client: httpx.AsyncClient) -> bool:
    try:
        return (await client.get("/docs")).status_code == 200
    except httpx.TransportError:
        return False
