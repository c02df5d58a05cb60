"""Placing orders: an order and its message are committed together, or neither is."""

import csv
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy.ext.asyncio import AsyncSession

from outbox_sqlalchemy import OutboxBroker

from models import Order, outbox

# This process only publishes, on the sessions of its callers, so its broker needs no engine of its own.
broker = OutboxBroker(outbox_table=outbox)


@dataclass(frozen=True)
class Product:
    """One line of the price list."""

    sku: str
    name: str
    price_cents: int
    weight_kg: str


@dataclass(frozen=True)
class OrderPlaced:
    """The message: what the warehouse has to know."""

    order_id: int
    sku: str
    quantity: int


class CardDeclined(Exception):
    """The payment failed, so there is no order."""


def read_products() -> dict[str, Product]:
    with (Path(__file__).parent / "products.csv").open(newline="") as file:
        return {
            row["sku"]: Product(row["sku"], row["name"], int(row["price_cents"]), row["weight_kg"])
            for row in csv.DictReader(file)
        }


PRODUCTS = read_products()


async def place_order(session: AsyncSession, customer: str, sku: str, quantity: int, card: str) -> Order:
    """Add an order and its message to the caller's transaction; `CardDeclined` if it must not be committed."""
    order = Order(customer=customer, sku=sku, quantity=quantity, total_cents=quantity * PRODUCTS[sku].price_cents)
    session.add(order)
    await session.flush()
    await broker.publish(OrderPlaced(order.id, sku, quantity), "orders", session=session)
    charge(card, order.total_cents)
    return order


def charge(card: str, cents: int) -> None:
    """Stands for a payment provider."""
    if card.endswith("0"):
        raise CardDeclined(f"card …{card[-4:]} was declined for {cents / 100:.2f}")
