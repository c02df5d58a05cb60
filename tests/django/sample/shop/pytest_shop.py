"""The shop's tests with pytest-django and pytest-asyncio."""

import pytest
from django.db import connection, transaction
from django.test import TestCase

from outbox_core.outcome import Ack, Retry
from outbox_django import apublish, publish
from outbox_django.testing import Outbox
from shop.models import Order
from shop.services import place_order

EACH_KIND = pytest.mark.parametrize(
    "in_transaction",
    [
        pytest.param(True, marks=pytest.mark.django_db),
        pytest.param(False, marks=pytest.mark.django_db(transaction=True)),
    ],
)


@EACH_KIND
def test_what_was_published_is_handled(outbox: Outbox, in_transaction: bool) -> None:
    assert connection.in_atomic_block is in_transaction
    id = place_order("mug")
    outbox.assert_published("orders", {"id": id}, headers={"tenant": "acme"})

    handled = outbox.drain()

    assert [one.outcome for one in handled] == [Ack(), Ack()]
    assert Order.objects.get(id=id).state == "shipped"
    outbox.assert_published("mails", times=1)
    outbox.assert_nothing_published("orders")


@EACH_KIND
def test_a_failure_is_raised(outbox: Outbox, in_transaction: bool) -> None:
    with transaction.atomic():
        publish({"id": 1}, "copies")
        publish({"id": 1}, "copies")

    with pytest.raises(Exception, match=r"(?i)unique"):
        outbox.drain()

    outbox.assert_published("copies", times=1)
    assert outbox.drain() == []
    (again,) = outbox.drain(delayed=True, raise_errors=False)
    assert isinstance(again.outcome, Retry)


@pytest.mark.django_db
def test_one_test_leaves_nothing_to_the_next(outbox: Outbox) -> None:
    outbox.assert_nothing_published()


def test_the_database_may_be_asked_for_after_the_outbox(outbox: Outbox, db: None) -> None:
    place_order("mug")
    outbox.assert_published("orders")


def test_without_a_database_pytest_django_says_so(outbox: Outbox) -> None:
    with pytest.raises(RuntimeError, match="Database access not allowed"):
        outbox.messages()
    with pytest.raises(RuntimeError, match="Database access not allowed"):
        outbox.drain()


@pytest.mark.django_db(transaction=True)
async def test_asynchronously(outbox: Outbox) -> None:
    order = await Order.objects.acreate(item="mug")
    await apublish({"id": order.id}, "orders", standalone=True, headers={"tenant": "acme"})
    await outbox.aassert_published("orders", {"id": order.id})

    assert [one.outcome for one in await outbox.adrain()] == [Ack(), Ack()]

    await order.arefresh_from_db()
    assert order.state == "shipped"
    await outbox.aassert_published("mails")


@pytest.mark.django_db(transaction=True)
async def test_asynchronous_tests_leave_nothing_either(outbox: Outbox) -> None:
    await outbox.aassert_nothing_published()
    assert not await Order.objects.aexists()


class InATestCase(TestCase):
    @pytest.fixture(autouse=True)
    def give_outbox(self, outbox: Outbox) -> None:
        self.outbox = outbox

    async def test_the_fixture_is_for_asynchronous_methods_too(self) -> None:
        await apublish("hello", "mails", standalone=True)
        await self.outbox.aassert_published("mails", "hello")
