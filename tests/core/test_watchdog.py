"""A blocked loop is seen, told, and ended; one that only looks blocked is not."""

import asyncio
import logging
import sys
import threading
import time
from collections.abc import AsyncIterator
from types import SimpleNamespace

import pytest

from outbox_core.envelope import compose
from outbox_core.errors import OptionError, WrongType
from outbox_core.events import Event, LoopBlocked, LoopFreed
from outbox_core.memory import MemoryStore
from outbox_core.message import Delivery
from outbox_core.outcome import Ack, Release
from outbox_core.store import KeyWant
from outbox_core.watchdog import is_debugged
from outbox_core.worker import Worker
from tests.contract.harness import claim, consumer, until


@pytest.fixture
async def events() -> list[Event]:
    return []


@pytest.fixture
async def worker(events: list[Event], monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Worker]:
    monkeypatch.setattr("outbox_core.watchdog.LOOK", 0.05)
    monkeypatch.setattr("outbox_core.watchdog.BLOCKED_AFTER", 0.3)
    worker = Worker(MemoryStore(), name="w1", observers=[events.append])
    await worker.start()
    yield worker
    await worker.stop(timeout=0.1)


async def test_a_blocked_loop_is_told_with_its_stack_and_its_messages(
    worker: Worker, events: list[Event], caplog: pytest.LogCaptureFixture
) -> None:
    blocked_meanwhile: list[bool] = []
    seen_by: list[str] = []
    worker.watch(lambda _: seen_by.append(threading.current_thread().name))

    async def compute_for_ever(delivery: Delivery) -> None:
        time.sleep(0.8)  # noqa: ASYNC251  what a careless handler does
        blocked_meanwhile.append(worker._watchdog.blocked)

    message = compose("the secret body", "orders")
    worker.add(consumer(compute_for_ever))
    await worker.store.insert([message], None)
    await until(lambda: any(isinstance(event, LoopFreed) for event in events))

    (record,) = [record for record in caplog.records if record.levelno == logging.ERROR]
    text = record.getMessage()
    assert "in compute_for_ever" in text
    assert f"message 1 ({message.message_id}) in 'orders'" in text
    assert "secret" not in text
    assert blocked_meanwhile == [True]
    (blocked,) = [event for event in events if isinstance(event, LoopBlocked)]
    assert [delivery.id for delivery in blocked.running] == [1]
    assert 0.2 < blocked.seconds < 0.8
    assert "outbox-watchdog" in seen_by
    assert await worker.ping()


async def test_a_worker_is_unhealthy_while_its_loop_is_blocked(worker: Worker) -> None:
    worker._watchdog._reported = True

    assert not await worker.ping()


async def test_a_loop_that_is_busy_is_not_blocked(worker: Worker, events: list[Event]) -> None:
    until_then = time.monotonic() + 0.8
    while time.monotonic() < until_then:
        time.sleep(0.01)  # noqa: ASYNC251  work in small pieces
        await asyncio.sleep(0)

    assert not any(isinstance(event, LoopBlocked) for event in events)


async def test_a_loop_that_does_not_run_is_not_blocked(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("outbox_core.watchdog.LOOK", 0.05)
    monkeypatch.setattr("outbox_core.watchdog.BLOCKED_AFTER", 0.3)
    worker = Worker(MemoryStore(), stuck_timeout=1.0)

    def in_pieces() -> None:
        with asyncio.Runner() as runner:
            runner.run(worker.start())
            time.sleep(1.5)  # as between two cells of a notebook
            runner.run(worker.stop(timeout=0))

    await asyncio.to_thread(in_pieces)

    assert caplog.messages == []


async def test_time_in_which_the_process_stood_still_does_not_count(worker: Worker) -> None:
    watchdog = worker._watchdog
    watchdog._answered = False
    watchdog._post = lambda *_: None

    await watchdog._look(0.1)  # whatever the clock says

    assert watchdog._blocked_for < 0.3


async def test_a_breakpoint_is_not_a_blocked_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    namespace = {"__name__": "bdb", "sys": sys}
    exec("def stopped(): return sys._getframe()", namespace)

    assert is_debugged(namespace["stopped"]())  # type: ignore[operator]  # it is the function
    assert not is_debugged(sys._getframe())
    monkeypatch.setitem(sys.modules, "pydevd", SimpleNamespace())  # type: ignore[misc]  # an IDE's debugger
    assert is_debugged(sys._getframe())


async def test_before_the_end_outcomes_are_written_and_what_has_not_begun_is_given_back(worker: Worker) -> None:
    await worker.store.insert([compose(body, "orders") for body in ("done", "stuck", "waiting")], None)
    link = await worker.store.connect()
    done, stuck, waiting = await claim(link)
    worker._settler.hold([done, stuck, waiting], lease=10.0, since=time.monotonic())
    worker._settler._outcomes[done] = Ack()

    assert [(one.delivery.id, one.outcome) for one in worker._settler.parting([stuck])] == [
        (done.id, Ack()),
        (waiting.id, Release()),
    ]


async def test_before_the_end_what_waits_behind_the_stuck_one_in_its_key_is_kept(worker: Worker) -> None:
    await worker.store.insert([compose(body, "orders", key="a") for body in ("stuck", "behind")], None)
    await worker.store.insert([compose("other", "orders", key="b")], None)
    link = await worker.store.connect()
    stuck, behind, other = (await link.claim_keyed(KeyWant("orders", limit=10, run=10), lease=10.0)).deliveries
    worker._settler.hold([stuck, behind, other], lease=10.0, since=time.monotonic())

    assert [one.delivery.id for one in worker._settler.parting([stuck])] == [other.id]


@pytest.mark.parametrize(
    ("value", "error"), [(0, OptionError), (0.5, OptionError), (float("inf"), OptionError), ("30", WrongType)]
)
async def test_a_limit_that_cannot_be_meant_is_refused(value: object, error: type[Exception]) -> None:
    with pytest.raises(error, match="stuck_timeout must be"):
        Worker(MemoryStore(), stuck_timeout=value)  # type: ignore[arg-type]  # on purpose
