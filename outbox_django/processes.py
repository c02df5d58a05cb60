"""Several worker processes under one parent, for more than one core.

The parent handles nothing. It passes signals on, replaces a child that was killed, and ends when one cannot start. Children
have a session of their own, so that Ctrl-C reaches them through the parent only and once; they drain if it is gone.
"""

import logging
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from types import FrameType
from typing import Any

from outbox_core.watchdog import STUCK_EXIT_CODE

logger = logging.getLogger("outbox")

RESTART_PAUSE = 1.0  # seconds before a child that was killed is replaced


class Supervisor:
    """Starts *count* processes that run the command with *options*."""

    def __init__(self, count: int, options: Mapping[str, Any]) -> None:
        self._count = count
        self._options = dict(options)
        self._children: dict[int, BaseProcess] = {}  # by sentinel
        self._passed_on: int | None = None  # the signal that has been passed on last
        self._exit_code = 0

    def run(self) -> int:
        """Return the exit code when all children have ended: the worst of theirs."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._pass_on)
        for _ in range(self._count):
            if not self._stopping:
                self._start()
        while self._children:
            ended = wait(list(self._children))
            for sentinel in [sentinel for sentinel in self._children if sentinel in ended]:
                self._ended(self._children.pop(sentinel))
        return self._exit_code

    @property
    def _stopping(self) -> bool:
        return self._passed_on is not None

    def _start(self) -> None:
        child = multiprocessing.get_context("spawn").Process(target=run_child, args=(self._options,))
        child.start()
        self._children[child.sentinel] = child
        if self._passed_on is not None:  # meanwhile, when this child could not be told
            _send(self._passed_on, child)

    def _ended(self, child: BaseProcess) -> None:
        child.join()
        code = child.exitcode or 0
        if (code < 0 or code == STUCK_EXIT_CODE) and not self._stopping:
            what = f"was killed by signal {-code}" if code < 0 else f"was stuck, and ended with exit code {code}"
            logger.warning("worker process %s %s; starting another", child.pid, what)
            time.sleep(RESTART_PAUSE)
            if not self._stopping:
                self._start()
            return
        if self._passed_on is not None and code == -self._passed_on:
            return  # it was not ready to take a signal, so it had nothing in hand
        self._exit_code = max(self._exit_code, code if code >= 0 else 128 - code)
        if code > 0 and not self._stopping:
            logger.error("worker process %s ended with exit code %d; stopping the others", child.pid, code)
            self._stop_all(signal.SIGTERM)

    def _pass_on(self, number: int, frame: FrameType | None) -> None:
        self._stop_all(number)

    def _stop_all(self, number: int) -> None:
        self._passed_on = number
        for child in list(self._children.values()):
            _send(number, child)


def _send(number: int, child: BaseProcess) -> None:
    if child.pid is not None:
        with suppress(ProcessLookupError):
            os.kill(child.pid, number)


def run_child(options: dict[str, Any]) -> None:
    """One worker process; ends with its exit code."""
    os.setsid()
    import django
    from django.core.management import CommandError, call_command

    django.setup()
    try:
        call_command("outbox_worker", **{**options, "processes": 1, "skip_checks": True})
    except CommandError as error:
        if options["traceback"]:
            raise
        sys.stderr.write(f"CommandError: {error}\n")
        sys.exit(error.returncode)
