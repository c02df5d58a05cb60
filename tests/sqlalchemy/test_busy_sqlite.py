"""A worker that starts while the application writes to the same SQLite file."""

import asyncio
import sqlite3
from pathlib import Path

from sqlalchemy.ext.asyncio import AsyncEngine

from outbox_core.schema import Tables
from outbox_sqlalchemy import SqlAlchemyStore


async def test_a_link_waits_for_the_writer_who_keeps_it_from_turning_wal_on(
    sqlite_engine: AsyncEngine, tmp_path: Path
) -> None:
    writer = sqlite3.connect(tmp_path / "outbox.db", isolation_level=None)
    writer.execute("CREATE TABLE orders (id INTEGER)")
    writer.execute("BEGIN IMMEDIATE")
    connecting = asyncio.create_task(SqlAlchemyStore(sqlite_engine, Tables()).connect())
    done, _ = await asyncio.wait([connecting], timeout=0.2)
    assert not done

    writer.execute("COMMIT")
    writer.close()
    link = await connecting
    await link.close()

    reader = sqlite3.connect(tmp_path / "outbox.db")
    assert reader.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    reader.close()
