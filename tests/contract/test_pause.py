"""Pausing a queue: persisted, seen by every worker, and part of the caller's transaction."""

from contextlib import suppress

from tests.contract.harness import Outbox


class Abort(Exception):
    """What makes a test's transaction roll back."""


async def paused(outbox: Outbox) -> frozenset[str]:
    return (await (await outbox.link()).survey(["orders", "mails"])).paused


async def test_a_paused_queue_is_paused_for_every_worker(outbox: Outbox) -> None:
    await outbox.store.set_paused("orders", True, None)

    assert await paused(outbox) == {"orders"}
    assert await paused(outbox) == {"orders"}
    assert (await outbox.store.stats())["orders"].paused
    assert not (await outbox.store.stats())["mails"].paused


async def test_a_resumed_queue_goes_on(outbox: Outbox) -> None:
    await outbox.store.set_paused("orders", True, None)
    await outbox.store.set_paused("mails", True, None)

    await outbox.store.set_paused("orders", False, None)

    assert await paused(outbox) == {"mails"}
    assert not (await outbox.store.stats())["orders"].paused


async def test_repeating_changes_nothing(outbox: Outbox) -> None:
    await outbox.store.set_paused("orders", True, None)
    await outbox.store.set_paused("orders", True, None)
    assert await paused(outbox) == {"orders"}

    await outbox.store.set_paused("orders", False, None)
    await outbox.store.set_paused("orders", False, None)
    assert await paused(outbox) == frozenset()


async def test_a_queue_that_was_never_paused_can_be_resumed(outbox: Outbox) -> None:
    await outbox.store.set_paused("orders", False, None)

    assert await paused(outbox) == frozenset()


async def test_a_pause_is_part_of_its_transaction(outbox: Outbox) -> None:
    with suppress(Abort):
        async with outbox.transaction() as session:
            await outbox.store.set_paused("orders", True, session)
            raise Abort
    assert await paused(outbox) == frozenset()

    async with outbox.transaction() as session:
        await outbox.store.set_paused("orders", True, session)
    assert await paused(outbox) == {"orders"}
