"""The same publishes through Django: the same words, no query, and an `atomic()` that goes on."""

from collections.abc import Callable
from typing import Any

import pytest
from django.contrib.auth.models import Group
from django.db import connections, transaction
from django.test.utils import CaptureQueriesContext

from outbox_core.errors import OutboxError
from outbox_django import OutboxBroker, apublish, apublish_batch, publish, publish_batch
from outbox_django.models import OutboxMessage
from tests.bad_inputs.catalogue import Bad, told
from tests.bad_inputs.publishes import PUBLISHES

BATCHES = tuple(case for case in PUBLISHES if case.fits_a_batch)


def attempt(call: Callable[..., object], alias: str, number: int, case: Bad) -> tuple[object, int]:
    """What is said, and how much is sent, between two writes of the application's own, which are committed."""
    error = None
    with transaction.atomic(using=alias):
        Group.objects.using(alias).create(name=f"before {number}")
        with case.arguments() as (body, others), CaptureQueriesContext(connections[alias]) as sent:
            try:
                call(body, using=alias, **others)
            except OutboxError as refused:
                error = refused
        Group.objects.using(alias).create(name=f"after {number}")
    return told(error), len(sent)


@pytest.mark.parametrize(
    ("call", "cases"), [(publish, PUBLISHES), (publish_batch, BATCHES)], ids=["publish", "publish_batch"]
)
def test_synchronous_code(alias: str, call: Callable[..., object], cases: tuple[Bad, ...]) -> None:
    seen = [attempt(call, alias, number, case) for number, case in enumerate(cases)]

    assert seen == [(case.said, 0) for case in cases]
    assert Group.objects.using(alias).count() == 2 * len(cases)
    assert not OutboxMessage.objects.using(alias).exists()


def test_a_broker_in_synchronous_code(alias: str) -> None:
    broker = OutboxBroker(alias)

    seen = [attempt(broker.publish_sync, alias, number, case) for number, case in enumerate(PUBLISHES)]

    assert seen == [(case.said, 0) for case in PUBLISHES]
    assert Group.objects.using(alias).count() == 2 * len(PUBLISHES)


async def said(call: Callable[..., Any], alias: str, case: Bad) -> object:
    with case.arguments() as (body, others):
        try:
            await call(body, using=alias, standalone=True, **others)
        except OutboxError as refused:
            return told(refused)
    return None


@pytest.mark.parametrize("how", ["apublish", "apublish_batch", "broker"])
async def test_asynchronous_code(alias: str, how: str) -> None:
    calls = {"apublish": apublish, "apublish_batch": apublish_batch, "broker": OutboxBroker(alias).publish}
    cases = BATCHES if how == "apublish_batch" else PUBLISHES

    seen = [await said(calls[how], alias, case) for case in cases]

    assert seen == [case.said for case in cases]
    assert not await OutboxMessage.objects.using(alias).aexists()
