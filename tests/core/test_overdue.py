"""Handlers that run for very long are told of, with where they are, at ever longer intervals."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from time import perf_counter
from typing import Any

import pytest

from outbox_core.overdue import Overdue
from tests.core.deliveries import delivery


async def wait_for_ever(gate: asyncio.Event) -> None:
    await gate.wait()


async def ship(gate: asyncio.Event) -> None:
    await wait_for_ever(gate)


def compute(gate: threading.Event, began: threading.Event) -> None:
    began.set()
    gate.wait(30)


class Billing:
    async def __call__(self, gate: asyncio.Event) -> None:
        await gate.wait()


@asynccontextmanager
async def slot(handler: Callable[..., Any]) -> AsyncIterator[asyncio.Task[None]]:
    """A task that runs *handler*, below a frame that is not the handler's."""
    gate = asyncio.Event()

    async def run() -> None:
        await handler(gate)

    task = asyncio.create_task(run())
    await asyncio.sleep(0)
    yield task
    gate.set()
    await task


async def test_a_handler_that_waits_is_told_with_its_message_and_its_place(caplog: pytest.LogCaptureFixture) -> None:
    one = delivery(id=7)
    async with slot(ship) as task:
        Overdue([ship]).look({one: perf_counter() - 61}, [task], 60.0)

    (text,) = caplog.messages
    assert text.startswith(
        f"the handler 'ship' has not ended after 61 s; it keeps message 7 ({one.message_id}) in 'orders', and no "
        "other worker gets what it keeps; handler_timeout ends an async def handler"
    )
    assert "await wait_for_ever(gate)" in text
    assert "await gate.wait()" in text
    assert "in run" not in text


async def test_an_object_that_is_called_is_found_too(caplog: pytest.LogCaptureFixture) -> None:
    handler = Billing()
    async with slot(handler) as task:
        Overdue([handler]).look({delivery(): perf_counter() - 61}, [task], 60.0)

    assert caplog.messages[0].startswith("the handler 'Billing' has not ended")
    assert "in __call__\n    await gate.wait()" in caplog.messages[0]


async def test_a_function_in_a_thread_is_told_with_the_stack_of_its_thread(caplog: pytest.LogCaptureFixture) -> None:
    gate, began = threading.Event(), threading.Event()
    running = asyncio.create_task(asyncio.to_thread(compute, gate, began))
    await asyncio.to_thread(began.wait, 10)
    Overdue([compute]).look({delivery(): perf_counter() - 61}, [running], 60.0)
    gate.set()
    await running

    (text,) = caplog.messages
    assert "in compute\n    gate.wait(30)" in text
    assert "in _worker" not in text


async def test_a_stack_that_cannot_be_read_hides_nothing_else(caplog: pytest.LogCaptureFixture) -> None:
    class Foreign:
        @property
        def cr_frame(self) -> None:
            raise RuntimeError

        def get_coro(self) -> "Foreign":
            return self

    Overdue([ship]).look({delivery(): perf_counter() - 61}, [Foreign()], 60.0)  # type: ignore[list-item]  # on purpose

    (text,) = caplog.messages
    assert "it keeps message 1 (" in text
    assert text.endswith("; its stack cannot be shown (RuntimeError)")


def test_it_is_told_at_ever_longer_intervals_until_it_ends(caplog: pytest.LogCaptureFixture) -> None:
    overdue, one = Overdue([ship]), delivery()

    def told_after(seconds: float) -> int:
        caplog.clear()
        overdue.look({one: perf_counter() - seconds}, [], 30.0)
        return len(caplog.records)

    assert [told_after(seconds) for seconds in (29, 31, 32, 61, 63, 120, 127)] == [0, 1, 0, 0, 1, 0, 1]
    overdue.look({}, [], 30.0)
    assert told_after(31) == 1


def test_many_are_told_in_one_record(caplog: pytest.LogCaptureFixture) -> None:
    running = {delivery(id=number): perf_counter() - 31 for number in range(25)}

    Overdue([]).look(running, [], 30.0)

    (text,) = caplog.messages
    assert "message 0 (" in text
    assert "in 'orders' and 5 more, and no other" in text
