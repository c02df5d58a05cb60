"""The shipping service: a FastAPI application, in a process of its own. Run it with `uvicorn shipping.service:app`."""

import asyncio
import random
from typing import Annotated

from fastapi import Depends, FastAPI, HTTPException
from sqlalchemy.ext.asyncio import AsyncSession

from outbox_fastapi import OutboxBroker, OutboxResponse, OutboxRouter

from .models import Receipt, Shipment, outbox
from .sessions import engine, get_session
from messages import GoodsReceived, OrderPlaced, OrderShipped

router = OutboxRouter(engine, outbox_table=outbox)
Session = Annotated[AsyncSession, Depends(get_session)]


@router.subscriber("orders.placed", max_workers=4, lease_ttl_seconds=2)
async def ship(order: OrderPlaced, session: Session) -> OutboxResponse | None:
    """Ship it, and tell the web site in the same transaction."""
    tracking = await book_carrier(order)
    shipment = await session.get(Shipment, order.order_id)
    if shipment is not None:
        shipment.runs += 1  # at least once means that this can happen: count it, ship nothing
        return None
    session.add(Shipment(order_id=order.order_id, tracking=tracking))
    return OutboxResponse(OrderShipped(order.order_id, tracking), queue="orders.shipped", session=session)


@router.put("/receipts/{note}")
async def receive_goods(note: int, goods: GoodsReceived, broker: OutboxBroker, session: Session) -> None:
    """Note what came in, and tell the web site in the same transaction. Who got no answer may ask again."""
    if await session.get(Receipt, note) is None:
        session.add(Receipt(note=note, sku=goods.sku, quantity=goods.quantity))
        await broker.publish(goods, "goods.received", session=session)
        await session.commit()  # before the answer; left to get_session, it would come after


@router.get("/health", status_code=204)
async def health(broker: OutboxBroker) -> None:
    """Whether handlers make progress and the database answers."""
    if not await broker.ping(timeout=2):
        raise HTTPException(503)


async def book_carrier(order: OrderPlaced) -> str:
    """Stands for a call to somebody else's API; it returns the same number for the same order."""
    await asyncio.sleep(random.uniform(0.01, 0.03))
    return f"PARCEL-{order.order_id:05}"


app = FastAPI(title="Shipping")
app.include_router(router)
