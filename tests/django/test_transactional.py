"""`transactional=True`: the handler's writes, what it publishes, and the end of its message are one transaction."""

import asyncio
from collections.abc import Callable, Mapping
from typing import Any

import pytest
from asgiref.sync import async_to_sync, sync_to_async
from django.contrib.auth.models import Group
from django.db import IntegrityError, connections, transaction
from faststream.exceptions import NackMessage, RejectMessage
from sqlalchemy import URL

from outbox_core.events import Event, LeaseLost, Settled
from outbox_django import (
    ConstantRetry,
    NoRetry,
    OutboxBroker,
    OutboxMessage,
    OutboxResponse,
    apublish,
    publish,
    publish_batch,
)
from outbox_django.models import DeadLetter
from outbox_django.models import OutboxMessage as Row
from tests.databases import execute
from tests.django.running import consuming, drain, handle_until, until


def groups(alias: str) -> list[str]:
    return sorted(group.name for group in Group.objects.using(alias))


def bodies(alias: str, queue: str) -> list[Any]:
    return sorted(message.body for message in Row.objects.using(alias).filter(queue=queue))


def dead(alias: str) -> list[tuple[Any, str, str | None]]:
    return [(one.body, one.failure_reason, one.last_exception) for one in DeadLetter.objects.using(alias)]


@pytest.fixture(params=["sync", "async"])
def handled_by(request: pytest.FixtureRequest) -> Callable[[Any], Any]:
    """A synchronous function as a handler, and as the thread's work of an asynchronous one."""

    def subscribed(call: Callable[[str], object]) -> Callable[..., object]:
        if request.param == "sync":

            def handler(body: str) -> object:
                return call(body)

            return handler

        async def ahandler(body: str) -> object:
            return await sync_to_async(call)(body)

        return ahandler

    return subscribed


def test_a_synchronous_handler_commits_all_together(alias: str) -> None:
    broker = OutboxBroker(alias, concurrency=4 if alias == "default" else 2)

    @broker.subscriber("q", transactional=True, retry_strategy=NoRetry())
    @broker.publisher("replies")
    def handle(n: int) -> OutboxResponse:
        assert connections[alias].in_atomic_block
        Group.objects.using(alias).create(name=f"{n:02}")
        publish(n, "published", using=alias)
        publish_batch(n, queue="published", using=alias)
        broker.publish_sync(n, "published by the broker")
        async_to_sync(broker.publish)(n, "published by the broker")
        if n % 3 == 0:
            raise ValueError(n)
        return OutboxResponse(n, queue="responses")

    publish_batch(*range(30), queue="q", using=alias, standalone=True)
    drain(broker)

    kept = [n for n in range(30) if n % 3]
    assert groups(alias) == [f"{n:02}" for n in kept]
    assert bodies(alias, "published") == sorted([*kept, *kept])
    assert bodies(alias, "published by the broker") == sorted([*kept, *kept])
    assert bodies(alias, "replies") == bodies(alias, "responses") == kept
    assert bodies(alias, "q") == []
    assert len(dead(alias)) == 10


def test_an_asynchronous_handler_commits_all_together(alias: str) -> None:
    broker = OutboxBroker(alias, concurrency=4 if alias == "default" else 2)

    @broker.subscriber("q", transactional=True, retry_strategy=NoRetry())
    @broker.publisher("replies")
    async def handle(n: int) -> OutboxResponse:
        await Group.objects.using(alias).acreate(name=f"{n:02}")
        await apublish(n, "published", using=alias)
        await broker.publish(n, "published by the broker")
        await broker.publish_batch(n, queue="published by the broker")
        if n % 3 == 0:
            raise ValueError(n)
        return OutboxResponse(n, queue="responses")

    publish_batch(*range(30), queue="q", using=alias, standalone=True)
    drain(broker)

    kept = [n for n in range(30) if n % 3]
    assert groups(alias) == [f"{n:02}" for n in kept]
    assert bodies(alias, "published") == kept
    assert bodies(alias, "published by the broker") == sorted([*kept, *kept])
    assert bodies(alias, "replies") == bodies(alias, "responses") == kept
    assert bodies(alias, "q") == []
    assert len(dead(alias)) == 10


