"""What the shop's views would call."""

from dataclasses import dataclass
from datetime import timedelta

from django.db import transaction

from outbox_django import publish
from shop.models import Order


@dataclass(frozen=True)
class Placed:
    id: int


def place_order(item: str) -> int:
    with transaction.atomic():
        order = Order.objects.create(item=item)
        publish(Placed(order.id), "orders", headers={"tenant": "acme"}, key=str(order.id))
    return int(order.id)


def remind(order_id: int, *, after: timedelta) -> None:
    with transaction.atomic():
        publish({"id": order_id}, "reminders", activate_in=after)
