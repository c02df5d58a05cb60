"""The shop's tests with Django's own test cases."""

# ruff: noqa: PT009, PT027  unittest's assertions, as whoever uses its test cases writes them

from datetime import timedelta
from unittest.mock import ANY

from django.core.exceptions import SynchronousOnlyOperation
from django.db import connection, transaction
from django.test import SimpleTestCase, TestCase, TransactionTestCase, override_settings

from outbox_core.errors import OptionError
from outbox_core.outcome import Ack, DeadLetter, Retry
from outbox_django import apublish, publish, publish_batch
from outbox_django.errors import NotInTransaction
from outbox_django.testing import EndlessDrain, OutboxTestMixin
from shop.models import Order, Parcel
from shop.services import Placed, place_order, remind


def publish_in_atomic(body: object, queue: str) -> None:
    with transaction.atomic():
        publish(body, queue)


class Published(OutboxTestMixin, TestCase):
    def test_a_message_is_what_was_published(self) -> None:
        id = place_order("mug")

        (message,) = self.outbox.messages()

        self.assertEqual((message.queue, message.body, message.key), ("orders", {"id": id}, str(id)))
        self.assertEqual((message.headers["tenant"], message.priority), ("acme", 0))

    def test_messages_of_one_queue(self) -> None:
        place_order("mug")
        remind(1, after=timedelta(hours=1))

        self.assertEqual([message.queue for message in self.outbox.messages("reminders")], ["reminders"])

    def test_nothing_is_left_of_what_was_rolled_back(self) -> None:
        with self.assertRaises(KeyError), transaction.atomic():
            place_order("mug")
            raise KeyError

        self.outbox.assert_nothing_published()

    def test_an_assertion_takes_what_was_published_and_what_arrives(self) -> None:
        id = place_order("mug")

        self.outbox.assert_published("orders", Placed(id))
        self.outbox.assert_published("orders", {"id": id}, headers={"tenant": "acme"})
        self.outbox.assert_published("orders", {"id": ANY})
        (message,) = self.outbox.assert_published("orders")
        self.assertEqual(message.body, {"id": id})

    def test_a_failed_assertion_shows_what_there_is(self) -> None:
        with transaction.atomic():
            publish({"id": 1}, "orders", headers={"tenant": "acme"}, key="1", priority=5)
            publish("later", "mails", activate_in=timedelta(days=1))
            publish(b"\x00", "bytes")

        with self.assertRaises(AssertionError) as raised:
            self.outbox.assert_published("orders", {"id": 2}, headers={"tenant": "acme"})

        lines = str(raised.exception).splitlines()
        self.assertEqual(
            lines[0],
            "expected 1 message with body {'id': 2} with headers {'tenant': 'acme'} in 'orders', found 0; waiting are:",
        )
        self.assertEqual(lines[1], "  'orders': {'id': 1} headers={'tenant': 'acme'} key='1' priority=5")
        self.assertRegex(lines[2], r"^  'mails': 'later' next_attempt_at=datetime.datetime\(20")
        self.assertEqual(lines[3:], ["  'bytes': b'\\x00'"])

    def test_the_number_of_messages_is_part_of_it(self) -> None:
        with transaction.atomic():
            publish_batch("a", "a", queue="mails")

        self.outbox.assert_published("mails", "a", times=2)
        self.outbox.assert_published("mails", times=None)
        with self.assertRaisesRegex(AssertionError, "expected 1 message in 'mails', found 2; "):
            self.outbox.assert_published("mails")
        with self.assertRaisesRegex(AssertionError, "expected a message in 'orders', found 0; "):
            self.outbox.assert_published("orders", times=None)
        with self.assertRaisesRegex(AssertionError, "expected no message in 'mails'; waiting are:\n  'mails': 'a'\n"):
            self.outbox.assert_nothing_published("mails")
        self.outbox.assert_nothing_published("orders")

    def test_an_empty_outbox_says_so(self) -> None:
        with self.assertRaisesRegex(AssertionError, "found 0; nothing is waiting"):
            self.outbox.assert_published("orders")

    @override_settings(OUTBOX={"REQUIRE_TRANSACTION": "ignore"})
    def test_settings_can_be_overridden(self) -> None:
        publish("hello", "mails")

        self.outbox.assert_published("mails", "hello")


