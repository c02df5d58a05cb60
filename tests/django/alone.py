"""A Django project in one file, run by CI where nothing but the `[django]` extra is installed: migrate, publish, handle."""

import sys
import tempfile
from pathlib import Path

import django
from django.conf import settings
from django.core.management import call_command
from django.db import transaction


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        settings.configure(
            DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": Path(folder) / "alone.sqlite3"}},
            INSTALLED_APPS=["outbox_django"],
            USE_TZ=True,
        )
        django.setup()
        call_command("migrate", verbosity=0)
        publish_and_handle()
    print("Django alone:", django.get_version())


def publish_and_handle() -> None:
    from outbox_django import publish

    with transaction.atomic():
        publish({"id": 7}, "orders")
    assert "faststream" not in sys.modules, "publishing must not import FastStream"

    from outbox_django import broker

    handled = []

    @broker.subscriber("orders")
    def handle(order: dict) -> None:  # type: ignore[type-arg]  # as a user would write it
        handled.append(order)

    call_command("outbox_worker", drain=True, verbosity=0)
    assert handled == [{"id": 7}]
    assert "sqlalchemy" not in sys.modules, "Django's package must do without SQLAlchemy"


if __name__ == "__main__":
    main()
