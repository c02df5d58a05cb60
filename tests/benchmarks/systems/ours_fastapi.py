"""shared-outbox in a FastAPI application: what finding the handlers' arguments through FastAPI costs a worker."""

from collections.abc import AsyncIterator, Callable
from typing import Any

from fastapi import Depends, FastAPI
from sqlalchemy import MetaData

from outbox_fastapi import Logger, OutboxBroker, OutboxMessage, OutboxRouter
from outbox_sqlalchemy import make_outbox_table
from tests.benchmarks.workloads import Countdown, Result, body, empty_tables, vacuum

metadata = MetaData()
outbox = make_outbox_table(metadata, "bench_fastapi")


async def drain(dsn: str, messages: int, *, handler: str = "plain") -> Result:
    engine = await empty_tables(dsn, metadata)
    router = OutboxRouter(engine, outbox_table=outbox)
    countdown = Countdown(messages)
    router.subscriber("orders")(HANDLERS[handler](countdown))
    app = FastAPI()
    app.include_router(router)
    for start in range(0, messages, 1_000):
        await router.broker.publish_batch(
            *[body(n) for n in range(start, min(messages, start + 1_000))], queue="orders"
        )
    await vacuum(engine, "bench_fastapi")
    countdown.start()
    async with app.router.lifespan_context(app):
        await countdown.done.wait()
    await engine.dispose()
    return countdown.result()


def plain(countdown: Countdown) -> Callable[..., Any]:
    async def handle(body: dict[str, Any]) -> None:
        countdown.one()

    return handle


def contexts(countdown: Countdown) -> Callable[..., Any]:
    async def handle(body: dict[str, Any], message: OutboxMessage, broker: OutboxBroker, logger: Logger) -> None:
        countdown.one()

    return handle


async def _opened() -> AsyncIterator[object]:
    yield object()


def dependency(countdown: Countdown) -> Callable[..., Any]:
    async def handle(body: dict[str, Any], opened: object = Depends(_opened)) -> None:
        countdown.one()

    return handle


HANDLERS = {"plain": plain, "contexts": contexts, "dependency": dependency}
