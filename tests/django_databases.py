"""Django in this process: set up once, here, with databases that come and go with the tests that use them."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import django
from asgiref.sync import sync_to_async
from django.db import connections
from sqlalchemy import URL

# For this process alone: whatever was in the environment comes back for those that the tests start.
inherited = os.environ.get("DJANGO_SETTINGS_MODULE")
os.environ["DJANGO_SETTINGS_MODULE"] = "tests.django_settings"
django.setup()
del os.environ["DJANGO_SETTINGS_MODULE"]
if inherited is not None:
    os.environ["DJANGO_SETTINGS_MODULE"] = inherited


@contextmanager
def added_database(alias: str, url: URL, **options: object) -> Iterator[str]:
    """*alias* in `settings.DATABASES` leads to *url* meanwhile, with *options* for its driver."""
    given = {
        "ENGINE": f"django.db.backends.{'sqlite3' if url.get_backend_name() == 'sqlite' else 'postgresql'}",
        "NAME": url.database,
        "USER": url.username or "",
        "PASSWORD": url.password or "",
        "HOST": url.host or url.query.get("host", ""),
        "PORT": url.port or "",
        "OPTIONS": options,
    }
    connections.settings[alias] = connections.configure_settings({"default": {}, alias: given})[alias]
    try:
        yield alias
    finally:
        with suppress(AttributeError):  # asked about in this thread, but not connected
            del connections[alias]
        del connections.settings[alias]


async def close_connections(alias: str) -> None:
    """Close what `sync_to_async` has opened in its thread, where no test's end does."""
    await sync_to_async(_close_connection)(alias)


def _close_connection(alias: str) -> None:
    connections[alias].close()
    del connections[alias]
