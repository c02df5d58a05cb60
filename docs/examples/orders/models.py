"""The tables of the order service, and the outbox tables beside them on the same metadata."""

from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from outbox_sqlalchemy import make_outbox_tables


class Base(DeclarativeBase):
    pass


class Order(Base):
    """What a customer bought."""

    __tablename__ = "orders"

    id: Mapped[int] = mapped_column(primary_key=True)
    customer: Mapped[str]
    sku: Mapped[str]
    quantity: Mapped[int]
    total_cents: Mapped[int]


class Shipment(Base):
    """What the worker did about an order.

    The order's id is the primary key, so an order that is delivered to the handler twice is still shipped once.
    """

    __tablename__ = "shipments"

    order_id: Mapped[int] = mapped_column(primary_key=True)
    weight_grams: Mapped[int]
    attempt: Mapped[int]
    runs: Mapped[int] = mapped_column(default=1)


class Setting(Base):
    """A switch that can be changed while the worker runs."""

    __tablename__ = "settings"

    name: Mapped[str] = mapped_column(primary_key=True)
    value: Mapped[str]


outbox = make_outbox_tables(Base.metadata)
