"""Outboxes beside a table of the application's own, on every database and driver, and Django's."""

from collections.abc import AsyncIterator, Iterator

import pytest

from tests.django.conftest import alias, django_databases, migrated_postgresql, migrated_sqlite
from tests.places import Place
from tests.sqlalchemy.conftest import EITHER, EVERY, make_place

__all__ = ["alias", "django_databases", "migrated_postgresql", "migrated_sqlite"]


def make_place_with_purchases(request: pytest.FixtureRequest) -> Place:
    place = make_place(request)
    place.run("DROP TABLE IF EXISTS purchases", "CREATE TABLE purchases (name text)")
    return place


@pytest.fixture(params=EVERY)
async def place(request: pytest.FixtureRequest) -> AsyncIterator[Place]:
    """Every database with every driver."""
    place = make_place_with_purchases(request)
    yield place
    await place.close()


@pytest.fixture(params=EITHER)
def sync_place(request: pytest.FixtureRequest) -> Iterator[Place]:
    """Each database for code without an event loop; the asynchronous engine is never used."""
    place = make_place_with_purchases(request)
    yield place
    place.sync_engine.dispose()


@pytest.fixture(params=EVERY)
def idle_place(request: pytest.FixtureRequest) -> Iterator[Place]:
    """Every database with every driver, for a test with an event loop of its own, in which it disposes the engine."""
    place = make_place_with_purchases(request)
    yield place
    place.sync_engine.dispose()
