"""An outbox that the command line is pointed at, and a project with a broker on it."""

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.places import Place

ROOT = Path(__file__).parents[2]

PROJECT = """
from sqlalchemy import MetaData
from sqlalchemy.ext.asyncio import create_async_engine
from faststream import FastStream
from outbox_sqlalchemy import NoRetry, OutboxBroker, make_outbox_tables

engine = create_async_engine({url!r})
broker = OutboxBroker(engine, outbox_table=make_outbox_tables(MetaData()))
silent = OutboxBroker(engine, outbox_table=make_outbox_tables(MetaData()))
app = FastStream(broker)
number = 7


@broker.subscriber("orders", retry_strategy=NoRetry())
async def handle(body: str) -> None:
    print("handled", body, flush=True)
    if body == "bad":
        raise ValueError("no")
"""


@dataclass(frozen=True)
class Done:
    """How a process ended, and what it wrote."""

    code: int
    out: str
    err: str


@dataclass(frozen=True)
class Shop:
    """A project's folder, and its outbox."""

    folder: Path
    place: Place

    @property
    def url(self) -> str:
        return self.place.async_url.render_as_string(hide_password=False)

    def command(self, *arguments: str) -> list[str]:
        return [sys.executable, "-m", "outbox_core", *arguments]

    @property
    def process(self) -> dict[str, Any]:
        """What every process of the project is started with."""
        path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
        return {"cwd": self.folder, "env": {**os.environ, "PYTHONPATH": path}, "text": True}

    def run(self, *arguments: str) -> Done:
        done = subprocess.run(self.command(*arguments), **self.process, capture_output=True, timeout=60, check=False)
        assert "Traceback" not in done.stderr, done.stderr
        return Done(done.returncode, done.stdout, done.stderr)


@pytest.fixture
def shop(both: Place, tmp_path: Path) -> Shop:
    """On SQLite, and on PostgreSQL."""
    return make_shop(both, tmp_path)


@pytest.fixture
def lite_shop(place: Place, tmp_path: Path) -> Shop:
    """On SQLite, where the database makes no difference."""
    return make_shop(place, tmp_path)


def make_shop(place: Place, folder: Path) -> Shop:
    shop = Shop(folder, place)
    (folder / "shop.py").write_text(PROJECT.format(url=shop.url))
    return shop
