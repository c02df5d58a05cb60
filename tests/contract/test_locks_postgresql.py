"""Rows that an open transaction has locked, on PostgreSQL: nobody waits for them."""

import asyncio

from outbox_core.envelope import compose
from outbox_core.outcome import Ack, DeadLetter, Retry
from outbox_core.store import Settlement
from tests.contract.harness import Outbox, bodies, claim, settle


async def test_a_claim_does_not_wait_for_a_row_that_somebody_changes(postgres_outbox: Outbox) -> None:
    link = await postgres_outbox.link()
    await postgres_outbox.publish(compose("locked", "orders", timer_id="t"), compose("free", "orders"))
    async with postgres_outbox.transaction() as session:
        await postgres_outbox.store.cancel_timer("orders", "t", session)

        async with asyncio.timeout(2):
            assert bodies(await claim(link)) == ["free"]


async def test_a_claim_fills_its_limit_past_a_row_that_somebody_changes(postgres_outbox: Outbox) -> None:
    link = await postgres_outbox.link()
    await postgres_outbox.publish(
        compose("locked", "orders", timer_id="t"), compose("free 1", "orders"), compose("free 2", "orders")
    )
    async with postgres_outbox.transaction() as session:
        await postgres_outbox.store.cancel_timer("orders", "t", session)

        assert bodies(await claim(link, limit=2)) == ["free 1", "free 2"]


async def test_an_extension_does_not_wait_for_a_row_that_somebody_changes(postgres_outbox: Outbox) -> None:
    link = await postgres_outbox.link()
    await postgres_outbox.publish(compose("locked", "orders"), compose("free", "orders"))
    locked, free = await claim(link, lease=10)
    async with postgres_outbox.transaction() as session:
        await postgres_outbox.store.complete([locked], session)

        async with asyncio.timeout(2):
            assert await link.extend([locked, free], 10) == {free.id}
            assert await link.ours([locked, free]) == {locked.id, free.id}

    assert await link.ours([locked, free]) == {free.id}


async def test_extensions_and_settlements_of_the_same_rows_never_wait_for_each_other_in_a_circle(
    postgres_outbox: Outbox,
) -> None:
    settling, extending = await postgres_outbox.link(), await postgres_outbox.link()
    await postgres_outbox.publish(*(compose(str(number), "orders") for number in range(300)))
    held = await claim(settling, limit=300)

    async def extend() -> None:
        for _ in range(30):
            await extending.extend(held, 30)

    async def retry() -> None:
        for number in range(30):
            batch = held if number % 2 else held[::-1]
            await settling.settle([Settlement(delivery, Retry(0.0)) for delivery in batch[:3]], worker="w1")
            await settling.settle([Settlement(delivery, Ack()) for delivery in batch[number * 4 :][:4]], worker="w1")

    await asyncio.gather(extend(), retry())


async def test_two_redrives_at_once_share_the_dead_letters(postgres_outbox: Outbox) -> None:
    link = await postgres_outbox.link()
    await postgres_outbox.publish(*(compose(str(number), "orders") for number in range(4)))
    for delivery in await claim(link):
        await settle(link, delivery, DeadLetter("rejected"))

    async with postgres_outbox.transaction() as session:
        first = await postgres_outbox.redrive(limit=1, session=session)
        async with asyncio.timeout(2):
            second = await postgres_outbox.redrive()

    assert (first, second) == (1, 3)
    assert len(await postgres_outbox.pending()) == 4
