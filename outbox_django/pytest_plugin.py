"""pytest's fixture `outbox`: what was published, and a drain that runs the project's handlers (`outbox_django.testing`).

Every run of pytest where this library is installed loads this module, with or without Django, so it imports nothing else of
ours before the fixture is used.
"""

import inspect
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from outbox_django.testing import Outbox


@pytest.fixture
def outbox(request: pytest.FixtureRequest) -> "Iterator[Outbox]":
    """The outbox as the test sees it. The test needs Django's database: `@pytest.mark.django_db`.

    An asynchronous test needs `@pytest.mark.django_db(transaction=True)`: its database work happens in another thread, on
    another connection, which would not see the transaction that the plain mark opens.
    """
    for database in ("transactional_db", "db"):
        if database in request.fixturenames:
            request.getfixturevalue(database)  # before this one, whatever the order of the test's arguments

    from outbox_django.testing import OtherConnection, outbox

    if not inspect.iscoroutinefunction(request.function):
        yield outbox
        return

    from asgiref.sync import SyncToAsync
    from django.db import connections

    if connections[outbox.alias].in_atomic_block:
        raise OtherConnection(outbox.alias)
    yield outbox
    # The test database cannot be dropped as long as that thread is connected to it.
    SyncToAsync.single_thread_executor.submit(connections.close_all).result()
