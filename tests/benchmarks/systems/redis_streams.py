"""FastStream on Redis streams with a consumer group, behind the same pipeline; no table, and so no transaction."""

from typing import Any

from faststream.redis import RedisBroker, StreamSub

from tests.benchmarks.workloads import Countdown, Result, body

STREAM = "outbox-bench"


async def drain(dsn: str, messages: int, *, best: bool = False) -> Result:
    """Defaults: a consumer group as documented; best: reads of 1,000, no logger."""
    broker = RedisBroker(logger=None) if best else RedisBroker()
    countdown = Countdown(messages)
    options: dict[str, Any] = {"max_records": 1_000} if best else {}

    @broker.subscriber(stream=StreamSub(STREAM, group="bench", consumer="one", last_id=">", **options))
    async def handle(body: dict[str, Any]) -> None:
        countdown.one()

    await broker.connect()
    client = broker.config.broker_config.connection.client
    await client.delete(STREAM)
    await client.xgroup_create(STREAM, "bench", id="0", mkstream=True)
    for number in range(messages):
        await broker.publish(body(number), stream=STREAM)
    countdown.start()
    await broker.start()
    await countdown.done.wait()
    await broker.stop()
    return countdown.result()
