"""What the parts of the shop tell each other. A message's class is all that they have in common."""

from dataclasses import dataclass


@dataclass(frozen=True)
class OrderPlaced:
    """To "orders.placed": Django tells the shipping service."""

    order_id: int
    sku: str
    quantity: int


@dataclass(frozen=True)
class OrderShipped:
    """To "orders.shipped": the shipping service tells Django."""

    order_id: int
    tracking: str


@dataclass(frozen=True)
class GoodsReceived:
    """To "goods.received": the shipping service, told so over HTTP, tells Django."""

    sku: str
    quantity: int
