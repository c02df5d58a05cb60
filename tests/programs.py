"""Programs of a test's own, in a folder and in processes of their own, on an outbox that the test sees."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.places import Place
from tests.processes import Process, until

# outbox.py: a broker, and a handler of numbers that writes down who has handled which.
NUMBERS = """
import asyncio
import os
from pathlib import Path

from sqlalchemy import MetaData
from sqlalchemy.ext.asyncio import create_async_engine

from outbox_sqlalchemy import OutboxBroker, make_outbox_tables

engine = create_async_engine(os.environ["TEST_DSN"])
options = {"require_transaction": os.environ.get("TEST_POLICY", "ignore")}
broker = OutboxBroker(engine, outbox_table=make_outbox_tables(MetaData()), **options)


@broker.subscriber("numbers", max_workers=4)
async def handle(number: int) -> None:
    write_down(f"{os.getpid()} {number}")
    await asyncio.sleep(0.01)
    while number < 0 and not Path("gate").exists():  # negative ones wait for the test
        await asyncio.sleep(0.01)
    if number < 0:
        write_down(f"{os.getpid()} {-number}")


def write_down(line: str) -> None:
    with open("ledger.txt", "a") as ledger:
        ledger.write(line + "\\n")
"""


@dataclass
class Program:
    """The modules in *folder*, of which `outbox.py` has a broker and a handler of numbers."""

    folder: Path
    place: Place
    environment: dict[str, str] = field(default_factory=dict)
    started: list[Process] = field(default_factory=list)

    def write(self, file: str, text: str) -> None:
        half = self.folder / "half-written"
        half.write_text(text)
        half.replace(self.folder / file)

    def start(self, *arguments: object) -> Process:
        """Begin `python -m` *arguments*."""
        log = self.folder / f"log-{len(self.started)}.txt"
        # Whether an engine is disposed is the program's affair, and uvloop waits for ever if its warning is an error.
        warnings = ["-W", "error", "-W", "ignore::ResourceWarning"]
        command = [sys.executable, *warnings, "-m", *map(str, arguments)]
        environment = {
            "TEST_DSN": self.place.async_url.render_as_string(hide_password=False),
            "PYTHONDONTWRITEBYTECODE": "1",  # code that changes within a second would be taken from the cache
            "NO_COLOR": "1",
            **self.environment,
        }
        process = Process.begin(command, self.folder, log, environment)
        self.started.append(process)
        return process

    def run(self, *arguments: object) -> tuple[int, str]:
        """The exit code of `python -m` *arguments*, and what it said."""
        process = self.start(*arguments)
        return process.ends(), process.log

    def publish(self, *numbers: int, queue: str = "numbers") -> None:
        """Publish all in one transaction."""
        with self.place.sync_engine.begin() as connection:
            self.place.broker().publish_batch_sync(*numbers, queue=queue, session=connection)

    def ledger(self) -> list[tuple[int, int]]:
        """Who handled which number, in order."""
        path = self.folder / "ledger.txt"
        lines = path.read_text().splitlines() if path.exists() else []
        return [(int(process), int(number)) for process, number in (line.split() for line in lines)]

    def handled(self) -> list[int]:
        return sorted(number for _, number in self.ledger())

    def settled(self) -> None:
        """Return when the outbox is empty."""
        until(self.place.rows, [])


@contextmanager
def program(folder: Path, place: Place) -> Iterator[Program]:
    """A program with a broker on *place*; nothing of it goes on at the end."""
    one = Program(folder, place)
    one.write("outbox.py", NUMBERS)
    try:
        yield one
    finally:
        for process in one.started:
            process.kill()
