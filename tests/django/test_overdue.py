"""A `def` handler that hangs in its lane is told of, with the stack of that thread."""

import asyncio
import threading

import pytest

from outbox_django import OutboxBroker, publish
from tests.django.running import consuming, until


def test_a_handler_that_hangs_in_its_lane_is_told_with_its_stack(
    django_databases: object, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("outbox_core.worker.TICK", 0.1)
    gate = threading.Event()
    broker = OutboxBroker("lite", stuck_timeout=1.0)

    @broker.subscriber("orders", handler_timeout=0.5)  # which cannot end it
    def ship(body: str) -> None:
        gate.wait(30)

    def told() -> list[str]:
        return [text for text in caplog.messages if "has not ended" in text]

    async def work() -> None:
        async with consuming(broker):
            await until(lambda: bool(told()))
            gate.set()
            await broker.drained()

    publish("x", "orders", using="lite", standalone=True)
    asyncio.run(work())

    assert told()[0].startswith("the handler 'ship' has not ended after 1 s; it keeps message ")
    assert "in ship\n    gate.wait(30)" in told()[0]