def test_nothing_is_visible_before_the_end(django_databases: Mapping[str, URL], handled_by: Any) -> None:
    broker = OutboxBroker()
    seen: list[list[tuple[object, ...]]] = []
    tables = "SELECT (SELECT count(*) FROM auth_group), (SELECT count(*) FROM outbox), (SELECT max(queue) FROM outbox)"

    def handle(body: str) -> None:
        Group.objects.create(name="new")
        publish("follower", "z", using="default")
        seen.append(execute(django_databases["default"], tables))

    broker.subscriber("q", transactional=True)(handled_by(handle))
    publish("x", "q", standalone=True)
    drain(broker)

    assert seen == [[(0, 1, "q")]]
    assert execute(django_databases["default"], tables) == [(1, 1, "z")]


def test_a_failing_handler_is_tried_again_and_leaves_one_effect(alias: str, handled_by: Any) -> None:
    broker = OutboxBroker(alias)
    tries = []

    def handle(body: str) -> None:
        tries.append(body)
        Group.objects.using(alias).create(name=f"try {len(tries)}")
        publish(len(tries), "followers", using=alias)
        if len(tries) < 3:
            raise ValueError

    retry = ConstantRetry(delay_seconds=0.01)
    broker.subscriber("q", transactional=True, retry_strategy=retry)(handled_by(handle))
    publish("x", "q", using=alias, standalone=True)
    handle_until(broker, lambda: broker.handled == 3)

    assert groups(alias) == ["try 3"]
    assert bodies(alias, "followers") == [3]
    assert bodies(alias, "q") == []


@pytest.mark.parametrize("vote", [NackMessage, RejectMessage])
def test_a_vote_against_it_rolls_back(alias: str, handled_by: Any, vote: type[Exception]) -> None:
    broker = OutboxBroker(alias)

    def handle(body: str) -> None:
        Group.objects.using(alias).create(name="gone")
        publish("gone", "followers", using=alias)
        raise vote

    broker.subscriber("q", transactional=True, retry_strategy=NoRetry())(handled_by(handle))
    publish("x", "q", using=alias, standalone=True)
    drain(broker)

    assert groups(alias) == []
    assert bodies(alias, "followers") == bodies(alias, "q") == []
    assert [reason for _, reason, _ in dead(alias)] == ["retry_terminal" if vote is NackMessage else "rejected"]


def test_a_nack_on_the_message_rolls_back(alias: str) -> None:
    broker = OutboxBroker(alias)

    @broker.subscriber("q", transactional=True, retry_strategy=ConstantRetry(delay_seconds=0.01))
    async def handle(body: str, message: OutboxMessage) -> None:
        await Group.objects.using(alias).acreate(name=f"attempt {message.attempt}")
        if message.attempt == 1:
            await message.nack(delay=0.01)

    publish("x", "q", using=alias, standalone=True)
    handle_until(broker, lambda: broker.handled == 2)

    assert groups(alias) == ["attempt 2"]
    assert bodies(alias, "q") == []


def test_a_lost_lease_rolls_back_and_leaves_the_message_to_its_new_owner(
    django_databases: Mapping[str, URL], handled_by: Any
) -> None:
    told: list[Event] = []
    broker = OutboxBroker(observers=[told.append])

    def handle(body: str) -> None:
        Group.objects.create(name="gone")
        publish("gone", "followers", using="default")
        execute(
            django_databases["default"],
            "UPDATE outbox SET acquired_token = gen_random_uuid(), leased_until = now() + interval '1 hour'",
        )

    broker.subscriber("q", transactional=True)(handled_by(handle))
    publish("x", "q", standalone=True)
    drain(broker)

    assert groups("default") == []
    assert bodies("default", "followers") == []
    assert bodies("default", "q") == ["x"]
    assert dead("default") == []
    assert broker.handled == 1
    assert [type(event) for event in told if isinstance(event, LeaseLost)] == [LeaseLost]


def test_a_commit_that_fails_is_tried_again(alias: str, handled_by: Any) -> None:
    broker = OutboxBroker(alias)
    tries = []

    def handle(body: str) -> None:
        tries.append(body)
        group = Group.objects.using(alias).create(name=f"try {len(tries)}")
        if len(tries) == 1:  # no such permission, which is found out at the commit
            Group.permissions.through.objects.using(alias).create(group_id=group.id, permission_id=999_999)

    retry = ConstantRetry(delay_seconds=0.01)
    broker.subscriber("q", transactional=True, retry_strategy=retry)(handled_by(handle))
    publish("x", "q", using=alias, standalone=True)
    handle_until(broker, lambda: broker.handled == 2)

    assert groups(alias) == ["try 2"]
    assert bodies(alias, "q") == []
    assert dead(alias) == []


