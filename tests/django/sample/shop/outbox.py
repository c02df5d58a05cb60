"""The shop's handlers."""

from collections.abc import Iterator
from typing import Annotated

from django.db import connection, transaction
from faststream import Depends, Logger

from outbox_django import ConstantRetry, NoRetry, OutboxMessage, broker, publish
from shop.models import Order, Parcel


def in_atomic() -> Iterator[None]:
    with transaction.atomic():
        yield


@broker.subscriber("orders")
def ship(order: dict[str, int], message: OutboxMessage, logger: Logger) -> None:
    with transaction.atomic():
        Order.objects.filter(id=order["id"]).update(state="shipped")
        publish(order, "parcels", headers={"tenant": message.headers["tenant"]})
    logger.info("shipped %s", order)


@broker.subscriber("parcels", transactional=True)
async def pack(order: dict[str, int]) -> None:
    await Parcel.objects.acreate(order_id=order["id"])
    await broker.publish(f"order {order['id']} is on its way", "mails")


@broker.subscriber("parcels-of-failures", transactional=True, retry_strategy=NoRetry())
async def pack_badly(order: dict[str, int]) -> None:
    await Parcel.objects.acreate(order_id=order["id"])
    await broker.publish("never sent", "mails")
    raise ValueError("the box is too small")


@broker.subscriber("reminders", retry_strategy=ConstantRetry(delay_seconds=60, max_attempts=3, jitter_factor=0))
async def remember(order: dict[str, int], message: OutboxMessage) -> None:
    if message.attempt < 3:
        raise LookupError(f"order {order['id']} is not paid")


@broker.subscriber("copies")
def copy_carelessly(body: dict[str, int]) -> None:
    """Fails in the database with nothing around it."""
    Order.objects.create(item="the original")
    Parcel.objects.create(order_id=body["id"])


pulled = broker.subscriber("pulled")


@broker.subscriber("queries")
def query_badly(body: dict[str, int]) -> None:
    connection.cursor().execute("SELECT no_such_column FROM shop_order")


@broker.subscriber("notes")
def publish_without_transaction(body: dict[str, int]) -> None:
    publish(body, "orders")


@broker.subscriber("echoes")
def echo(body: dict[str, int], transaction: Annotated[None, Depends(in_atomic)]) -> None:
    publish(body, "echoes")


@broker.subscriber("many", batch=True)
async def count(bodies: list[dict[str, int]]) -> None:
    await Order.objects.acreate(item=f"{len(bodies)} at once")
