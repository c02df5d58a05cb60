"""Metrics of handlers and publishes, as FastStream's other brokers have them, and gauges of what lies in the queues."""

import subprocess
import sys
from datetime import timedelta

import pytest
from faststream.exceptions import RejectMessage
from prometheus_client import CollectorRegistry, generate_latest
from sqlalchemy.orm import Session

from outbox_core.faststream.prometheus import OutboxPrometheusMiddleware
from outbox_core.message import Delivery, OutboxStats, QueueStats
from outbox_core.prometheus import QueueGauges
from outbox_core.retry import NoRetry
from outbox_sqlalchemy import OutboxMessage, OutboxRouter
from tests.places import Place, running, until

APP = {"app_name": "faststream", "broker": "outbox"}


def received(registry: CollectorRegistry, queue: str, status: str) -> float | None:
    labels = {**APP, "handler": queue, "status": status}
    return registry.get_sample_value("faststream_received_processed_messages_total", labels)


def published(registry: CollectorRegistry, queue: str, status: str = "success") -> float | None:
    labels = {**APP, "destination": queue, "status": status}
    return registry.get_sample_value("faststream_published_messages_total", labels)


async def test_messages_are_counted_by_queue_and_result(both: Place) -> None:
    registry = CollectorRegistry()
    broker = both.broker(middlewares=[OutboxPrometheusMiddleware(registry=registry)])

    @broker.subscriber("orders", retry_strategy=NoRetry())
    async def handle(body: int, message: OutboxMessage) -> None:
        match body:
            case 1:
                raise ValueError(body)
            case 2:
                raise RejectMessage
            case 3:
                await message.nack()

    await broker.publish_batch(0, 1, 2, 3, 4, queue="orders")
    async with running(broker):
        await until(both.rows, [])

    assert published(registry, "orders") == 5
    assert [received(registry, "orders", status) for status in ("acked", "error", "rejected", "nacked")] == [2, 1, 1, 1]
    exceptions = "faststream_received_processed_messages_exceptions_total"
    labels = {**APP, "handler": "orders", "exception_type": "ValueError"}
    assert registry.get_sample_value(exceptions, labels) == 1
    handler = {**APP, "handler": "orders"}
    assert registry.get_sample_value("faststream_received_messages_in_process", handler) == 0
    assert registry.get_sample_value("faststream_received_messages_size_bytes_sum", handler) == 5
    assert registry.get_sample_value("faststream_received_processed_messages_duration_seconds_count", handler) == 5


async def test_the_messages_of_a_batch_are_counted_one_by_one(place: Place) -> None:
    registry = CollectorRegistry()
    broker = place.broker(middlewares=[OutboxPrometheusMiddleware(registry=registry)])

    @broker.subscriber("orders", batch=True)
    async def handle(bodies: list[str]) -> None: ...

    await broker.publish_batch("abc", "de", queue="orders")
    async with running(broker):
        await until(place.rows, [])

    assert received(registry, "orders", "acked") == 2
    size = "faststream_received_messages_size_bytes_sum"
    assert registry.get_sample_value(size, {**APP, "handler": "orders"}) == 5


async def test_replies_of_a_routers_handler_are_counted_under_their_prefixed_queue(place: Place) -> None:
    registry = CollectorRegistry()
    router = OutboxRouter("shop.")
    broker = place.broker(middlewares=[OutboxPrometheusMiddleware(registry=registry)], routers=[router])

    @router.subscriber("orders")
    @router.publisher("letters")
    async def handle(body: int) -> int:
        return body

    async with running(broker):
        await broker.publish(1, "shop.orders")
        await until(lambda: [row.queue for row in place.rows()], ["shop.letters"])

    assert (received(registry, "shop.orders", "acked"), published(registry, "shop.letters")) == (1, 1)


async def test_a_publish_that_fails_and_a_synchronous_one_are_counted(place: Place) -> None:
    registry = CollectorRegistry()
    broker = place.broker(middlewares=[OutboxPrometheusMiddleware(registry=registry)])

    with pytest.raises(ValueError, match="cannot encode"):
        await broker.publish(object(), "orders")
    with Session(place.sync_engine) as session, session.begin():
        broker.publish_sync(1, "orders", session=session)

    assert (published(registry, "orders", "error"), published(registry, "orders")) == (1, 1)


