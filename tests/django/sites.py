"""A copy of `tests/django/site`, whose handlers a test may write anew, and its commands in processes of their own."""

import json
import shutil
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic, sleep
from typing import Any, NamedTuple

from django.db import connections
from django.db.models import QuerySet
from sqlalchemy import URL

from outbox_django import publish_batch
from tests.processes import PATIENCE, Process

TEMPLATE = Path(__file__).parent / "site"
ALIAS = "site"  # what leads to the site's database in the tests' own process


class Run(NamedTuple):
    """What a handler wrote down; see the site's model."""

    queue: str
    number: int
    process: int
    beside: int
    ended: bool


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
        return self._begin("-W", "error", "manage.py", *map(str, arguments))

    def serve(self, server: str = "uvicorn", *arguments: object) -> Process:
        """Begin *server* on the site's `asgi.py`."""
        return self._begin("-m", server, *map(str, arguments or ("asgi:application", "--port", 0)))

    def _begin(self, *arguments: str) -> Process:
        log = self.folder / f"log-{len(self.started)}.txt"
        process = Process.begin([sys.executable, *arguments], self.folder, log, self._environment())
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
        return list(self._outbox().order_by("id").values_list("queue", flat=True))

    def leased(self) -> int:
        return self._outbox().filter(leased_until__isnull=False).count()

    def _outbox(self) -> QuerySet[Any]:
        from outbox_django.models import OutboxMessage  # which needs Django to be set up, and not everybody looks

        return OutboxMessage.objects.using(ALIAS)

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
