"""shared-outbox's engine without FastStream: a worker, one consumer, and a handler that gets the bytes."""

from outbox_core.message import Delivery
from outbox_core.options import ConsumerOptions
from outbox_core.schema import Tables
from outbox_core.slots import Consumer
from outbox_core.worker import Worker
from outbox_sqlalchemy.store import SqlAlchemyStore
from tests.benchmarks.systems import ours
from tests.benchmarks.workloads import Countdown, Result, vacuum


async def drain(dsn: str, messages: int) -> Result:
    """Default options; a handler that returns acks."""
    engine = await ours.prepare(dsn)
    await ours.fill(ours.OutboxBroker(engine, outbox_table=ours.outbox), messages)
    await vacuum(engine, "bench_ours")
    countdown = Countdown(messages)

    async def handle(delivery: Delivery) -> None:
        countdown.one()

    worker = Worker(SqlAlchemyStore(engine, Tables(outbox="bench_ours")))
    countdown.start()
    await worker.start()
    worker.add(Consumer(ConsumerOptions(queues=("orders",)), handle))
    await countdown.done.wait()
    await worker.stop(timeout=5.0)
    await engine.dispose()
    return countdown.result()
