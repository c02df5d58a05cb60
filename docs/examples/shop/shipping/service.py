"""The shipping service: a process of its own. Run it with `faststream run shipping.service:app`, or as a module."""

import asyncio
import random

from faststream import FastStream
from sqlalchemy.ext.asyncio import AsyncSession

from outbox_sqlalchemy import OutboxBroker

from .models import Receipt, Shipment, engine, new_session, outbox
from messages import GoodsReceived, OrderPlaced, OrderShipped

broker = OutboxBroker(engine, outbox_table=outbox)
app = FastStream(broker)


@broker.subscriber("orders.placed", max_workers=4, lease_ttl_seconds=2)
async def ship(order: OrderPlaced) -> None:
    """Ship it, and tell the web site in the same transaction."""
    tracking = await book_carrier(order)
    async with new_session.begin() as session:
        shipment = await session.get(Shipment, order.order_id)
        if shipment is not None:
            shipment.runs += 1  # at least once means that this can happen: count it, ship nothing
            return
        session.add(Shipment(order_id=order.order_id, tracking=tracking))
        await broker.publish(OrderShipped(order.order_id, tracking), "orders.shipped", session=session)


async def receive_goods(session: AsyncSession, sku: str, quantity: int) -> None:
    """Note what came in, and tell the web site, in the caller's transaction."""
    session.add(Receipt(sku=sku, quantity=quantity))
    await broker.publish(GoodsReceived(sku, quantity), "goods.received", session=session)


async def book_carrier(order: OrderPlaced) -> str:
    """Stands for a call to somebody else's API; it returns the same number for the same order."""
    await asyncio.sleep(random.uniform(0.01, 0.03))
    return f"PARCEL-{order.order_id:05}"


if __name__ == "__main__":
    asyncio.run(app.run())
