"""A Django project with nothing but the outbox, run in a process of its own, on a database of the test's choice."""

import json
import os
import pickle
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import URL

PATIENCE = 60.0  # seconds


@dataclass(frozen=True)
class Project:
    """The project, with `settings.OUTBOX` as given. Models and migrations read it once, hence the processes."""

    url: URL  # without a driver
    outbox: Mapping[str, object] = field(default_factory=dict)
    routers: Sequence[str] = ()

    def manage(self, *arguments: str) -> str:
        """What `manage.py` says to these arguments. Any warning is an error, and any error fails the test."""
        return self._run("-m", "django", *arguments).decode()

    def ask(self, program: str) -> Any:
        """What *program* leaves in `answer`; it has the models by name, and all of them as `MODELS`."""
        return pickle.loads(self._run("-m", "tests.django.project.ask", program))

    def _run(self, *arguments: str) -> bytes:
        environment = {
            "DJANGO_SETTINGS_MODULE": "tests.django.project.settings",
            "TEST_DJANGO_SETTINGS": json.dumps(self._settings()),
        }
        done = subprocess.run(
            [sys.executable, "-W", "error", *arguments],
            env=os.environ | environment,
            capture_output=True,
            timeout=PATIENCE,
            check=False,
        )
        assert done.returncode == 0, f"{done.stdout.decode()}\n{done.stderr.decode()}"
        return done.stdout

    def _settings(self) -> dict[str, object]:
        sqlite = self.url.get_backend_name() == "sqlite"
        database = {
            "ENGINE": f"django.db.backends.{'sqlite3' if sqlite else 'postgresql'}",
            "NAME": self.url.database,
            "USER": self.url.username or "",
            "PASSWORD": self.url.password or "",
            "HOST": self.url.host or self.url.query.get("host", ""),
            "PORT": self.url.port or "",
        }
        return {"DATABASES": {"default": database}, "DATABASE_ROUTERS": self.routers, "OUTBOX": self.outbox}
