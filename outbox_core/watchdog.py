"""Who sees that the event loop is blocked, since nothing on it can: it runs in the heartbeat's thread.

    blocked 5 s ------> one record: the stack, and which messages are being handled
    blocked for the limit, with messages in hand ------> what has not begun is given back, the process ends with 70

A loop that is blocked claims nothing and settles nothing, and the heartbeat would keep its messages for it for ever. So it
has to end, loudly; a supervisor starts another process, and the message that did it is a suspect by then.

Only time that this thread has seen counts, so a process that was stopped (SIGSTOP, a paused machine) was not blocked. A
handler that does not let go of the interpreter's lock, in a regular expression say, stops this thread too. Against that the
kernel is told to end the process after so much more CPU time, and is told again and again as long as this thread runs.
"""

import asyncio
import faulthandler
import logging
import os
import signal
import sys
import threading
import traceback
from collections.abc import Awaitable, Callable, Collection
from contextlib import suppress
from time import monotonic
from types import FrameType
from typing import Any

from outbox_core.events import LoopBlocked, LoopFreed, Observer
from outbox_core.message import Delivery, named
from outbox_core.waiting import within

logger = logging.getLogger("outbox")

LOOK = 0.5  # seconds between questions to the loop
BLOCKED_AFTER = 5.0  # seconds without an answer until it is reported
PARTING_PATIENCE = 2.0  # seconds for what is written at the end
LOG_PATIENCE = 2.0  # seconds for a record: the blocked thread may hold the lock of a log handler
STUCK_EXIT_CODE = 70  # EX_SOFTWARE of sysexits.h


class Watchdog:
    """Watches the loop on which it was made, from another thread's."""

    def __init__(
        self,
        *,
        limit: float | None,
        running: Callable[[], list[Delivery]],
        in_hand: Callable[[], bool],
        part: Callable[[], Awaitable[None]],
        post: Callable[..., None],
        observe: Observer,
    ) -> None:
        """*limit*: seconds; None: it only reports. *running*: whose handler has begun. *in_hand*: whether anything is held.

        *part*: called before the process ends, to give back what has not begun. *post*: calls a function on the loop.
        *observe* is called in this thread while the loop is blocked.
        """
        self._limit = limit
        self._running = running
        self._in_hand = in_hand
        self._part = part
        self._post = post
        self._observe = observe
        self._loop = asyncio.get_running_loop()
        self._thread = threading.get_ident()
        self._blocked_for = 0.0
        self._reported = False
        self._answered = True
        self._last_resort = LastResort(limit)

    @property
    def blocked(self) -> bool:
        """Whether it has been reported and still is."""
        return self._reported

    async def run(self) -> None:
        """Watch until cancelled."""
        self._last_resort.arm()
        try:
            while True:
                looked = monotonic()
                await asyncio.sleep(LOOK)
                await self._look(min(monotonic() - looked, 2 * LOOK))
        finally:
            self._last_resort.disarm()

    async def _look(self, seconds: float) -> None:
        if self._answered or not self._loop.is_running():
            if self._reported:
                self._post(self._freed, self._blocked_for)
            self._blocked_for, self._reported = 0.0, False
            self._ask()
        elif not is_debugged(self._stack()):
            self._blocked_for += seconds
        self._last_resort.arm()
        if self._limit is not None and self._blocked_for >= self._limit and self._in_hand():
            await self._end_process()
        elif self._blocked_for >= BLOCKED_AFTER and not self._reported:
            self._reported = True
            await self._report()

    def _ask(self) -> None:
        self._answered = False
        self._post(self._answer)

    def _answer(self) -> None:
        self._answered = True

    def _freed(self, seconds: float) -> None:
        logger.warning("the event loop goes on after it was blocked for %.1f s", seconds)
        self._observe(LoopFreed(seconds))

    async def _report(self) -> None:
        running = self._running()
        await _in_time(
            lambda: logger.error(
                "the event loop has been blocked for %.1f s; %s; its stack:\n%s",
                self._blocked_for,
                _handling(running),
                self._stack_as_text(),
            )
        )
        await _in_time(lambda: self._observe(LoopBlocked(self._blocked_for, tuple(running))))

    async def _end_process(self) -> None:
        text = (
            f"the event loop has been blocked for {self._blocked_for:.1f} s, which is the limit; ending the process with "
            f"exit code {STUCK_EXIT_CODE}; {_handling(self._running())}, to be delivered again; the loop's stack:\n"
            f"{self._stack_as_text()}"
        )
        with suppress(Exception):
            await within(PARTING_PATIENCE, self._part())
        if not await _in_time(lambda: logger.critical("%s", text)):
            os.write(2, f"{text}\n".encode(errors="backslashreplace"))
        await _in_time(logging.shutdown)
        os._exit(STUCK_EXIT_CODE)

    def _stack(self) -> FrameType | None:
        return sys._current_frames().get(self._thread)

    def _stack_as_text(self) -> str:
        return "".join(traceback.format_stack(self._stack())).rstrip()