def test_a_commit_that_always_fails_is_dead_in_the_end(alias: str) -> None:
    broker = OutboxBroker(alias)

    @broker.subscriber("q", transactional=True, retry_strategy=NoRetry())
    def handle(body: str) -> None:
        group = Group.objects.using(alias).create(name="gone")
        Group.permissions.through.objects.using(alias).create(group_id=group.id, permission_id=999_999)

    publish("x", "q", using=alias, standalone=True)
    drain(broker)

    assert groups(alias) == []
    ((body, reason, error),) = dead(alias)
    assert (body, reason) == ("x", "retry_terminal")
    assert error is not None
    assert error.startswith("IntegrityError: ")


def test_a_swallowed_database_error_is_not_committed(alias: str, handled_by: Any) -> None:
    broker = OutboxBroker(alias)
    Group.objects.using(alias).create(name="there")

    def handle(body: str) -> None:
        Group.objects.using(alias).create(name="gone")
        try:
            with transaction.atomic(using=alias, savepoint=False):
                Group.objects.using(alias).create(name="there")
        except IntegrityError:
            pass

    broker.subscriber("q", transactional=True, retry_strategy=NoRetry())(handled_by(handle))
    publish("x", "q", using=alias, standalone=True)
    drain(broker)

    assert groups(alias) == ["there"]
    assert [reason for _, reason, _ in dead(alias)] == ["retry_terminal"]


def test_savepoints_of_the_handler_are_its_own(alias: str, handled_by: Any) -> None:
    broker = OutboxBroker(alias)

    def handle(body: str) -> None:
        Group.objects.using(alias).create(name="kept")
        try:
            with transaction.atomic(using=alias):
                Group.objects.using(alias).create(name="gone")
                publish("gone", "followers", using=alias)
                raise ValueError
        except ValueError:
            publish("kept", "followers", using=alias)

    broker.subscriber("q", transactional=True)(handled_by(handle))
    publish("x", "q", using=alias, standalone=True)
    drain(broker)

    assert groups(alias) == ["kept"]
    assert bodies(alias, "followers") == ["kept"]


def test_a_batch_is_one_transaction(alias: str) -> None:
    broker = OutboxBroker(alias)
    sizes = []

    @broker.subscriber("q", transactional=True, batch=True, max_records=10, retry_strategy=NoRetry())
    def handle(names: list[str]) -> None:
        sizes.append(len(names))
        Group.objects.using(alias).bulk_create([Group(name=name) for name in names])
        if "bad" in names:
            raise ValueError

    publish_batch(*"abc", "bad", queue="q", using=alias, standalone=True)
    drain(broker)
    publish_batch(*"def", queue="q", using=alias, standalone=True)
    drain(broker)

    assert sizes == [4, 3]
    assert groups(alias) == ["d", "e", "f"]
    assert len(dead(alias)) == 4


def test_connections_that_are_killed_lose_and_repeat_nothing(django_databases: Mapping[str, URL]) -> None:
    broker = OutboxBroker(concurrency=4)
    url = django_databases["default"]

    @broker.subscriber(
        "q",
        transactional=True,
        retry_strategy=ConstantRetry(delay_seconds=0.02),
        lease_ttl_seconds=1.0,
        max_fetch_interval=0.2,
    )
    def handle(n: int) -> None:
        Group.objects.create(name=f"{n:03}")
        publish(n, "followers")
        with connections["default"].cursor() as cursor:
            cursor.execute("SELECT pg_sleep(0.01)")

    publish_batch(*range(150), queue="q", standalone=True)
    connections["default"].close()
    waiting = "SELECT count(*) FROM outbox WHERE queue = 'q'"

    async def run() -> None:
        async with consuming(broker):
            for left in (120, 80, 40):
                await until(lambda left=left: execute(url, waiting)[0][0] <= left)  # type: ignore[misc]  # a default of a lambda
                execute(
                    url,
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() "
                    "AND backend_type = 'client backend' AND pid <> pg_backend_pid()",
                )
            await until(lambda: execute(url, waiting) == [(0,)])

    asyncio.run(run())

    assert groups("default") == [f"{n:03}" for n in range(150)]
    assert bodies("default", "followers") == list(range(150))
    assert dead("default") == []


def test_a_completed_message_counts_as_settled(alias: str, handled_by: Any) -> None:
    told: list[Event] = []
    broker = OutboxBroker(alias, observers=[told.append])
    broker.subscriber("q", transactional=True)(handled_by(lambda body: None))

    publish("x", "q", using=alias, standalone=True)
    drain(broker)

    assert [event for event in told if isinstance(event, Settled)] == [Settled(1, ())]
