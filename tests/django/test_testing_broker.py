"""FastStream's test broker on Django: handlers after the commit, on the connection that the test has."""

import asyncio
from contextlib import suppress

import pytest
from asgiref.sync import async_to_sync, sync_to_async
from django.contrib.auth.models import Group
from django.db import transaction

from outbox_core.errors import WrongDatabase, WrongType
from outbox_django import OutboxBroker, OutboxMessage, TestOutboxBroker
from outbox_django.models import OutboxMessage as Row
from tests.django.running import consuming


class Abort(Exception):
    """What makes a block roll back."""


def groups(alias: str) -> list[str]:
    return sorted(group.name for group in Group.objects.using(alias))


def called_with(handler: object) -> list[object]:
    return [call.args[0] for call in handler.mock.call_args_list]  # type: ignore[attr-defined]


async def test_a_handler_runs_when_the_atomic_block_has_been_left(alias: str) -> None:
    broker = OutboxBroker(alias)

    @broker.subscriber("orders")
    def handle(body: int) -> None:
        Group.objects.using(alias).create(name=f"handled {body}")

    def place_orders() -> None:
        with transaction.atomic(using=alias):
            broker.publish_sync(1, "orders")
            async_to_sync(broker.publish)(2, "orders", using=alias)
            with suppress(Abort), transaction.atomic(using=alias):
                broker.publish_sync(3, "orders")
                raise Abort
            with transaction.atomic(using=alias):
                broker.publish_batch_sync(4, 5, queue="orders")
            handle.mock.assert_not_called()
        assert called_with(handle) == [1, 2, 4, 5]
        broker.publish_sync(6, "orders", standalone=True)
        assert called_with(handle) == [1, 2, 4, 5, 6]

    async with TestOutboxBroker(broker):
        await sync_to_async(place_orders)()
        await broker.publish(7, "orders")

        assert called_with(handle) == [1, 2, 4, 5, 6, 7]
    assert await sync_to_async(groups)(alias) == [f"handled {body}" for body in (1, 2, 4, 5, 6, 7)]
    assert await Row.objects.using(alias).acount() == 0


async def test_what_a_handler_raises_comes_out_of_the_block(alias: str) -> None:
    broker = OutboxBroker(alias)

    @broker.subscriber("orders")
    async def handle(body: int) -> None:
        raise Abort

    def place_order() -> None:
        with pytest.raises(Abort), transaction.atomic(using=alias):
            broker.publish_sync(1, "orders")
        with transaction.atomic(using=alias):
            pass

    async with TestOutboxBroker(broker):
        await sync_to_async(place_order)()


async def test_a_transactional_handler_takes_back_what_it_wrote(alias: str) -> None:
    broker = OutboxBroker(alias)

    @broker.publisher("mails")
    @broker.subscriber("orders", transactional=True)
    def handle(body: int) -> int:
        Group.objects.using(alias).create(name=str(body))
        broker.publish_sync(body, "mails")
        collect.mock.assert_not_called()
        if body < 0:
            raise Abort
        return body

    @broker.subscriber("mails")
    async def collect(body: int, message: OutboxMessage) -> None: ...

    async with TestOutboxBroker(broker):
        with pytest.raises(Abort):
            await broker.publish(-1, "orders", standalone=True)
        await asyncio.wait_for(broker.publish(1, "orders", standalone=True), 5)

        assert called_with(collect) == [1, 1]
    assert await sync_to_async(groups)(alias) == ["1"]


async def test_what_is_no_alias_is_refused(alias: str) -> None:
    broker = OutboxBroker(alias)
    async with TestOutboxBroker(broker):
        with pytest.raises(WrongType):
            await broker.publish(1, "orders", using=object())  # type: ignore[arg-type]
        with pytest.raises(WrongDatabase):
            await broker.publish(1, "orders", using="nowhere")


async def test_a_running_worker_goes_on_beside_a_rehearsal(alias: str) -> None:
    broker = OutboxBroker(alias, concurrency=1)
    mailed: list[int] = []

    @broker.publisher("mails")
    @broker.subscriber("orders", transactional=True)
    def handle(body: int) -> int:
        broker.publish_sync(body, "mails")
        return body

    @broker.subscriber("mails")
    def mail(body: int) -> None:
        mailed.append(body)

    broker.serve(exclude=["mails"])
    async with consuming(broker):
        await asyncio.gather(*(broker.publish(body, "orders", standalone=True) for body in range(5)))
        async with TestOutboxBroker(broker):
            await broker.publish(100, "orders", standalone=True)
            assert mailed == [100, 100]
        await broker.drained()

    left = [row.body async for row in Row.objects.using(alias).order_by("id")]
    assert sorted(left) == sorted([*range(5), *range(5)])
    assert mailed == [100, 100]
