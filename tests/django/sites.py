"""A copy of `tests/django/site`, whose handlers a test may write anew, and its commands in processes of their own."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from signal import Signals
from time import monotonic, sleep
from typing import Any, NamedTuple

import psutil
from django.db import connections
from sqlalchemy import URL

from outbox_django import publish_batch
from outbox_django.models import OutboxMessage

TEMPLATE = Path(__file__).parent / "site"
PATIENCE = 30.0  # seconds
ALIAS = "site"  # what leads to the site's database in the tests' own process


class Run(NamedTuple):
    """What a handler wrote down; see the site's model."""

    queue: str
    number: int
    process: int
    beside: int
    ended: bool


def until(look: Callable[[], object], expected: object = True, patience: float = PATIENCE) -> None:
    """Return when *look* sees *expected*; fail with what it saw last."""
    deadline = monotonic() + patience
    while (seen := look()) != expected:
        assert monotonic() < deadline, f"expected {expected!r}, saw {seen!r}"
        sleep(0.02)


class Process:
    """A command that runs."""

    def __init__(self, running: "subprocess.Popen[bytes]", log: Path) -> None:
        self._running = running
        self._log = log
        self._family: set[psutil.Process] = set()
        self.pid = running.pid

    @property
    def log(self) -> str:
        return self._log.read_text()

    def says(self, text: str, times: int = 1) -> None:
        """Return when it has said *text* so often."""
        deadline = monotonic() + PATIENCE
        while self.log.count(text) < times:
            assert self._running.poll() is None, f"it ended without {text!r}:\n{self.log}"
            assert monotonic() < deadline, f"it does not say {text!r}:\n{self.log}"
            sleep(0.02)

    def send(self, signal: Signals) -> None:
        self._running.send_signal(signal)

    def ends(self, patience: float = PATIENCE) -> int:
        """The exit code, when it has ended by itself."""
        try:
            return self._running.wait(patience)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"it does not end:\n{self.log}") from None

    def children(self) -> list[int]:
        """The worker processes of a parent; Python's own helper is none."""
        return sorted(child.pid for child in self._descendants() if "resource_tracker" not in " ".join(child.cmdline()))

    def kill(self) -> None:
        if self._running.poll() is None:
            self._descendants()
            self._running.kill()
        for process in self._family:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        self._running.wait()

    def _descendants(self) -> list[psutil.Process]:
        """What is remembered, since nobody can ask a dead parent for its children."""
        processes = psutil.Process(self.pid).children(recursive=True)
        self._family.update(processes)
        return processes


@dataclass
class Site:
    """The site in *folder*, with its outbox and its own table in the database at *url*."""

    folder: Path
    url: URL
    settings: dict[str, Any] = field(default_factory=dict)
    started: list[Process] = field(default_factory=list)

    @classmethod
    def copied(cls, folder: Path, url: URL) -> "Site":
        shutil.copytree(TEMPLATE, folder, ignore=shutil.ignore_patterns("__pycache__"))
        return cls(folder, url, {"DATABASES": {"default": database(url)}})

    # Commands

    def start(self, *arguments: object) -> Process:
        """Begin `manage.py` with *arguments*. Warnings are errors."""
        log = self.folder / f"log-{len(self.started)}.txt"
        with log.open("wb") as output:
            running = subprocess.Popen(
                [sys.executable, "-W", "error", "manage.py", *map(str, arguments)],
                cwd=self.folder,
                env=os.environ | self._environment(),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        process = Process(running, log)
        self.started.append(process)
        return process

    def _environment(self) -> dict[str, str]:
        return {
            "DJANGO_SETTINGS_MODULE": "settings",
            "TEST_SITE": json.dumps(self.settings),
            "PYTHONDONTWRITEBYTECODE": "1",  # code that changes within a second would be taken from the cache
        }

    def worker(self, *arguments: object) -> Process:
        """A worker that has started."""
        process = self.start("outbox_worker", *arguments)
        process.says("worker on ")
        return process

    def manage(self, *arguments: object) -> tuple[int, str]:
        """The exit code of a command, and what it said."""
        process = self.start(*arguments)
        return process.ends(), process.log

    def write(self, file: str, text: str) -> None:
        half = self.folder / "half-written"
        half.write_text(text)
        half.replace(self.folder / file)

    def save(self, file: str, text: str, seen: Callable[[], bool]) -> None:
        """Write *file*, again and again until it is *seen*: Django's reloader misses what changes before its first look."""
        deadline = monotonic() + PATIENCE
        while not seen():
            assert monotonic() < deadline, f"nobody saw that {file} has changed"
            self.write(file, text)
            sleep(0.2)

    # The database, as the tests' own process sees it

    def publish(self, queue: str, *bodies: Mapping[str, Any], **options: Any) -> None:
        publish_batch(*bodies, queue=queue, using=ALIAS, standalone=True, **options)

    def orders(self, *numbers: int, **rest: Any) -> None:
        """Publish orders with these numbers; *rest* is what the handler is to wait for."""
        self.publish("orders", *({"number": number, **rest} for number in numbers))

    def messages(self) -> list[str]:
        """The queues of the messages that are there, oldest first."""
        return list(OutboxMessage.objects.using(ALIAS).order_by("id").values_list("queue", flat=True))

    def leased(self) -> int:
        return OutboxMessage.objects.using(ALIAS).filter(leased_until__isnull=False).count()

    def runs(self) -> list[Run]:
        with connections[ALIAS].cursor() as cursor:
            cursor.execute("SELECT queue, number, process, beside, ended FROM shop_run ORDER BY id")
            return [Run(*row[:-1], bool(row[-1])) for row in cursor.fetchall()]

    def handled(self) -> list[int]:
        """The numbers of runs that have come to their end."""
        return sorted(run.number for run in self.runs() if run.ended)

    def begun(self) -> list[int]:
        """The numbers of runs that have begun."""
        return sorted(run.number for run in self.runs())


def database(url: URL) -> dict[str, Any]:
    """The URL as one of `settings.DATABASES`."""
    sqlite = url.get_backend_name() == "sqlite"
    return {
        "ENGINE": f"django.db.backends.{'sqlite3' if sqlite else 'postgresql'}",
        "NAME": url.database,
        "USER": url.username or "",
        "PASSWORD": url.password or "",
        "HOST": url.host or url.query.get("host", ""),
        "PORT": url.port or "",
    }
