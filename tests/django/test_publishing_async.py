"""Publishing from asynchronous code: in the thread whose connection has the transaction."""

from contextlib import suppress
from typing import Any

import pytest
from asgiref.sync import async_to_sync, sync_to_async
from django.contrib.auth.models import Group
from django.db import transaction
from django.test import override_settings
from faststream import BaseMiddleware, PublishCommand

from outbox_core.errors import CannotEncode, InvalidMessage, OptionError
from outbox_django import OutboxBroker, apublish, apublish_batch, publish
from outbox_django.errors import NotInTransaction
from outbox_django.models import OutboxMessage


async def bodies(alias: str) -> list[Any]:
    return [message.body async for message in OutboxMessage.objects.using(alias).order_by("id")]


class Stamp(BaseMiddleware):
    """Waits, as a middleware of asynchronous code may."""

    async def publish_scope(self, call_next: Any, cmd: PublishCommand) -> Any:
        assert [group async for group in Group.objects.all()] == []
        cmd.headers = {**(cmd.headers or {}), "stamp": "yes"}
        return await call_next(cmd)


async def test_standalone_messages(alias: str) -> None:
    row_id = await apublish({"n": 1}, "q", using=alias, standalone=True, key="k")
    row_ids = await apublish_batch(2, 3, queue="q", using=alias, standalone=True)

    assert await bodies(alias) == [{"n": 1}, 2, 3]
    assert [message.id async for message in OutboxMessage.objects.using(alias).order_by("id")] == [row_id, *row_ids]


async def test_without_a_transaction_it_is_refused(alias: str) -> None:
    with pytest.raises(NotInTransaction):
        await apublish("loose", "q", using=alias)
    with pytest.raises(NotInTransaction):
        await apublish_batch("loose", queue="q", using=alias)

    assert await bodies(alias) == []


async def test_a_unit_of_work_is_one_synchronous_function(alias: str) -> None:
    def unit(name: str, *, fails: bool) -> None:
        with transaction.atomic(using=alias):
            Group.objects.using(alias).create(name=name)
            publish(name, "q", using=alias)
            if fails:
                raise ZeroDivisionError

    await sync_to_async(unit)("kept", fails=False)
    with pytest.raises(ZeroDivisionError):
        await sync_to_async(unit)("gone", fails=True)

    assert await bodies(alias) == ["kept"]
    assert [group.name async for group in Group.objects.using(alias)] == ["kept"]


async def test_asynchronous_publishes_under_a_synchronous_block_join_it(alias: str) -> None:
    broker = OutboxBroker(alias, middlewares=[Stamp])

    def unit(*, fails: bool) -> None:
        with transaction.atomic(using=alias):
            async_to_sync(apublish)("apublish", "q", using=alias)
            async_to_sync(broker.publish)("broker", "q")
            if fails:
                raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await sync_to_async(unit)(fails=True)
    assert await bodies(alias) == []
    await sync_to_async(unit)(fails=False)
    assert await bodies(alias) == ["apublish", "broker"]


def test_asynchronous_publishes_join_the_block_of_a_thread_without_a_loop(alias: str) -> None:
    broker = OutboxBroker(alias)

    with transaction.atomic(using=alias):
        async_to_sync(apublish)("apublish", "q", using=alias)
        async_to_sync(broker.publish)("broker", "q")
        transaction.set_rollback(True, using=alias)

    assert OutboxMessage.objects.using(alias).count() == 0


async def test_a_store_transaction_covers_asynchronous_publishes(alias: str) -> None:
    broker = OutboxBroker(alias)

    with suppress(ZeroDivisionError):
        async with broker.store.transaction():
            await apublish("gone", "q", using=alias)
            raise ZeroDivisionError
    async with broker.store.transaction():
        await Group.objects.using(alias).acreate(name="bakers")
        await apublish("apublish", "q", using=alias)
        await broker.publish("broker", "q")

    assert await bodies(alias) == ["apublish", "broker"]


async def test_the_brokers_middlewares_may_wait(alias: str) -> None:
    broker = OutboxBroker(alias, middlewares=[Stamp])

    await broker.publish("one", "q", standalone=True, headers={"a": "b"})
    await broker.publish_batch("two", "three", queue="q", standalone=True)
    with pytest.raises(NotInTransaction):
        await broker.publish("loose", "q")
    with pytest.raises(NotInTransaction):
        await broker.publish_batch("loose", queue="q")

    assert await bodies(alias) == ["one", "two", "three"]
    assert {message.headers["stamp"] async for message in OutboxMessage.objects.using(alias)} == {"yes"}


async def test_a_publisher_publishes(alias: str) -> None:
    publisher = OutboxBroker(alias).publisher("q", headers={"a": "b"}, priority=3)

    await publisher.publish("one", standalone=True)

    message = await OutboxMessage.objects.using(alias).aget()
    assert (message.body, message.queue, message.priority, message.headers["a"]) == ("one", "q", 3, "b")


@pytest.mark.parametrize(
    ("error", "arguments"),
    [(InvalidMessage, ("x", "")), (CannotEncode, (object(), "q"))],
)
async def test_bad_input_is_refused(
    django_databases: object, error: type[Exception], arguments: tuple[Any, str]
) -> None:
    with pytest.raises(error):
        await apublish(*arguments, standalone=True)
    with pytest.raises(error):
        await apublish_batch(arguments[0], queue=arguments[1], standalone=True)
    with pytest.raises(OptionError):
        await apublish_batch("x", queue="q", timer_id="t", standalone=True)

    assert await apublish_batch(queue="q") == []
    assert await bodies("default") == []


async def test_a_warning_of_asynchronous_code_is_given_once_a_publish(django_databases: object) -> None:
    with (
        override_settings(OUTBOX={"REQUIRE_TRANSACTION": "warn"}),
        pytest.warns(RuntimeWarning, match="'q' is outside a transaction") as caught,
    ):
        await apublish("loose", "q")

    assert len(caught) == 1
    assert await bodies("default") == ["loose"]
