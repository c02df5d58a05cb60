"""Rows that an open transaction has locked, on PostgreSQL: nobody waits for them."""

import asyncio

from outbox_core.envelope import compose
from outbox_core.outcome import DeadLetter
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
