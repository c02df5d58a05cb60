"""The shipping service's own tables, and the outbox as it sees it: Django's migrations make that one."""

from sqlalchemy import MetaData
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from outbox_sqlalchemy import make_outbox_tables

from .sessions import engine

outbox = make_outbox_tables(MetaData())  # not on the service's metadata, so that it creates and migrates only its own


class Base(DeclarativeBase):
    pass


class Shipment(Base):
    """An order's id is the primary key, so an order that comes twice is shipped once."""

    __tablename__ = "shipments"

    order_id: Mapped[int] = mapped_column(primary_key=True)
    tracking: Mapped[str]
    runs: Mapped[int] = mapped_column(default=1)


class Receipt(Base):
    """Goods that came in. The number of the delivery note is the primary key, so a request may be repeated."""

    __tablename__ = "receipts"

    note: Mapped[int] = mapped_column(primary_key=True)
    sku: Mapped[str]
    quantity: Mapped[int]


async def create_tables() -> None:
    """What Alembic would do."""
    async with engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
