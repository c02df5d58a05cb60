"""A handler that hangs without blocking the loop keeps its message, and says so."""

import asyncio
import threading

import pytest

from tests.places import Place, running, until


@pytest.fixture(autouse=True)
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("outbox_core.worker.TICK", 0.1)


def told(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [text for text in caplog.messages if "has not ended" in text]


async def test_a_function_that_hangs_in_its_thread_is_told_with_its_stack(
    both: Place, caplog: pytest.LogCaptureFixture
) -> None:
    gate = threading.Event()
    broker = both.broker(stuck_timeout=1.0)

    @broker.subscriber("orders")
    def ship(body: str) -> None:
        gate.wait(30)

    async with running(broker):
        await broker.publish("the secret body", "orders")
        await until(lambda: len(told(caplog)), 1)
        assert (await broker.stats())["orders"].leased == 1
        gate.set()
        await until(both.rows, [])

    (text,) = told(caplog)
    assert text.startswith("the handler 'ship' has not ended after 1 s; it keeps message ")
    assert "in ship\n    gate.wait(30)" in text
    assert "secret" not in text


async def test_a_coroutine_that_hangs_is_told_with_its_place(place: Place, caplog: pytest.LogCaptureFixture) -> None:
    gate = asyncio.Event()
    broker = place.broker(stuck_timeout=1.0)

    @broker.subscriber("orders")
    async def ship(body: str) -> None:
        await gate.wait()

    async with running(broker):
        await broker.publish("x", "orders")
        await until(lambda: len(told(caplog)), 1)
        gate.set()

    assert "in ship\n    await gate.wait()" in told(caplog)[0]


async def test_who_says_how_long_a_handler_may_take_is_not_told(place: Place, caplog: pytest.LogCaptureFixture) -> None:
    gate = asyncio.Event()
    broker = place.broker(stuck_timeout=1.0)

    @broker.subscriber("quick")
    async def hang(body: str) -> None:
        await gate.wait()

    @broker.subscriber("slow", handler_timeout=60)
    async def take_time(body: str) -> None:
        await gate.wait()

    async with running(broker):
        await broker.publish("x", "slow")
        await broker.publish("x", "quick")
        await until(lambda: len(told(caplog)), 1)
        gate.set()

    assert told(caplog)[0].startswith("the handler 'hang'")
