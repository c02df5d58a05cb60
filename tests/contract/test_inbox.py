"""Receiving messages from elsewhere, each once."""

import asyncio
from contextlib import suppress
from datetime import timedelta

import pytest

from outbox_core.envelope import compose
from outbox_core.errors import MissingTable, SchemaMismatch
from outbox_core.sql import SqlStore, Statement
from tests.contract.harness import Outbox, SqlOutbox, bodies


class Abort(Exception):
    """What makes a test's transaction roll back."""


def store_of(outbox: Outbox) -> SqlStore:
    assert isinstance(outbox.store, SqlStore)
    return outbox.store


async def received(outbox: Outbox, message_id: str, consumer: str = "billing") -> bool:
    """Receive in a transaction that commits."""
    async with outbox.transaction() as session:
        return await store_of(outbox).receive(message_id, consumer, session)


async def received_in_vain(outbox: Outbox, message_id: str, consumer: str = "billing") -> None:
    """Receive in a transaction that fails."""
    with suppress(Abort):
        async with outbox.transaction() as session:
            assert await store_of(outbox).receive(message_id, consumer, session)
            raise Abort


async def test_a_message_is_received_once(receiving_outbox: SqlOutbox) -> None:
    assert [await received(receiving_outbox, "m1") for _ in range(3)] == [True, False, False]


async def test_messages_are_told_apart_by_their_ids(receiving_outbox: SqlOutbox) -> None:
    assert [await received(receiving_outbox, message_id) for message_id in ("m1", "M1", "m1 ")] == [True, True, True]


async def test_two_consumers_each_receive_a_message_once(receiving_outbox: SqlOutbox) -> None:
    assert await received(receiving_outbox, "m1", "billing")
    assert await received(receiving_outbox, "m1", "shipping")
    assert not await received(receiving_outbox, "m1", "billing")


async def test_a_message_whose_transaction_failed_is_received_again(receiving_outbox: SqlOutbox) -> None:
    await received_in_vain(receiving_outbox, "m1")

    assert await received(receiving_outbox, "m1")


async def test_a_message_is_received_once_in_one_transaction_too(receiving_outbox: SqlOutbox) -> None:
    async with receiving_outbox.transaction() as session:
        answers = [await store_of(receiving_outbox).receive("m1", "billing", session) for _ in range(2)]

    assert answers == [True, False]


async def test_a_transaction_goes_on_after_a_duplicate(receiving_outbox: SqlOutbox) -> None:
    await received(receiving_outbox, "m1")

    async with receiving_outbox.transaction() as session:
        assert not await store_of(receiving_outbox).receive("m1", "billing", session)
        await receiving_outbox.store.insert([compose("seen before", "orders")], session)

    assert bodies(await receiving_outbox.pending()) == ["seen before"]


async def test_what_is_received_and_published_is_committed_together(receiving_outbox: SqlOutbox) -> None:
    with suppress(Abort):
        async with receiving_outbox.transaction() as session:
            await store_of(receiving_outbox).receive("m1", "billing", session)
            await receiving_outbox.store.insert([compose("paid", "orders")], session)
            raise Abort

    assert await receiving_outbox.pending() == []
    assert await received(receiving_outbox, "m1")


async def test_a_second_delivery_waits_for_the_first_and_is_skipped_once_that_has_committed(
    receiving_outbox: SqlOutbox,
) -> None:
    async with receiving_outbox.transaction() as session:
        assert await store_of(receiving_outbox).receive("m1", "billing", session)
        second = asyncio.create_task(received(receiving_outbox, "m1"))
        assert await waits(second)

    assert await second is False


async def test_a_second_delivery_waits_for_the_first_and_takes_over_if_that_fails(receiving_outbox: SqlOutbox) -> None:
    with suppress(Abort):
        async with receiving_outbox.transaction() as session:
            assert await store_of(receiving_outbox).receive("m1", "billing", session)
            second = asyncio.create_task(received(receiving_outbox, "m1"))
            assert await waits(second)
            raise Abort

    assert await second is True


async def test_of_many_deliveries_at_once_one_is_the_first(receiving_outbox: SqlOutbox) -> None:
    answers = await asyncio.gather(*(received(receiving_outbox, "m1") for _ in range(10)))

    assert sorted(answers) == [False] * 9 + [True]


async def test_other_messages_are_not_waited_for(postgres_receiving_outbox: SqlOutbox) -> None:
    async with postgres_receiving_outbox.transaction() as session:
        assert await store_of(postgres_receiving_outbox).receive("m1", "billing", session)

        async with asyncio.timeout(2):
            assert await received(postgres_receiving_outbox, "m2", "billing")
            assert await received(postgres_receiving_outbox, "m1", "shipping")


async def waits(task: "asyncio.Task[bool]") -> bool:
    """Whether it is not done in a while; it would be within some milliseconds."""
    return not (await asyncio.wait([task], timeout=0.3))[0]


# Purging


async def test_what_was_received_long_ago_is_forgotten(receiving_outbox: SqlOutbox) -> None:
    await received(receiving_outbox, "old")
    await receiving_outbox.age(3_600)
    await received(receiving_outbox, "new")

    assert await store_of(receiving_outbox).purge_inbox(timedelta(minutes=30), 100, None) == 1

    assert await received(receiving_outbox, "old")
    assert not await received(receiving_outbox, "new")


async def test_the_oldest_is_forgotten_first(receiving_outbox: SqlOutbox) -> None:
    for message_id in ("m1", "m2", "m3"):
        await received(receiving_outbox, message_id)
        await receiving_outbox.age(60)
    purge = store_of(receiving_outbox).purge_inbox

    assert [await purge(timedelta(0), 2, None) for _ in range(3)] == [2, 1, 0]


async def test_a_failed_purge_forgets_nothing(receiving_outbox: SqlOutbox) -> None:
    await received(receiving_outbox, "m1")
    await receiving_outbox.age(60)

    with suppress(Abort):
        async with receiving_outbox.transaction() as session:
            assert await store_of(receiving_outbox).purge_inbox(timedelta(0), 100, session) == 1
            raise Abort

    assert not await received(receiving_outbox, "m1")


# The table


async def test_the_inbox_fits_its_description(receiving_outbox: SqlOutbox) -> None:
    assert await receiving_outbox.store.differences() == {}


async def test_without_an_inbox_table_nothing_is_received(parking_outbox: Outbox) -> None:
    with pytest.raises(
        MissingTable, match=r"^receive needs the inbox table; make it with make_inbox_table\(metadata\)$"
    ):
        await received(parking_outbox, "m1")


@pytest.mark.parametrize("receiving_outbox", ["sqlite", "django-sqlite"], indirect=True)
async def test_a_missing_inbox_is_named_and_no_worker_needs_it(receiving_outbox: SqlOutbox) -> None:
    await store_of(receiving_outbox).run(lambda _: [Statement("DROP TABLE receiving_inbox", {})], None)

    with pytest.raises(SchemaMismatch, match=r"^receiving_inbox does not fit this version: no such table"):
        await received(receiving_outbox, "m1")

    ((table, (difference,)),) = (await receiving_outbox.store.differences()).items()
    assert (table, difference.missing_table, difference.needed) == ("receiving_inbox", True, False)
