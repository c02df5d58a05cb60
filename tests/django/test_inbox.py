"""`receive` in Django: in the `atomic()` of the handler's writes, or not at all."""

import subprocess
import sys
import unittest
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from io import StringIO
from signal import SIGTERM
from threading import Thread
from typing import Any
from uuid import UUID

import pytest
from django.contrib.auth.models import Group
from django.core.management import CommandError, call_command
from django.db import connections, transaction
from django.http import HttpRequest, HttpResponse
from django.test import Client, TestCase, override_settings
from django.urls import path
from django.utils import timezone
from django.views.decorators.csrf import csrf_exempt
from django.views.decorators.http import require_POST

from outbox_core.errors import InvalidMessage, SchemaMismatch, WrongDatabase, WrongType
from outbox_django import NoRetry, OutboxBroker, OutboxMessage, areceive, publish_batch, receive
from outbox_django.errors import NotInTransaction
from outbox_django.models import DeadLetter, ReceivedMessage
from tests.django.running import drain
from tests.django.sites import Site
from tests.processes import until

MESSAGE_ID = UUID("0197a3c0-0000-7000-8000-000000000001")


class RolledBack(Exception):
    """The end of a transaction that fails."""


@contextmanager
def rolled_back(alias: str) -> Iterator[None]:
    """`atomic()`, and then something fails."""
    with suppress(RolledBack), transaction.atomic(using=alias):
        yield
        raise RolledBack


def handle(alias: str, message_id: str | UUID, consumer: str = "billing") -> bool:
    """A handler: it receives, and writes only if that says so. Names of groups are unique, so it writes another each time."""
    with transaction.atomic(using=alias):
        if not receive(message_id, consumer, using=alias):
            return False
        Group.objects.using(alias).create(name=f"run {Group.objects.using(alias).count()}")
        return True


def runs(alias: str) -> int:
    return Group.objects.using(alias).count()


def received(alias: str) -> list[tuple[str, str]]:
    return list(ReceivedMessage.objects.using(alias).order_by("id").values_list("consumer", "message_id"))


def test_the_handlers_writes_happen_once(alias: str) -> None:
    assert [handle(alias, MESSAGE_ID) for _ in range(3)] == [True, False, False]

    assert runs(alias) == 1
    assert received(alias) == [("billing", str(MESSAGE_ID))]


def test_each_consumer_handles_it_once(alias: str) -> None:
    assert [handle(alias, "m1", consumer) for consumer in ("billing", "shipping", "billing")] == [True, True, False]


def test_writes_that_are_rolled_back_take_the_record_with_them(alias: str) -> None:
    with rolled_back(alias):
        assert receive("m1", "billing", using=alias)

    assert handle(alias, "m1")


def test_a_savepoint_that_is_rolled_back_takes_the_record_with_it(alias: str) -> None:
    with transaction.atomic(using=alias):
        with rolled_back(alias):
            assert receive("m1", "billing", using=alias)
        assert receive("m1", "billing", using=alias)


def test_the_transaction_goes_on_after_a_duplicate_and_after_a_bad_id(alias: str) -> None:
    handle(alias, "m1")

    with transaction.atomic(using=alias):
        assert not receive("m1", "billing", using=alias)
        for message_id in ("", "m" * 256, "a\x00b"):
            with pytest.raises(InvalidMessage):
                receive(message_id, "billing", using=alias)
        with pytest.raises(WrongType, match="message_id must be a str or a UUID, got int"):
            receive(7, "billing", using=alias)  # type: ignore[arg-type]  # the point
        Group.objects.using(alias).create(name="goes on")

    assert runs(alias) == 2


@pytest.mark.parametrize("fails", [False, True])
def test_a_second_delivery_waits_for_the_first(alias: str, fails: bool) -> None:
    answers: list[bool] = []

    def deliver() -> None:
        try:
            answers.append(handle(alias, "m1"))
        finally:
            connections[alias].close()

    second = Thread(target=deliver)
    with suppress(RolledBack), transaction.atomic(using=alias):
        assert receive("m1", "billing", using=alias)
        second.start()
        second.join(0.3)
        assert second.is_alive()
        if fails:
            raise RolledBack
    second.join(10)

    assert answers == [fails]


# Where there is no transaction


@pytest.mark.parametrize("policy", ["error", "warn", "ignore"])
def test_outside_a_transaction_it_is_refused_whatever_the_policy_for_publishing(alias: str, policy: str) -> None:
    with override_settings(OUTBOX={"REQUIRE_TRANSACTION": policy}), pytest.raises(NotInTransaction) as refused:
        receive("m1", "billing", using=alias)

    assert str(refused.value) == (
        f"receive by 'billing' is outside a transaction on database '{alias}', so the message would count as received "
        f"even if what it causes is rolled back; wrap both in \"with transaction.atomic(using='{alias}'):\""
    )
    assert refused.value.alias == alias
    assert received(alias) == []


