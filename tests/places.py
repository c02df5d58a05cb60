"""One outbox on one database, with an asynchronous and a synchronous engine for the same place."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from time import monotonic
from typing import Any

import pytest
from sqlalchemy import URL, Engine, MetaData, Row, Table, create_engine, event, select
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from outbox_sqlalchemy import OutboxBroker, OutboxTables, make_outbox_tables
from outbox_sqlalchemy.connections import OwnConnection

PATIENCE = 5.0  # seconds


@dataclass
class Place:
    """Where a test's outbox is. The tables are made by the fixtures; `close` disposes both engines."""

    url: URL  # without a driver
    driver: str
    metadata: MetaData = field(default_factory=MetaData)
    tables: OutboxTables = field(init=False)
    engine: AsyncEngine = field(init=False)
    sync_engine: Engine = field(init=False)

    def __post_init__(self) -> None:
        self.tables = make_outbox_tables(self.metadata)
        self.engine = self.another_engine()
        self.sync_engine = create_engine(self.sync_url)

    @property
    def is_postgresql(self) -> bool:
        return self.driver != "aiosqlite"

    @property
    def async_url(self) -> URL:
        return self.url.set(drivername=f"{self.url.get_backend_name()}+{self.driver}")

    @property
    def sync_url(self) -> URL:
        return self.url.set(drivername="postgresql+psycopg" if self.is_postgresql else "sqlite")

    def another_engine(self, **options: Any) -> AsyncEngine:
        return create_async_engine(self.async_url, **options)

    def broker(self, **options: Any) -> OutboxBroker:
        return OutboxBroker(self.engine, **{"outbox_table": self.tables, "logger": None, **options})

    def rows(self, table: Table | None = None) -> Sequence[Row[Any]]:
        """What is committed, oldest first."""
        table = self.tables.outbox if table is None else table
        with self.sync_engine.connect() as connection:
            return connection.execute(select(table).order_by(*table.primary_key)).fetchall()

    def run(self, *statements: str) -> None:
        """Statements of the test's own, committed, each by itself."""
        with self.sync_engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            for statement in statements:
                connection.exec_driver_sql(statement)

    async def close(self) -> None:
        await self.engine.dispose()
        self.sync_engine.dispose()


@asynccontextmanager
async def running(broker: OutboxBroker, patience: float = 2 * PATIENCE) -> AsyncIterator[OutboxBroker]:
    """A started broker, stopped at the end; no test waits longer than *patience* seconds."""
    async with asyncio.timeout(patience), broker:
        await broker.start()
        yield broker


@contextmanager
def statements_of_workers() -> Iterator[list[str]]:
    """What SQLAlchemy's workers of this process send meanwhile, on connections of which no engine's listeners hear."""
    sent: list[str] = []
    fetch = OwnConnection.fetch

    async def noting(self: OwnConnection, sql: str, parameters: Mapping[str, object]) -> Sequence[Sequence[Any]]:
        sent.append(sql)
        return await fetch(self, sql, parameters)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(OwnConnection, "fetch", noting)
        yield sent


@contextmanager
def statements_on(engine: Engine) -> Iterator[list[str]]:
    """What callers send through *engine* meanwhile, transaction control aside."""
    sent: list[str] = []

    def note(connection: object, cursor: object, statement: str, *_: object) -> None:
        sent.append(statement)

    event.listen(engine, "before_cursor_execute", note)
    try:
        yield sent
    finally:
        event.remove(engine, "before_cursor_execute", note)


@contextmanager
def answered_within(seconds: float) -> Iterator[None]:
    """What is done meanwhile takes no longer."""
    began = monotonic()
    yield
    assert monotonic() - began < seconds


async def until(look: Callable[[], object | Awaitable[object]], expected: object, patience: float = PATIENCE) -> None:
    """Return when *look* sees *expected*; fail with what it saw last."""
    seen: object = None
    for _ in range(int(patience / 0.02)):
        seen = look()
        if isinstance(seen, Awaitable):
            seen = await seen
        if seen == expected:
            return
        await asyncio.sleep(0.02)
    raise AssertionError(f"expected {expected!r}, saw {seen!r}")
