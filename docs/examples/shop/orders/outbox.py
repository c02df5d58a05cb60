"""What the shipping service tells the web site. `manage.py outbox_worker` finds this module by its name."""

import asyncio

from django.db.models import F

from outbox_django import broker

from .models import Order, Product
from messages import GoodsReceived, OrderShipped

LEASE = 2  # seconds, so that the demo does not wait for the messages of a killed worker; the default is 30


@broker.subscriber("orders.shipped", lease_ttl_seconds=LEASE)
async def mark_shipped(shipped: OrderShipped) -> None:
    """May run twice for an order, and does no harm then: a state that is set again is the same state."""
    await write_to_customer(shipped)
    await Order.objects.filter(id=shipped.order_id).aupdate(state=Order.State.SHIPPED, tracking=shipped.tracking)


@broker.subscriber("goods.received", lease_ttl_seconds=LEASE, transactional=True)
def add_to_stock(goods: GoodsReceived) -> None:
    """Must not add twice, so its writes and the end of its message are committed together."""
    Product.objects.filter(sku=goods.sku).update(stock=F("stock") + goods.quantity)


async def write_to_customer(shipped: OrderShipped) -> None:
    """Stands for sending mail."""
    await asyncio.sleep(0.04)
