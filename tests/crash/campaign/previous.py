"""The version whose table had no `held_key`, from the repository's history, and the way from its table to today's."""

import json
import subprocess
import sys
from pathlib import Path

from sqlalchemy import Engine, MetaData, text
from sqlalchemy.schema import CreateIndex, DropIndex

from outbox_sqlalchemy import make_outbox_tables
from tests.crash.fleet import ROOT

COMMIT = "85f1b1114116de9a34147ea8397a909613be5daa"
MODULE = "tests.crash.previous_worker"
COLUMN = "held_key"


def is_here() -> bool:
    """Whether this is a clone with its history."""
    found = subprocess.run(["git", "cat-file", "-e", COMMIT], cwd=ROOT, stderr=subprocess.DEVNULL, check=False)
    return found.returncode == 0


def unpack(folder: Path) -> Path:
    """Its packages, to be put before today's."""
    target = folder / "previous"
    target.mkdir()
    archive = subprocess.run(
        ["git", "archive", COMMIT, "outbox_core", "outbox_sqlalchemy"], cwd=ROOT, stdout=subprocess.PIPE, check=True
    )
    subprocess.run(["tar", "x", "-C", str(target)], input=archive.stdout, check=True)
    return target


def create_tables(product: Path, engine: Engine, url: str) -> None:
    """Its tables in place of today's, made by itself."""
    make_outbox_tables(metadata := MetaData())
    metadata.drop_all(engine)
    orders = json.dumps({"url": url, "product": str(product), "creates": True})
    subprocess.run([sys.executable, "-m", MODULE, orders], cwd=ROOT, check=True)


def migrate(engine: Engine) -> None:
    """What an operator does while the workers of before go on."""
    outbox = make_outbox_tables(MetaData()).outbox
    kind = outbox.c[COLUMN].type.compile(engine.dialect)
    with engine.begin() as connection:
        connection.execute(text(f"ALTER TABLE outbox ADD COLUMN {COLUMN} {kind}"))
        for index in outbox.indexes:
            connection.execute(DropIndex(index, if_exists=True))
            connection.execute(CreateIndex(index))
