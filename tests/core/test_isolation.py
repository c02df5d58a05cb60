"""Suspects run alone, and hold nobody up for longer than the patience."""

import asyncio

import pytest

from outbox_core.isolation import Isolation


async def enters(isolation: Isolation) -> None:
    await isolation.opened()
    isolation.enter()
    isolation.leave()


async def test_a_suspect_that_outlasts_the_patience_holds_up_neither_others_nor_the_next_suspect() -> None:
    isolation = Isolation(patience=0.02)
    async with asyncio.timeout(1), isolation.alone() as trusted:
        with trusted():
            await enters(isolation)
        async with isolation.alone():
            pass


async def test_the_patience_begins_when_the_handler_does() -> None:
    isolation = Isolation(patience=0.02)
    async with isolation.alone() as trusted:
        await asyncio.sleep(0.03)  # until its start is in the database
        assert isolation.closed
        with trusted():
            assert isolation.closed
            await asyncio.sleep(0.03)
            assert not isolation.closed


async def test_a_suspect_does_not_wait_for_handlers_that_have_ended_beside_a_slow_one() -> None:
    isolation = Isolation(patience=0.02)
    async with isolation.alone() as trusted:
        with trusted():
            await asyncio.sleep(0.03)
        await enters(isolation)
    isolation._patience = 60.0

    async with asyncio.timeout(1), isolation.alone():
        pass


async def test_a_suspect_that_is_cancelled_while_it_waits_lets_the_others_go_on() -> None:
    isolation = Isolation(patience=60.0)
    await isolation.opened()
    isolation.enter()
    waiting = asyncio.create_task(isolation.alone().__aenter__())
    await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.wait([waiting])

    async with asyncio.timeout(1):
        await enters(isolation)


async def test_two_suspects_never_run_at_once() -> None:
    isolation = Isolation(patience=60.0)
    running = most = 0

    async def suspect() -> None:
        nonlocal running, most
        async with isolation.alone():
            running += 1
            most = max(most, running)
            await asyncio.sleep(0.001)
            running -= 1

    await asyncio.gather(*(suspect() for _ in range(5)))

    assert most == 1


@pytest.mark.parametrize("others", [1, 3])
async def test_a_suspect_waits_for_those_that_run(others: int) -> None:
    isolation = Isolation(patience=60.0)
    for _ in range(others):
        await isolation.opened()
        isolation.enter()
    alone = asyncio.create_task(isolation.alone().__aenter__())

    for _ in range(others):
        await asyncio.sleep(0.001)
        assert not alone.done()
        isolation.leave()

    async with asyncio.timeout(1):
        await alone
