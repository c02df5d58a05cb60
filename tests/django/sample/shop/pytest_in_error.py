"""A test that cannot work; `tests/django/test_testing.py` reads what it is told."""

import pytest

from outbox_django.testing import Outbox


@pytest.mark.django_db
async def test_asynchronously_in_a_transaction(outbox: Outbox) -> None:
    raise AssertionError("the fixture has refused it")
