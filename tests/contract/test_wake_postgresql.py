"""Wake-ups on PostgreSQL: who notifies, and what an arming worker is told, goes by advisory locks."""

import asyncio
from collections.abc import AsyncIterator

import pytest
from sqlalchemy import URL

from outbox_core.envelope import compose
from tests.contract.conftest import POSTGRESQL, opened
from tests.contract.harness import Outbox, bodies, claim, until
from tests.contract.test_wake import Ear
from tests.databases import execute


@pytest.fixture(params=POSTGRESQL)
async def silent_outbox(request: pytest.FixtureRequest) -> AsyncIterator[Outbox]:
    """A store that was told not to notify."""
    async with opened(request, notify=False) as outbox:
        yield outbox


async def test_without_an_armed_worker_nobody_is_notified(postgres_outbox: Outbox) -> None:
    async with Ear(postgres_outbox) as ear:
        await postgres_outbox.publish(compose("a", "orders"))

        assert await ear.everything_so_far() == []


async def test_a_queue_that_nobody_armed_is_not_notified(postgres_outbox: Outbox) -> None:
    link = await postgres_outbox.link()
    async with Ear(postgres_outbox) as ear:
        await link.arm(["orders"])

        await postgres_outbox.publish(compose("a", "mails"))

        assert await ear.everything_so_far() == []


async def test_a_disarmed_worker_is_not_notified(postgres_outbox: Outbox) -> None:
    link = await postgres_outbox.link()
    async with Ear(postgres_outbox) as ear:
        await link.arm(["orders"])
        await link.disarm()

        await postgres_outbox.publish(compose("a", "orders"))

        assert await ear.everything_so_far() == []


async def test_arming_other_queues_disarms_the_first(postgres_outbox: Outbox) -> None:
    link = await postgres_outbox.link()
    async with Ear(postgres_outbox) as ear:
        await link.arm(["orders"])
        await link.arm(["mails"])

        await postgres_outbox.publish(compose("a", "orders"))
        await postgres_outbox.publish(compose("b", "mails"))

        assert await ear.everything_so_far() == ["mails"]


async def test_a_transaction_notifies_once_for_many_messages_of_a_queue(postgres_outbox: Outbox) -> None:
    link = await postgres_outbox.link()
    async with Ear(postgres_outbox) as ear:
        await link.arm(["orders", "mails"])
        async with postgres_outbox.transaction() as session:
            for number in range(3):
                await postgres_outbox.store.insert([compose(str(number), "orders")], session)
            await postgres_outbox.store.insert([compose(str(number), "mails") for number in range(5)], session)

        assert sorted(await ear.everything_so_far()) == ["mails", "orders"]


async def test_arming_while_a_silent_transaction_is_open_tells_of_it(postgres_outbox: Outbox) -> None:
    link = await postgres_outbox.link()
    async with postgres_outbox.transaction() as session:
        await postgres_outbox.store.insert([compose("a", "orders")], session)

        assert await link.arm(["mails", "orders"]) == "publishing"
        assert await link.arm(["mails"]) == "armed"

    assert await link.arm(["orders"]) == "armed"
    assert bodies(await claim(link)) == ["a"]


async def test_after_publishing_was_told_nothing_is_armed(postgres_outbox: Outbox) -> None:
    one, two = await postgres_outbox.link(), await postgres_outbox.link()
    async with postgres_outbox.transaction() as session:
        await postgres_outbox.store.insert([compose("a", "orders")], session)
        await one.arm(["orders", "mails"])

        assert await two.arm(["mails"]) == "armed"


async def test_a_rolled_back_silent_transaction_is_over(postgres_outbox: Outbox) -> None:
    link = await postgres_outbox.link()
    with pytest.raises(ZeroDivisionError):
        await rolled_back(postgres_outbox)

    assert await link.arm(["orders"]) == "armed"


async def rolled_back(outbox: Outbox) -> None:
    async with outbox.transaction() as session:
        await outbox.store.insert([compose("a", "orders")], session)
        raise ZeroDivisionError


async def test_a_transaction_that_will_notify_does_not_keep_a_second_worker_from_arming(
    postgres_outbox: Outbox,
) -> None:
    one, two = await postgres_outbox.link(), await postgres_outbox.link()
    await one.arm(["orders"])
    async with postgres_outbox.transaction() as session:
        await postgres_outbox.store.insert([compose("a", "orders")], session)

        assert await two.arm(["orders"]) == "proxied"


async def test_a_second_worker_is_proxied_while_the_first_is_armed(postgres_outbox: Outbox) -> None:
    one, two = await postgres_outbox.link(), await postgres_outbox.link()
    assert await one.arm(["orders"]) == "armed"
    assert await two.arm(["orders"]) == "proxied"
    assert await two.arm(["orders", "mails"]) == "proxied"

    await one.disarm()

    assert await two.arm(["orders"]) == "armed"


async def test_a_closed_link_is_disarmed(postgres_outbox: Outbox) -> None:
    one, two = await postgres_outbox.link(), await postgres_outbox.link()
    await one.arm(["orders"])

    await one.close()

    await until(lambda: armed(two))


async def armed(link: object) -> bool:
    return await link.arm(["orders"]) == "armed"  # type: ignore[attr-defined]  # a link


async def test_a_store_that_does_not_notify_is_not_heard(silent_outbox: Outbox) -> None:
    link = await silent_outbox.link()
    async with Ear(silent_outbox) as ear:
        await link.arm(["orders"])

        await silent_outbox.publish(compose("a", "orders"))

        assert await ear.everything_so_far() == []


async def test_a_listener_whose_connection_dies_is_closed(postgres_outbox: Outbox, shared_database: URL) -> None:
    async with Ear(postgres_outbox) as ear:
        await asyncio.to_thread(
            execute,
            shared_database,
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE datname = current_database() AND query LIKE 'LISTEN%%'",
        )

        async with asyncio.timeout(5):
            await ear.listener.closed()
