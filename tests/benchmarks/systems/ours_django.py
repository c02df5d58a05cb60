"""shared-outbox in a Django project: publishing beside the raw statement, and draining as a worker process does."""

from collections.abc import Callable
from time import perf_counter

from asgiref.sync import sync_to_async

from tests.benchmarks.systems.django_project import set_up
from tests.benchmarks.workloads import Countdown, Result, body

PER_TRANSACTION = 200  # so that commits, which cost the same for both, are not what is measured


async def publish_one(dsn: str, messages: int) -> Result:
    """One `publish` beside one `cursor.execute` of the same INSERT with the same values."""
    await sync_to_async(set_up)(dsn, "outbox_django")
    return await sync_to_async(_publish_one)(messages)


def _publish_one(messages: int) -> Result:
    from django.db import connection, transaction

    from outbox_core.envelope import compose
    from outbox_django import publish
    from outbox_django.publishing import publishing_store
    from outbox_django.statements import rendered

    store = publishing_store()
    (statement,) = store._insert([compose(body(1), "orders")], store._dialect_of(connection))
    sql = rendered(statement.text)

    def by_hand(number: int) -> None:
        message = compose(body(number), "orders")
        values = {"message_id": message.message_id, "payload": message.payload, "headers": message.headers}
        started = perf_counter()
        with connection.cursor() as cursor:
            cursor.execute(sql, {**statement.parameters, **values})
            cursor.fetchone()
        costs["by hand"] += perf_counter() - started

    def ours(number: int) -> None:
        started = perf_counter()
        publish(body(number), "orders")
        costs["ours"] += perf_counter() - started

    costs = {"by hand": 0.0, "ours": 0.0}
    for start in range(0, messages, PER_TRANSACTION):
        with transaction.atomic():
            for number in range(start, start + PER_TRANSACTION):
                by_hand(number)
                ours(number)
    count = -(-messages // PER_TRANSACTION) * PER_TRANSACTION
    return Result({f"{name} µs": seconds / count * 1e6 for name, seconds in costs.items()})


async def drain(dsn: str, messages: int) -> Result:
    """A synchronous handler that does nothing, default settings."""
    await sync_to_async(set_up)(dsn, "outbox_django")
    return await _drain(messages, lambda countdown: _sync_handler(countdown))


async def drain_async(dsn: str, messages: int) -> Result:
    """An asynchronous handler that does nothing."""
    await sync_to_async(set_up)(dsn, "outbox_django")
    return await _drain(messages, lambda countdown: _async_handler(countdown))


async def _drain(messages: int, handler: Callable[[Countdown], Callable[..., object]]) -> Result:
    from django.db import transaction

    from outbox_django import broker, publish_batch

    def fill() -> None:
        with transaction.atomic():
            publish_batch(*(body(number) for number in range(messages)), queue="orders")

    await sync_to_async(fill)()
    countdown = Countdown(messages)
    broker.subscriber("orders")(handler(countdown))
    countdown.start()
    await broker.start()
    await countdown.done.wait()
    await broker.stop()
    return countdown.result()


def _sync_handler(countdown: Countdown) -> Callable[..., object]:
    import asyncio

    loop = asyncio.get_running_loop()

    def handle(body: dict) -> None:  # type: ignore[type-arg]  # as a user would write it
        loop.call_soon_threadsafe(countdown.one)

    return handle


def _async_handler(countdown: Countdown) -> Callable[..., object]:
    async def handle(body: dict) -> None:  # type: ignore[type-arg]  # as a user would write it
        countdown.one()

    return handle
