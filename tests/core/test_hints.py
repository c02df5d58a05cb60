"""How many notifications reach the claimer."""

import asyncio

from outbox_core.hints import FORGIVEN, PAUSE, Hints


def orders(queue: str) -> bool:
    return queue == "orders"


async def test_a_hint_is_passed_on_at_once() -> None:
    told: list[str] = []
    Hints(told.append, serves=orders).heard("orders")

    assert told == ["orders"]


async def test_a_queue_that_is_not_served_is_none_of_our_business() -> None:
    told: list[str] = []
    hints = Hints(told.append, serves=orders)
    for _ in range(FORGIVEN + 1):
        hints.heard("mails")
    hints.heard("orders")

    assert told == ["orders"]


async def test_a_flood_that_comes_to_nothing_is_passed_on_now_and_then() -> None:
    told: list[str] = []
    hints = Hints(told.append, serves=orders)
    for _ in range(10_000):
        hints.heard("orders")

    assert len(told) == FORGIVEN
    await asyncio.sleep(1.5 * PAUSE)
    assert len(told) == FORGIVEN + 1


async def test_once_a_claim_has_found_something_hints_are_believed_again() -> None:
    told: list[str] = []
    hints = Hints(told.append, serves=orders)
    for _ in range(FORGIVEN):
        hints.heard("orders")
    hints.came_true()
    hints.heard("orders")

    assert len(told) == FORGIVEN + 1
