"""Every store does what is expected of it, whatever it is asked."""

import asyncio
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import URL
from sqlalchemy.ext.asyncio import create_async_engine

from tests.contract.harness import TABLES, SqlAlchemyOutbox
from tests.databases import with_driver
from tests.model.grounds import MemoryGround, SqlGround
from tests.model.machine import check

# For a night: so many times as many examples as a run of the suite has time for.
MORE = int(os.environ.get("OUTBOX_TEST_MORE", "1"))


@pytest.fixture
def runner() -> Iterator[asyncio.Runner]:
    with asyncio.Runner() as runner:
        yield runner


def test_memory(runner: asyncio.Runner) -> None:
    check(MemoryGround(runner), seeds=5 * MORE)


def test_sqlite(runner: asyncio.Runner, sqlite_template: Path, tmp_path: Path) -> None:
    shutil.copy(sqlite_template, tmp_path / "outbox.db")
    outbox = SqlAlchemyOutbox(create_async_engine(f"sqlite+aiosqlite:///{tmp_path / 'outbox.db'}"), TABLES)
    try:
        check(SqlGround(runner, outbox), seeds=MORE)
    finally:
        runner.run(outbox.close())


def test_postgresql(runner: asyncio.Runner, shared_database: URL, driver: str) -> None:
    outbox = SqlAlchemyOutbox(create_async_engine(with_driver(shared_database, driver)), TABLES)
    try:
        check(SqlGround(runner, outbox), seeds=MORE)
    finally:
        runner.run(outbox.close())