def test_a_transaction_on_another_database_does_not_count(django_databases: object) -> None:
    with transaction.atomic(using="default"), pytest.raises(NotInTransaction) as refused:
        receive("m1", "billing", using="lite")

    assert refused.value.alias == "lite"


async def test_asynchronous_code_has_no_transaction(django_databases: object) -> None:
    with pytest.raises(NotInTransaction):
        await areceive("m1", "billing", using="lite")


def test_the_transaction_of_a_test_case_does_not_hide_a_missing_one(alias: str) -> None:
    class Case(TestCase):
        databases = {alias}  # noqa: RUF012  Django's own form

        def test_it(self) -> None:
            with pytest.raises(NotInTransaction):
                receive("m1", "billing", using=alias)
            assert [handle(alias, "m1") for _ in range(2)] == [True, False]

    result = unittest.TestResult()
    unittest.defaultTestLoader.loadTestsFromTestCase(Case).run(result)

    assert (result.testsRun, result.errors, result.failures) == (1, [], [])
    assert received(alias) == []


def test_an_alias_that_does_not_exist_is_named(django_databases: object) -> None:
    with pytest.raises(WrongDatabase, match="there is no database 'elsewhere'"):
        receive("m1", "billing", using="elsewhere")


def test_a_database_that_is_not_migrated_says_how(django_databases: object) -> None:
    with transaction.atomic(using="lite"):
        with connections["lite"].cursor() as cursor:
            cursor.execute("DROP TABLE outbox_inbox")
        with pytest.raises(SchemaMismatch, match=r"^outbox_inbox does not fit .* run manage\.py migrate outbox"):
            receive("m1", "billing", using="lite")


# In handlers and in views


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_a_transactional_handler_receives_in_its_own_transaction(alias: str, kind: str) -> None:
    """Two messages that tell the same thing, as two runs of a careless producer would publish them."""
    broker = OutboxBroker(alias)
    seen: list[bool] = []

    def ship(order: dict[str, Any], message: OutboxMessage) -> None:
        seen.append(receive(order["event"], "shipping", using=alias))

    async def aship(order: dict[str, Any], message: OutboxMessage) -> None:
        seen.append(await areceive(order["event"], "shipping", using=alias))

    handlers: dict[str, Callable[..., object]] = {"sync": ship, "async": aship}
    broker.subscriber("orders", transactional=True, retry_strategy=NoRetry())(handlers[kind])
    publish_batch({"event": "e1"}, {"event": "e1"}, queue="orders", using=alias, standalone=True)

    drain(broker)

    assert sorted(seen) == [False, True]
    assert received(alias) == [("shipping", "e1")]


@csrf_exempt
@require_POST
def payment_webhook(request: HttpRequest) -> HttpResponse:
    """A provider sends each event with an id of its own, and again until it gets a 2xx."""
    with transaction.atomic():
        if receive(request.headers["Event-Id"], "payments"):
            Group.objects.create(name=f"paid {Group.objects.count()}")
            if "fail" in request.GET:
                raise RuntimeError("the view fails")
    return HttpResponse(status=204)


urlpatterns = [path("payments", payment_webhook)]


def test_a_webhook_that_is_sent_again_is_answered_and_does_nothing(django_databases: object) -> None:
    with override_settings(ROOT_URLCONF=__name__, ALLOWED_HOSTS=["testserver"]):
        client = Client(raise_request_exception=False)
        addresses = ("/payments?fail=1", "/payments", "/payments")
        answers = [client.post(address, headers={"Event-Id": "evt_1"}).status_code for address in addresses]

    assert answers == [500, 204, 204]
    assert runs("default") == 1


KILLED = """
import os
from pathlib import Path
from signal import SIGKILL

from django.db import transaction

from outbox_django import OutboxMessage, broker, receive
from shop.models import Run


@broker.subscriber("orders", lease_ttl_seconds=1.0)
def ship(order: dict, message: OutboxMessage) -> None:
    with transaction.atomic():
        if not receive(message.message_id, "shipping"):
            print("skipped", order["number"], flush=True)
            return
        Run.objects.create(queue="orders", number=order["number"], process=os.getpid(), ended=True)
        die("written", order)
    die("committed", order)


def die(where: str, order: dict) -> None:
    died = Path(f"died {order['number']}")
    if order["dies"] == where and not died.exists():
        died.touch()
        os.kill(os.getpid(), SIGKILL)
"""


