"""The shipping service's engine, and the transaction that its routes and handlers depend on."""

from collections.abc import AsyncIterator

from sqlalchemy import make_url
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine

from database import URL

DRIVERS = {"postgresql": "postgresql+asyncpg", "sqlite": "sqlite+aiosqlite"}

url = make_url(URL)
engine = create_async_engine(url.set(drivername=DRIVERS[url.drivername]))
new_session = async_sessionmaker(engine)


async def get_session() -> AsyncIterator[AsyncSession]:
    """A transaction: committed when its user is done, unless that has done so before; rolled back if its user raises."""
    async with new_session.begin() as session:
        yield session
