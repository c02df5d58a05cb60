"""Django's signals of a worker: sent once, in a lane of their own, and nobody suffers from a receiver that fails."""

import threading
from collections.abc import Iterator
from typing import Any

import pytest
from django.contrib.auth.models import Group
from django.db import transaction
from django.dispatch import Signal

from outbox_django import NoRetry, OutboxBroker, publish, publish_batch
from outbox_django.models import DeadLetter, OutboxMessage
from outbox_django.signals import message_dead_lettered, worker_started, worker_stopped
from tests.django.running import PATIENCE, drain

SIGNALS = [message_dead_lettered, worker_started, worker_stopped]


@pytest.fixture(autouse=True)
def no_receivers_are_left() -> Iterator[None]:
    yield
    for signal in SIGNALS:
        signal.receivers = []
        signal.sender_receivers_cache.clear()


def failing_broker(alias: str) -> OutboxBroker:
    broker = OutboxBroker(alias)

    @broker.subscriber("q", retry_strategy=NoRetry())
    def fail(body: str) -> None:
        if body != "good":
            raise ValueError(body)

    return broker


def test_a_dead_letter_is_told_with_its_reason(alias: str) -> None:
    broker = failing_broker(alias)
    told: list[tuple[Any, ...]] = []

    def receive(sender: type, **arguments: Any) -> None:
        delivery = arguments["delivery"]
        told.append((sender, arguments["broker"], delivery.queue, delivery.payload, arguments["reason"]))
        Group.objects.using(alias).create(name=f"dead {DeadLetter.objects.using(alias).count()}")

    message_dead_lettered.connect(receive, weak=False)
    publish_batch("bad", "good", queue="q", using=alias, standalone=True)
    drain(broker)

    assert told == [(OutboxBroker, broker, "q", b"bad", "retry_terminal")]
    assert [group.name for group in Group.objects.using(alias)] == ["dead 1"]


def test_asynchronous_receivers_use_the_orm(alias: str) -> None:
    broker = failing_broker(alias)

    async def receive(sender: type, delivery: Any, **arguments: Any) -> None:
        await Group.objects.using(alias).acreate(name=f"dead {delivery.id}")

    message_dead_lettered.connect(receive, weak=False)
    publish("bad", "q", using=alias, standalone=True)
    drain(broker)

    assert [group.name for group in Group.objects.using(alias)] == ["dead 1"]


def test_start_and_stop_are_told_once(alias: str) -> None:
    broker = failing_broker(alias)
    told: list[tuple[str, dict[str, Any]]] = []

    def started(sender: type, **arguments: Any) -> None:
        told.append(("started", arguments))

    async def stopped(sender: type, **arguments: Any) -> None:
        told.append(("stopped", arguments))

    worker_started.connect(started, weak=False)
    worker_stopped.connect(stopped, weak=False)
    publish("good", "q", using=alias, standalone=True)
    drain(broker)
    drain(broker)

    assert [what for what, _ in told] == ["started", "stopped", "started", "stopped"]
    assert told[0][1]["queues"] == ("q",)
    assert told[0][1]["listening"] is (alias == "default")
    assert told[1][1]["worker"] == told[0][1]["worker"]
    assert (told[1][1]["released"], told[1][1]["abandoned"]) == (0, 0)


def test_receivers_of_other_senders_are_not_asked(alias: str) -> None:
    told = []

    class Another:
        pass

    message_dead_lettered.connect(lambda **arguments: told.append(arguments), sender=Another, weak=False)
    publish("bad", "q", using=alias, standalone=True)
    drain(failing_broker(alias))

    assert told == []


@pytest.mark.parametrize("signal", SIGNALS)
@pytest.mark.parametrize("asynchronous", [False, True], ids=["sync", "async"])
def test_a_receiver_that_fails_harms_nobody(alias: str, signal: Signal, asynchronous: bool) -> None:
    told = []

    def fail(**arguments: Any) -> None:
        raise RuntimeError("a receiver's own error")

    async def afail(**arguments: Any) -> None:
        raise RuntimeError("a receiver's own error")

    signal.connect(afail if asynchronous else fail, weak=False)
    for each in SIGNALS:
        each.connect(lambda **arguments: told.append(arguments["signal"]), weak=False)
    publish_batch("bad", "good", queue="q", using=alias, standalone=True)
    drain(failing_broker(alias))

    assert told == [worker_started, message_dead_lettered, worker_stopped]
    assert OutboxMessage.objects.using(alias).count() == 0


def test_what_a_receiver_leaves_open_is_not_the_next_ones(alias: str) -> None:
    def receive(delivery: Any, **arguments: Any) -> None:
        Group.objects.using(alias).create(name=delivery.payload.decode())
        transaction.atomic(using=alias).__enter__()
        Group.objects.using(alias).create(name=f"gone {delivery.payload.decode()}")

    message_dead_lettered.connect(receive, weak=False)
    publish_batch("one", "two", queue="q", using=alias, standalone=True)
    drain(failing_broker(alias))

    assert sorted(group.name for group in Group.objects.using(alias)) == ["one", "two"]


def test_receivers_do_not_hold_up_handlers(django_databases: object) -> None:
    broker = OutboxBroker(concurrency=1)
    handled = threading.Event()
    waited = []

    @broker.subscriber("q", retry_strategy=NoRetry())
    def handle(body: str) -> None:
        if body == "bad":
            raise ValueError
        handled.set()

    message_dead_lettered.connect(lambda **arguments: waited.append(handled.wait(PATIENCE)), weak=False)
    publish("bad", "q", standalone=True, priority=1)
    publish("good", "q", standalone=True)
    drain(broker)

    assert waited == [True]