def test_a_handler_behind_an_inbox_has_one_effect_wherever_its_worker_is_killed(either: Site) -> None:
    either.write("shop/outbox.py", KILLED)
    deaths = ("written", "committed", None)
    either.publish("orders", *({"number": number, "dies": dies} for number, dies in enumerate(deaths)))

    codes = [either.start("outbox_worker", "--concurrency", 1).ends() for _ in range(2)]
    last = either.start("outbox_worker", "--concurrency", 1)
    until(either.messages, [])
    last.send(SIGTERM)

    assert (codes, last.ends()) == ([-9, -9], 0)
    assert [run.number for run in sorted(either.runs(), key=lambda run: run.number)] == [0, 1, 2]
    assert sum(process.log.count("skipped") for process in either.started) == 1


def test_receiving_imports_no_faststream() -> None:
    program = """
import sys
from django.conf import settings
settings.configure(
    INSTALLED_APPS=["django.contrib.contenttypes", "outbox_django"],
    DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}},
)
import django
django.setup()
from django.core.management import call_command
from django.db import transaction
from outbox_django import receive
call_command("migrate", verbosity=0)
with transaction.atomic():
    assert receive("m1", "billing") and not receive("m1", "billing")
assert "faststream" not in sys.modules and "sqlalchemy" not in sys.modules
"""
    subprocess.run([sys.executable, "-W", "error", "-c", program], check=True, timeout=60)


# Purging


def purged(alias: str, *arguments: str) -> str:
    out = StringIO()
    call_command("outbox_purge", "--inbox", "--database", alias, *arguments, stdout=out)
    return out.getvalue()


def remember(alias: str, number: int, *, days: float) -> None:
    """Messages that were received so many days ago."""
    for one in range(number):
        ReceivedMessage.objects.using(alias).create(
            consumer="billing", message_id=f"{days}-{one}", received_at=timezone.now() - timedelta(days=days)
        )


KEPT = {"INBOX_RETENTION": timedelta(days=30), "DEAD_LETTER_RETENTION": timedelta(days=14)}


def test_what_is_older_than_the_retention_is_forgotten(alias: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("outbox_core.cli.operations.PURGED_AT_ONCE", 2)
    remember(alias, 5, days=31)
    remember(alias, 1, days=29)

    with override_settings(OUTBOX=KEPT):
        assert purged(alias, "--limit", "1") == "1 received message deleted\n"
        assert purged(alias) == "4 received messages deleted\n"
        assert purged(alias, "--older-than", "14d") == "1 received message deleted\n"


def test_what_is_older_than_dead_letters_are_kept_is_not_redriven(alias: str) -> None:
    for days in (13, 15):
        DeadLetter.objects.using(alias).create(
            queue="orders",
            payload=b"1",
            failure_reason="rejected",
            failed_at=timezone.now() - timedelta(days=days),
        )

    with override_settings(OUTBOX=KEPT):
        with pytest.raises(CommandError, match=r"in 'orders' failed 15 days.* kept for 14 days only") as refused:
            call_command("outbox_redrive", "--database", alias)
        assert DeadLetter.objects.using(alias).count() == 2
        call_command("outbox_purge", "--database", alias, stdout=StringIO())
        call_command("outbox_redrive", "--database", alias, stdout=StringIO())

    assert refused.value.returncode == 1
    assert DeadLetter.objects.using(alias).count() == 0


@pytest.mark.parametrize(
    ("outbox", "arguments", "said"),
    [
        (
            KEPT,
            ("--older-than", "13d"),
            'older_than must not be shorter than OUTBOX["DEAD_LETTER_RETENTION"], got 13 days',
        ),
        ({}, ("--older-than", "30d"), 'older_than is 30 days, but OUTBOX["DEAD_LETTER_RETENTION"] is not set'),
        ({}, (), 'this inbox is kept for ever; set OUTBOX["INBOX_RETENTION"] and OUTBOX["DEAD_LETTER_RETENTION"]'),
        (KEPT, ("--queue", "orders"), "--queue is for dead letters; an inbox has none"),
    ],
    ids=str,
)
def test_what_could_be_redriven_is_not_forgotten(
    django_databases: object, outbox: dict[str, object], arguments: tuple[str, ...], said: str
) -> None:
    remember("lite", 1, days=99)

    with override_settings(OUTBOX=outbox), pytest.raises(CommandError) as refused:
        purged("lite", *arguments)

    assert str(refused.value).startswith(said)
    assert ReceivedMessage.objects.using("lite").count() == 1
