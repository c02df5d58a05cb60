"""What is special about SQLite: no wake-ups, and a worker needs a file."""

from collections.abc import AsyncIterator

import pytest
from sqlalchemy.ext.asyncio import create_async_engine

from outbox_core.errors import OptionError
from outbox_core.schema import Tables
from outbox_sqlalchemy import SqlAlchemyStore
from tests.contract.conftest import SQLITE, opened
from tests.contract.harness import Outbox


@pytest.fixture(params=SQLITE)
async def sqlite_outbox(request: pytest.FixtureRequest) -> AsyncIterator[Outbox]:
    async with opened(request) as outbox:
        yield outbox


async def test_there_is_nothing_to_listen_to(sqlite_outbox: Outbox) -> None:
    assert await sqlite_outbox.store.listen(lambda _: None) is None


async def test_a_worker_cannot_share_a_database_in_memory() -> None:
    engine = create_async_engine("sqlite+aiosqlite://")

    with pytest.raises(OptionError, match="a worker needs an SQLite database in a file"):
        await SqlAlchemyStore(engine, Tables()).connect()

    await engine.dispose()
