"""What goes wrong in a lane stays with its delivery: odd exceptions, cancelled queries, tasks that outlive their handler."""

import asyncio
import logging
import time
from collections.abc import Mapping
from typing import Any

import pytest
from asgiref.sync import sync_to_async
from django.contrib.auth.models import Group
from django.db import transaction
from sqlalchemy import URL

from outbox_core.cli.exits import Exit
from outbox_core.cli.process import WorkerOptions
from outbox_core.errors import OptionError
from outbox_core.events import Event, Handled, LeaseLost
from outbox_core.outcome import Ack, Retry
from outbox_django import ConstantRetry, NoRetry, OutboxBroker, OutboxMessage, publish, publish_batch
from outbox_django.models import OutboxMessage as Row
from outbox_django.worker import WorkerProcess
from tests.django.running import consuming, drain, handle_until


def test_a_handler_that_raises_stop_iteration_is_retried(alias: str) -> None:
    broker = OutboxBroker(alias, concurrency=1)
    attempts: list[int] = []

    @broker.subscriber("q", retry_strategy=ConstantRetry(delay_seconds=0.01))
    def handle(body: str, message: OutboxMessage) -> None:
        attempts.append(message.attempt)
        if message.attempt == 1:
            next(iter([]))

    publish("x", "q", using=alias, standalone=True)
    handle_until(broker, lambda: len(attempts) == 2)

    assert attempts == [1, 2]


@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_handler_that_exits_ends_the_worker_in_order(alias: str, asynchronous: bool) -> None:
    broker = OutboxBroker(alias, concurrency=1)

    def exit_now(body: str) -> None:
        raise SystemExit(0)

    async def exit_soon(body: str) -> None:
        raise SystemExit(0)

    broker.subscriber("exits")(exit_soon if asynchronous else exit_now)
    publish("x", "exits", using=alias, standalone=True)

    assert asyncio.run(WorkerProcess(broker, WorkerOptions()).run()) == Exit.FAILED
    (row,) = Row.objects.using(alias)
    assert (row.leased_until, row.attempts_count) == (None, 0) or row.attempts_count == 1


def test_a_lane_is_not_given_on_while_a_cancelled_query_runs_in_its_thread(alias: str) -> None:
    broker = OutboxBroker(alias, concurrency=1)
    running: list[str] = []
    together: list[list[str]] = []

    def work(body: str) -> None:
        running.append(body)
        together.append([*running])
        time.sleep(0.3)
        running.remove(body)

    @broker.subscriber("q", handler_timeout=0.1, retry_strategy=NoRetry())
    async def handle(body: str) -> None:
        await sync_to_async(work)(body)

    publish_batch("a", "b", queue="q", using=alias, standalone=True)
    drain(broker)

    assert together == [["a"], ["b"]]


def test_a_task_that_outlives_its_delivery_is_refused_the_connection(alias: str) -> None:
    broker = OutboxBroker(alias, concurrency=1)
    go, tasks = asyncio.Event(), []

    async def later() -> None:
        await go.wait()
        await Group.objects.using(alias).acreate(name="too late")

    @broker.subscriber("first")
    async def first(body: str) -> None:
        tasks.append(asyncio.create_task(later()))

    @broker.subscriber("second", transactional=True, retry_strategy=NoRetry())
    async def second(body: str) -> None:
        go.set()
        await asyncio.wait(tasks)

    async def run() -> None:
        async with consuming(broker):
            await broker.drained()
            await broker.publish("x", "second", using=alias, standalone=True)
            await broker.drained()

    publish("x", "first", using=alias, standalone=True)
    asyncio.run(run())

    assert "has outlived the delivery" in str(tasks[0].exception())
    assert not Group.objects.using(alias).exists()


def test_what_fails_after_the_commit_loses_no_lease(alias: str) -> None:
    events: list[Event] = []
    broker = OutboxBroker(alias, observers=[events.append])

    def fail() -> None:
        raise ZeroDivisionError

    @broker.subscriber("q", transactional=True)
    def handle(body: str) -> None:
        Group.objects.using(alias).create(name=body)
        transaction.on_commit(fail, using=alias)

    publish("x", "q", using=alias, standalone=True)
    drain(broker)

    (handled,) = [event for event in events if isinstance(event, Handled)]
    assert isinstance(handled.error, ZeroDivisionError)
    assert isinstance(handled.outcome, Retry)
    assert not any(isinstance(event, LeaseLost) for event in events)
    assert Group.objects.using(alias).count() == 1
    assert not Row.objects.using(alias).exists()


def test_no_lanes_are_refused(django_databases: Mapping[str, URL]) -> None:
    with pytest.raises(OptionError, match="max_workers must be between 1 and 1,000, got 0"):
        OutboxBroker(concurrency=0)


def test_a_subscriber_that_wants_more_than_all_lanes_is_told(alias: str, caplog: pytest.LogCaptureFixture) -> None:
    broker = OutboxBroker(alias, concurrency=2)

    @broker.subscriber("q", max_workers=16)
    def handle(body: str) -> None: ...

    with caplog.at_level(logging.WARNING, logger="outbox"):
        drain(broker)

    assert "max_workers=16 of ('q',) is more than the 2 handlers that run at once" in caplog.text


def test_a_handler_that_ends_well_is_acked_whatever_it_returns(alias: str) -> None:
    outcomes: list[Any] = []
    broker = OutboxBroker(
        alias, observers=[lambda event: outcomes.append(event.outcome) if isinstance(event, Handled) else None]
    )

    @broker.subscriber("q")
    def handle(body: str) -> StopIteration:
        return StopIteration("returned, not raised")

    publish("x", "q", using=alias, standalone=True)
    drain(broker)

    assert outcomes == [Ack()]