class LastResort:
    """The kernel ends the process if it uses so much CPU time before it is told again.

    CPU time, not time, so that a process which was stopped meanwhile lives on; it is of all threads together. The signal,
    SIGVTALRM, is used by hardly anybody; whoever handles it or has set its timer keeps it.
    """

    def __init__(self, limit: float | None) -> None:
        self._seconds = None if limit is None else limit * max(2, os.cpu_count() or 1)

    def arm(self) -> None:
        if self._seconds is not None:
            _timer.set(self, self._seconds)

    def disarm(self) -> None:
        _timer.give_up(self)


class ProcessTimer:
    """The timer and the signal, which the process has once, for all of its watchdogs: the shortest limit counts.

    A handler that keeps the interpreter's lock stops all of their threads, so it does not matter which of them goes on.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._limits: dict[LastResort, float] = {}  # of those who want it, in seconds

    def set(self, owner: LastResort, seconds: float) -> None:
        """Begin anew; does nothing if the timer or the signal is somebody else's."""
        with self._lock:
            if not self._limits:
                if not _is_ours_to_use():
                    return
                with suppress(Exception):  # there may be no standard error
                    faulthandler.register(signal.SIGVTALRM, file=2, all_threads=True, chain=True)
            self._limits[owner] = seconds
            signal.setitimer(signal.ITIMER_VIRTUAL, min(self._limits.values()))

    def give_up(self, owner: LastResort) -> None:
        """*owner* wants it no more; the others still do."""
        with self._lock:
            if self._limits.pop(owner, None) is None:
                return
            signal.setitimer(signal.ITIMER_VIRTUAL, min(self._limits.values(), default=0))
            if not self._limits:
                faulthandler.unregister(signal.SIGVTALRM)


_timer = ProcessTimer()


def _is_ours_to_use() -> bool:
    return (
        hasattr(signal, "SIGVTALRM")
        and signal.getsignal(signal.SIGVTALRM) is signal.SIG_DFL
        and signal.getitimer(signal.ITIMER_VIRTUAL)[0] == 0
    )


def is_debugged(stack: FrameType | None) -> bool:
    """Whether somebody has stopped the loop's thread to look at it: `bdb` in its stack (pdb and its kin), or an IDE.

    An IDE's debugger leaves no frame there, but its modules are loaded.
    """
    if "pydevd" in sys.modules:
        return True
    while stack is not None:
        if stack.f_globals.get("__name__") in ("bdb", "pdb"):
            return True
        stack = stack.f_back
    return False


def _handling(deliveries: Collection[Delivery]) -> str:
    return f"handlers are running for {named(deliveries)}" if deliveries else "no handler is running"


async def _in_time(call: Callable[[], Any]) -> bool:
    """Call it in a thread that may be left behind; whether it came to its end."""
    thread = threading.Thread(target=call, name="outbox-watchdog", daemon=True)
    thread.start()
    until = monotonic() + LOG_PATIENCE
    while thread.is_alive() and monotonic() < until:  # noqa: ASYNC110  it may be stuck, and tell nobody
        await asyncio.sleep(0.01)
    return not thread.is_alive()
