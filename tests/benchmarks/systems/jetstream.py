"""FastStream on NATS JetStream, a real message broker behind the same pipeline; no table, and so no transaction."""

import contextlib
from typing import Any

from faststream.nats import JStream, NatsBroker, PullSub

from tests.benchmarks.workloads import Countdown, Result, body

STREAM = "outbox-bench"


async def drain(dsn: str, messages: int, *, best: bool = False) -> Result:
    """Defaults: a pull subscriber as documented; best: pulls of 500, no logger."""
    broker = NatsBroker(logger=None) if best else NatsBroker()
    await _fill(messages)
    countdown = Countdown(messages)
    options: dict[str, Any] = {"pull_sub": PullSub(batch_size=500)} if best else {"pull_sub": True}

    @broker.subscriber("outbox-bench.orders", stream=JStream(STREAM, declare=False), durable="bench", **options)
    async def handle(body: dict[str, Any]) -> None:
        countdown.one()

    countdown.start()
    await broker.start()
    await countdown.done.wait()
    await broker.stop()
    return countdown.result()


async def _fill(messages: int) -> None:
    async with NatsBroker(logger=None) as broker:
        await broker.start()
        stream = broker.config.connection_state.stream
        with contextlib.suppress(Exception):  # there is none yet
            await stream.delete_stream(STREAM)
        await stream.add_stream(name=STREAM, subjects=["outbox-bench.*"])
        for number in range(messages):
            await broker.publish(body(number), "outbox-bench.orders")
        while (await stream.stream_info(STREAM)).state.messages < messages:
            pass
