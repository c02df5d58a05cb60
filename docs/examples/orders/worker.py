"""Shipping orders: a process of its own. Run it with `faststream run worker:app`, or as a script."""

import asyncio
import os
import random

from faststream import FastStream
from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine

from outbox_sqlalchemy import ConstantRetry, OutboxBroker, OutboxMessage

from models import Setting, Shipment, outbox
from service import PRODUCTS, OrderPlaced

engine = create_async_engine(os.environ["ORDERS_DSN"])
new_session = async_sessionmaker(engine)
broker = OutboxBroker(engine, outbox_table=outbox)
app = FastStream(broker)


class CarrierBusy(Exception):
    """The carrier takes no booking at the moment; the next try will do."""


@broker.subscriber(
    "orders",
    max_workers=8,
    retry_strategy=ConstantRetry(delay_seconds=0.4, max_attempts=3, jitter_factor=0.5),
    lease_ttl_seconds=2,
)
async def ship(order: OrderPlaced, message: OutboxMessage) -> None:
    weight = await weigh(order)
    await book_carrier(order, message.attempt)
    async with new_session.begin() as session:
        shipment = await session.get(Shipment, order.order_id)
        if shipment is None:
            session.add(Shipment(order_id=order.order_id, weight_grams=weight, attempt=message.attempt))
        else:
            shipment.runs += 1  # at least once means that this can happen: count it, ship nothing


async def weigh(order: OrderPlaced) -> int:
    """Grams. One line of the price list has a decimal comma, which is a bug until somebody allows it."""
    kilograms = PRODUCTS[order.sku].weight_kg
    async with new_session() as session:
        if await session.get(Setting, "decimal_comma"):
            kilograms = kilograms.replace(",", ".")
    return round(float(kilograms) * 1000) * order.quantity


async def book_carrier(order: OrderPlaced, attempt: int) -> None:
    """Stands for a call to somebody else's API, which is down for some orders at first."""
    await asyncio.sleep(random.uniform(0.01, 0.03))
    if order.order_id % 10 == 0 and attempt == 1:
        raise CarrierBusy(f"no carrier for order {order.order_id}")


if __name__ == "__main__":
    asyncio.run(app.run())