class Handling:
    """What a drain does, in either kind of test case."""

    def test_handlers_write_and_publish_where_the_test_sees_it(self) -> None:
        id = place_order("mug")

        handled = self.outbox.drain()

        self.assertEqual(
            [(one.delivery.queue, one.outcome) for one in handled], [("orders", Ack()), ("parcels", Ack())]
        )
        self.assertEqual(Order.objects.get().state, "shipped")
        self.assertEqual(Parcel.objects.get().order_id, id)
        self.outbox.assert_published("mails", f"order {id} is on its way")

    def test_only_the_queues_that_are_named_are_drained(self) -> None:
        place_order("mug")
        remind(1, after=timedelta(0))

        self.assertEqual([one.delivery.queue for one in self.outbox.drain("orders")], ["orders"])

        self.assertEqual([message.queue for message in self.outbox.messages()], ["reminders", "parcels"])
        self.assertEqual([one.delivery.queue for one in self.outbox.drain("parcels")], ["parcels"])

    def test_a_queue_without_a_handler_is_an_error(self) -> None:
        with self.assertRaisesRegex(OptionError, "no subscriber of queue 'order'; there are subscribers of .*'orders'"):
            self.outbox.drain("order")

    def test_the_first_error_is_raised_when_its_message_is_settled(self) -> None:
        remind(1, after=timedelta(0))

        with self.assertRaisesRegex(LookupError, "order 1 is not paid") as raised:
            self.outbox.drain()

        (message,) = self.outbox.messages("reminders")
        self.assertEqual(message.attempts_count, 1)
        self.assertEqual(
            raised.exception.__notes__, [f"(message {message.id} in 'reminders': Retry(delay=60.0, failed=True))"]
        )
        self.assertEqual(self.outbox.drain(), [])

    def test_errors_can_be_looked_at(self) -> None:
        remind(1, after=timedelta(0))
        remind(2, after=timedelta(0))

        handled = self.outbox.drain(raise_errors=False)

        self.assertEqual([one.outcome for one in handled], [Retry(60.0), Retry(60.0)])
        self.assertEqual([str(one.error) for one in handled], ["order 1 is not paid", "order 2 is not paid"])

    def test_what_is_scheduled_waits_unless_it_is_asked_for(self) -> None:
        remind(1, after=timedelta(hours=2))
        remind(2, after=timedelta(hours=1))

        self.assertEqual(self.outbox.drain(), [])

        handled = self.outbox.drain(delayed=True, raise_errors=False)
        self.assertEqual([str(one.error) for one in handled], ["order 2 is not paid", "order 1 is not paid"])
        self.assertEqual([message.attempts_count for message in self.outbox.messages()], [1, 1])

    def test_retries_take_a_drain_each(self) -> None:
        remind(1, after=timedelta(0))

        outcomes = [self.outbox.drain(raise_errors=False, delayed=True)[0].outcome for _ in range(3)]

        self.assertEqual(outcomes, [Retry(60.0), Retry(60.0), Ack()])
        self.outbox.assert_nothing_published()

    def test_a_transactional_handler_that_fails_leaves_its_dead_letter_only(self) -> None:
        publish_in_atomic({"id": 7}, "parcels-of-failures")

        (handled,) = self.outbox.drain(raise_errors=False)

        self.assertEqual(handled.outcome, DeadLetter("retry_terminal", "ValueError: the box is too small"))
        (letter,) = self.outbox.dead_letters()
        self.assertEqual((letter.queue, letter.body), ("parcels-of-failures", {"id": 7}))
        self.assertEqual(letter.last_exception, "ValueError: the box is too small")
        self.assertEqual(self.outbox.dead_letters("orders"), [])
        self.outbox.assert_nothing_published()
        self.assertEqual(Parcel.objects.count(), 0)

    def test_a_statement_that_fails_spoils_nothing_but_its_handler(self) -> None:
        Parcel.objects.create(order_id=1)
        for queue in ("copies", "queries"):
            publish_in_atomic({"id": 1}, queue)

        handled = self.outbox.drain(raise_errors=False)

        self.assertEqual([type(one.outcome) for one in handled], [Retry, Retry])
        self.assertEqual(Parcel.objects.count(), 1)
        self.assertEqual([message.attempts_count for message in self.outbox.messages()], [1, 1])

    def test_a_handler_needs_a_transaction_to_publish_as_everybody_does(self) -> None:
        publish_in_atomic({"id": 1}, "notes")

        with self.assertRaises(NotInTransaction):
            self.outbox.drain()

    def test_a_queue_that_is_pulled_is_left_alone(self) -> None:
        publish_in_atomic({"id": 1}, "pulled")

        self.assertEqual(self.outbox.drain(), [])

        self.assertEqual([message.attempts_count for message in self.outbox.messages("pulled")], [0])

    def test_a_handler_that_never_ends_is_found_out(self) -> None:
        publish_in_atomic({"id": 1}, "echoes")

        with self.assertRaisesRegex(EndlessDrain, "more than 10 messages, the last of them in 'echoes'"):
            self.outbox.drain(limit=10)

    def test_a_batch_is_handled_as_one(self) -> None:
        with transaction.atomic():
            publish_batch({"id": 1}, {"id": 2}, {"id": 3}, queue="many")

        self.assertEqual(len(self.outbox.drain()), 3)

        self.assertEqual(Order.objects.get().item, "3 at once")

    def test_the_broker_is_as_before(self) -> None:
        from outbox_django import broker

        before = vars(broker.config.broker_config).copy()
        with self.assertRaises(OptionError):
            self.outbox.drain("nobody's")
        self.outbox.drain("orders")

        after = vars(broker.config.broker_config)
        self.assertEqual([name for name in before if before[name] is not after[name]], [])

    async def test_asynchronous_tests_await(self) -> None:
        order = await Order.objects.acreate(item="mug")
        await apublish({"id": order.id}, "orders", standalone=True, headers={"tenant": "acme"})
        await self.outbox.aassert_published("orders", {"id": order.id})

        handled = await self.outbox.adrain()

        self.assertEqual([one.outcome for one in handled], [Ack(), Ack()])
        await order.arefresh_from_db()
        self.assertEqual(order.state, "shipped")
        self.assertEqual([message.queue for message in await self.outbox.amessages()], ["mails"])
        self.assertEqual(await self.outbox.adead_letters(), [])
        with self.assertRaisesRegex(AssertionError, "expected no message"):
            await self.outbox.aassert_nothing_published()
        await self.outbox.aassert_nothing_published("orders")

    async def test_asynchronous_tests_are_told_what_to_await(self) -> None:
        for method in (self.outbox.messages, self.outbox.drain, self.outbox.dead_letters):
            with self.assertRaisesRegex(SynchronousOnlyOperation, f"use await outbox.a{method.__name__}"):
                method()


class HandlingInATransaction(Handling, OutboxTestMixin, TestCase):
    def tearDown(self) -> None:
        self.assertTrue(connection.in_atomic_block)


class HandlingInAutocommit(Handling, OutboxTestMixin, TransactionTestCase):
    def tearDown(self) -> None:
        self.assertFalse(connection.in_atomic_block)


class ZNothingIsLeft(OutboxTestMixin, TestCase):
    """Its name is last, and so is its turn among Django's `TestCase`s, which are loaded by name."""

    def test_one_test_leaves_nothing_to_the_next(self) -> None:
        self.outbox.assert_nothing_published()
        self.assertEqual((Order.objects.count(), Parcel.objects.count()), (0, 0))


class WithoutDatabase(OutboxTestMixin, SimpleTestCase):
    def test_django_says_so(self) -> None:
        with self.assertRaisesRegex(AssertionError, "Database queries to 'default' are not allowed"):
            self.outbox.messages()
        with self.assertRaisesRegex(AssertionError, "Database .* to 'default' are not allowed"):
            self.outbox.drain()
