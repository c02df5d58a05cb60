"""The shipping service's own tables, and the outbox as it sees it: Django's migrations make that one."""

from sqlalchemy import MetaData, make_url
from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from outbox_sqlalchemy import make_outbox_tables

from database import URL

DRIVERS = {"postgresql": "postgresql+asyncpg", "sqlite": "sqlite+aiosqlite"}

url = make_url(URL)
engine = create_async_engine(url.set(drivername=DRIVERS[url.drivername]))
new_session = async_sessionmaker(engine)

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
    """Goods that came in."""

    __tablename__ = "receipts"

    id: Mapped[int] = mapped_column(primary_key=True)
    sku: Mapped[str]
    quantity: Mapped[int]


async def create_tables() -> None:
    """What Alembic would do."""
    async with engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
