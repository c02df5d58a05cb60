"""Placing orders, which is what a view, a form or an API calls."""

from django.db.transaction import atomic

from outbox_django import publish

from .models import Order
from messages import OrderPlaced


@atomic
def place_order(sku: str, quantity: int) -> Order:
    """An order and its message, committed together; if the caller's transaction is rolled back, there is neither."""
    order = Order.objects.create(sku=sku, quantity=quantity)
    publish(OrderPlaced(order.id, sku, quantity), "orders.placed")
    return order