async def test_labels_of_the_users_own_know_the_delivery(place: Place) -> None:
    def tenant(delivery: Delivery | None) -> str:
        return "" if delivery is None else delivery.headers["tenant"]

    registry = CollectorRegistry()
    middleware = OutboxPrometheusMiddleware(
        registry=registry,
        app_name="shop",
        metrics_prefix="outbox",
        custom_labels={"region": "eu", "tenant": tenant},
    )
    broker = place.broker(middlewares=[middleware])

    @broker.subscriber("orders")
    async def handle(body: int) -> None: ...

    async with running(broker):
        await broker.publish(1, "orders", headers={"tenant": "acme"})
        await until(place.rows, [])

    labels = {"app_name": "shop", "broker": "outbox", "handler": "orders", "status": "acked"}
    own = {"region": "eu", "tenant": "acme"}
    assert registry.get_sample_value("outbox_received_processed_messages_total", {**labels, **own}) == 1


def gauge(registry: CollectorRegistry, name: str, queue: str, **labels: str) -> float | None:
    return registry.get_sample_value(f"outbox_queue_{name}", {"queue": queue, **labels})


async def test_what_lies_in_the_queues_is_shown_when_it_is_counted(both: Place) -> None:
    registry = CollectorRegistry()
    gauges = QueueGauges(registry=registry)
    broker = both.broker()

    @broker.subscriber("orders", on_dead_letter="halt")
    async def handle(body: str) -> None:
        raise RejectMessage

    await broker.publish_batch("halts", "waits", queue="orders", key="order-7")
    await broker.publish("later", "orders", activate_in=timedelta(hours=1))
    await broker.publish("ready", "mails")
    await broker.pause("mails")
    async with running(broker):
        await until(lambda: [row.failure_reason for row in both.rows() if row.held_key], ["rejected"])
    assert gauge(registry, "blocked_keys", "orders") is None

    gauges.show(await broker.stats())

    states = ("ready", "scheduled", "leased", "dead")
    assert [gauge(registry, "messages", "orders", state=state) for state in states] == [1, 1, 0, 1]
    assert [gauge(registry, "messages", "mails", state=state) for state in states] == [1, 0, 0, 0]
    assert [gauge(registry, "blocked_keys", queue) for queue in ("orders", "mails")] == [1, 0]
    assert [gauge(registry, "paused", queue) for queue in ("orders", "mails")] == [0, 1]
    assert 0 < (gauge(registry, "oldest_seconds", "mails") or 0) < 60
    assert b'outbox_queue_blocked_keys{queue="orders"} 1.0' in generate_latest(registry)

    await broker.release_key("orders", "order-7")
    gauges.show(await broker.stats())
    assert gauge(registry, "blocked_keys", "orders") == 0


def test_two_outboxes_in_one_registry_have_two_prefixes() -> None:
    registry = CollectorRegistry()
    QueueGauges(registry=registry, metrics_prefix="shop_outbox").show(
        OutboxStats({"orders": QueueStats(queue="orders")})
    )
    other = QueueGauges(registry=registry, metrics_prefix="billing_outbox")

    assert registry.get_sample_value("shop_outbox_queue_paused", {"queue": "orders"}) == 0
    assert registry.get_sample_value("billing_outbox_queue_paused", {"queue": "orders"}) is None
    other.show(OutboxStats({"orders": QueueStats(queue="orders", paused=True)}))
    assert registry.get_sample_value("billing_outbox_queue_paused", {"queue": "orders"}) == 1


@pytest.mark.parametrize(
    ("module", "package", "extra"),
    [
        ("faststream.prometheus", "prometheus_client", "prometheus"),
        ("prometheus", "prometheus_client", "prometheus"),
        ("faststream.opentelemetry", "opentelemetry", "opentelemetry"),
    ],
)
def test_without_its_extra_a_middleware_says_what_to_install_and_the_broker_works(
    module: str, package: str, extra: str
) -> None:
    program = f"""
import sys
sys.modules[{package!r}] = None
import outbox_core.faststream, outbox_sqlalchemy
try:
    import outbox_core.{module}
except ImportError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert f"pip install 'shared-outbox[{extra}]'" in done.stdout
