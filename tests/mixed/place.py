"""One outbox in one database, made by Django's migrations and open to both frameworks."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import URL, Engine, MetaData, create_engine
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from outbox_core.faststream import OutboxBroker
from outbox_django.faststream import OutboxBroker as DjangoBroker
from outbox_sqlalchemy import OutboxBroker as SqlAlchemyBroker
from outbox_sqlalchemy import OutboxTables, make_outbox_tables
from tests.django_databases import close_connections

PATIENCE = 10.0  # seconds


@dataclass
class Shared:
    """The outbox, with a broker of each framework that does not consume: it publishes, looks and redrives."""

    url: URL  # without a driver
    alias: str
    tables: OutboxTables = field(default_factory=lambda: make_outbox_tables(MetaData()))
    engine: AsyncEngine = field(init=False)
    sync_engine: Engine = field(init=False)
    django: OutboxBroker = field(init=False)
    sqlalchemy: OutboxBroker = field(init=False)

    def __post_init__(self) -> None:
        is_sqlite = self.url.get_backend_name() == "sqlite"
        self.engine = create_async_engine(
            self.url.set(drivername="sqlite+aiosqlite" if is_sqlite else "postgresql+asyncpg")
        )
        self.sync_engine = create_engine(self.url.set(drivername="sqlite" if is_sqlite else "postgresql+psycopg"))
        self.django = self.django_broker()
        self.sqlalchemy = self.sqlalchemy_broker()

    def django_broker(self) -> OutboxBroker:
        return DjangoBroker(self.alias, concurrency=2, logger=None)

    def sqlalchemy_broker(self) -> OutboxBroker:
        return SqlAlchemyBroker(self.engine, outbox_table=self.tables, logger=None)

    async def clear(self) -> None:
        async with self.engine.begin() as connection:
            for table in (self.tables.outbox, self.tables.dead_letters, self.tables.queues):
                assert table is not None
                await connection.execute(table.delete())

    async def close(self) -> None:
        await self.engine.dispose()
        self.sync_engine.dispose()
        await close_connections(self.alias)


async def until(look: Callable[[], Awaitable[Any] | Any], expected: object) -> None:
    """Return when *look* sees *expected*; fail with what it saw last."""
    seen: object = None
    for _ in range(int(PATIENCE / 0.01)):
        seen = look()
        if isinstance(seen, Awaitable):
            seen = await seen
        if seen == expected:
            return
        await asyncio.sleep(0.01)
    raise AssertionError(f"expected {expected!r}, saw {seen!r}")
