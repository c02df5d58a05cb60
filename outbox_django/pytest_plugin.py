"""pytest's fixture `outbox`: what was published, and a drain that runs the project's handlers (`outbox_django.testing`).

Every run of pytest where this library is installed loads this module, with or without Django, so it imports nothing else of
ours before the fixture is used.
"""

import inspect
import unittest
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from outbox_django.testing import Outbox

WRONG_MARK = (
    "an asynchronous test that uses the outbox needs @pytest.mark.django_db(transaction=True): its database work happens in "
    "another thread, on another connection, which does not see the transaction that plain django_db opens"
)


@pytest.fixture
def outbox(request: pytest.FixtureRequest) -> "Iterator[Outbox]":
    """The outbox as the test sees it, if it has Django's database: with `@pytest.mark.django_db`, or the fixture `db`.

    Asynchronous tests need `@pytest.mark.django_db(transaction=True)`.
    """
    for database in ("transactional_db", "db"):
        if database in request.fixturenames:
            request.getfixturevalue(database)  # before this one, whatever the order of the test's arguments

    from django.db import connections

    from outbox_django.testing import outbox

    if not _runs_in_a_loop(request):
        yield outbox
        return
    if connections[outbox.alias].in_atomic_block:
        pytest.fail(WRONG_MARK, pytrace=False)
    yield outbox
    _disconnect()


def _runs_in_a_loop(request: pytest.FixtureRequest) -> bool:
    """Whether an event loop in the main thread runs the test. Django's test cases have theirs in another one."""
    is_of_unittest = request.cls is not None and issubclass(request.cls, unittest.TestCase)
    return inspect.iscoroutinefunction(request.function) and not is_of_unittest


def _disconnect() -> None:
    """Close the connection of asynchronous tests: a database to which somebody is connected cannot be dropped."""
    from asgiref.sync import SyncToAsync
    from django.db import connections

    SyncToAsync.single_thread_executor.submit(connections.close_all).result()
