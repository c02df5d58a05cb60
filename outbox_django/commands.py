"""What the management commands share: their arguments' checks, and what to tell an operator."""

from collections.abc import Sequence

from django.core.management.base import CommandError
from django.db import connections

from outbox_django.settings import outbox_settings


def check_alias(alias: str) -> str:
    """*alias* if `settings.DATABASES` has it; otherwise a `CommandError` that lists those it has."""
    if alias not in connections:
        known = ", ".join(repr(one) for one in connections)
        raise CommandError(f"there is no database {alias!r} in settings.DATABASES; known are {known}", returncode=2)
    return alias


def named_queues(given: Sequence[str] | None) -> list[str] | None:
    """The queues of a repeated option, each of which may have several, with commas; None if it was not given."""
    if given is None:
        return None
    return [name for text in given for name in map(str.strip, text.split(",")) if name]


def way_out() -> str:
    """How to bring the tables up to date, which depends on who makes them."""
    if outbox_settings().managed:
        return "run manage.py migrate outbox"
    return 'OUTBOX["MANAGED"] is False, so whoever makes the tables must migrate them (alembic upgrade head, say)'
