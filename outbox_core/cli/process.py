"""One worker process: what `outbox work` and `manage.py outbox_worker` run.

    connect --> say what is served --> handle --> a signal, or nothing left --> drain --> exit code

The first SIGTERM or SIGINT drains: nothing more is claimed, what has not begun is given back, handlers may finish. The second
ends the process at once; the leases of what it held run out, and others deliver it.
"""

import asyncio
import gc
import logging
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from outbox_core.cli.exits import Exit
from outbox_core.errors import NoPermission
from outbox_core.events import Event, Handled, WorkerStopped
from outbox_core.options import check_stuck_timeout
from outbox_core.sql.refusals import GRANTS, driver_error, first_line, is_forbidden
from outbox_core.store import Store
from outbox_core.waiting import within

if TYPE_CHECKING:
    from outbox_core.faststream import OutboxBroker

logger = logging.getLogger("outbox")

HEALTH_INTERVAL = 2.0  # seconds between looks at the worker's health
PING_TIMEOUT = 5.0
DRAIN_MARGIN = 10.0  # seconds for the last outcomes and the end of connections


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerOptions:
    """`stuck_timeout`: None leaves it to the broker, 0 is never. `drain`: end when nothing is due. `once`: end after one
    message, or when none is due. `health_file` is touched while the worker makes progress, and removed at the end."""

    graceful_timeout: float | None = None
    stuck_timeout: float | None = None
    drain: bool = False
    once: bool = False
    health_file: Path | None = None


class WorkerProcess:
    """A broker that consumes until somebody or something says that it is enough."""

    handlers_at_once: int | None = None  # of the whole process, where an adapter limits that

    def __init__(self, broker: "OutboxBroker", options: WorkerOptions) -> None:
        self._broker = broker
        self._options = options
        self._handled = 0
        self._abandoned = 0
        broker.watch(self._count)
        self._enough: asyncio.Event | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stopped = False
        self._failed = False

    async def run(self) -> Exit:
        """Work; raises what the broker's start raises."""
        self._enough = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        if self._stopped:
            self._enough.set()
        self._configure()
        await check_privileges(self._broker.store)
        self._broker.context.set_global("app", self)  # where FastStream looks for somebody to tell of a sys.exit()
        with _loaded_for_good():
            if not await self._started(self._enough):
                return Exit.CLEAN
            try:
                self._announce()
                await self._warn_of_orphans()
                await self._work(self._enough)
            finally:
                await self._broker.stop()
        return self._report()

    async def _started(self, enough: asyncio.Event) -> bool:
        """Start the broker; False if it was to stop before it had."""
        starting, stopped = asyncio.create_task(self._broker.start()), asyncio.create_task(enough.wait())
        await asyncio.wait([starting, stopped], return_when=asyncio.FIRST_COMPLETED)
        stopped.cancel()
        if not starting.done():
            starting.cancel()
            await asyncio.gather(starting, return_exceptions=True)
            await self._broker.stop()
            return False
        starting.result()
        return True

    def exit(self) -> None:
        """A handler called `sys.exit()`: drain, and end with an error, so that somebody looks."""
        logger.error("a handler raised SystemExit; draining")
        self._failed = True
        self.stop()

    def stop(self) -> None:
        """Drain; callable from any thread, and before it runs."""
        self._stopped = True
        if self._loop is not None and self._enough is not None:
            with suppress(RuntimeError):  # the loop is closed, so it has stopped
                self._loop.call_soon_threadsafe(self._enough.set)

    @property
    def patience(self) -> float:
        """Seconds that a drain may take."""
        return (self._broker.config.graceful_timeout or 0) + DRAIN_MARGIN

    def listen_to_signals(self) -> None:
        """The first drains, the second ends the process. To be called in the running loop of the main thread."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._signalled, number)

    def _signalled(self, number: signal.Signals) -> None:
        if self._enough is None or not self._enough.is_set():
            logger.info("%s: draining; once more to end at once", number.name)
            self.stop()
            return
        logger.warning("%s again: ending at once; what was in hand will be delivered again", number.name)
        leave(128 + number)

    # Steps

    def _configure(self) -> None:
        if self._options.once:
            self._broker.watch(self._halt_after_one)
        if self._options.graceful_timeout is not None:
            self._broker.config.broker_config.graceful_timeout = self._options.graceful_timeout
        worker = self._broker.config.broker_config.worker
        if self._options.stuck_timeout is not None and worker is not None:
            worker.stuck_timeout = check_stuck_timeout(self._options.stuck_timeout or None)

    def _count(self, event: Event) -> None:
        match event:
            case Handled():
                self._handled += 1
            case WorkerStopped(abandoned=abandoned):
                self._abandoned = abandoned

    def _halt_after_one(self, event: Event) -> None:
        if isinstance(event, Handled):
            self._broker.halt()
            self.stop()

    def _announce(self) -> None:
        most = "" if self.handlers_at_once is None else f"; {self.handlers_at_once} at once"
        logger.info("worker on %s: queues %s%s", self._broker.store.name, ", ".join(self._broker.served_queues), most)

    async def _warn_of_orphans(self) -> None:
        """Messages that no handler of this project takes would wait for ever, unseen."""
        try:
            queues = await self._broker.store.queues()
        except Exception:  # the database went away again: the worker survives that, and need not be warned
            logger.debug("could not look for queues without a handler", exc_info=True)
            return
        for queue in queues:
            if queue not in self._broker.subscribed_queues:
                logger.warning(
                    "queue %r has messages and no handler in this project; they wait until somebody handles it", queue
                )

    async def _work(self, enough: asyncio.Event) -> None:
        ends: list[asyncio.Task[object]] = [asyncio.create_task(enough.wait())]
        if self._options.drain or self._options.once:
            ends.append(asyncio.create_task(self._broker.drained()))
        health = asyncio.create_task(self._show_health())
        try:
            await asyncio.wait([*ends, health], return_when=asyncio.FIRST_COMPLETED)
        finally:
            enough.set()
            await asyncio.gather(health)
            for end in ends:
                end.cancel()
            await asyncio.gather(*ends, return_exceptions=True)

    async def _show_health(self) -> None:
        assert self._enough is not None, "it runs"
        path = self._options.health_file
        if path is None:
            await self._enough.wait()
            return
        wrong: str | None = None
        try:
            while not self._enough.is_set():
                before, wrong = wrong, await self._touch(path)
                if wrong is not None and wrong != before:
                    logger.error("%s", wrong)
                await within(HEALTH_INTERVAL, self._enough.wait())
        finally:
            with suppress(OSError):
                path.unlink(missing_ok=True)

    async def _touch(self, path: Path) -> str | None:
        """Touch the file if there is progress; otherwise say what is wrong."""
        if not await self._broker.ping(PING_TIMEOUT):
            return f"the worker makes no progress; {path} is not touched until it does"
        return _touched(path)

    def _still_busy(self) -> int:
        """Handlers that go on although they were cut."""
        return 0

    def _report(self) -> Exit:
        logger.info("stopped after handling %d messages", self._handled)
        if cut := max(self._abandoned, self._still_busy()):
            logger.warning("cut %d handlers; the messages of those that did not finish will be delivered again", cut)
            return Exit.ABANDONED
        return Exit.FAILED if self._failed else Exit.CLEAN


def _touched(path: Path) -> str | None:
    try:
        path.touch()
    except OSError as error:  # a full disk, say: handling goes on, and whoever looks at the file draws the conclusion
        return f"cannot touch the health file: {error}"
    return None


@contextmanager
def _loaded_for_good() -> Iterator[None]:
    """Meanwhile no garbage is looked for in what the process has loaded, which took a twentieth of a busy worker's time."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


async def check_privileges(store: Store) -> None:
    """`NoPermission` if the role could not do a worker's work; otherwise a worker would try for ever.

    Each statement of a message's life is run on no message at all: privileges are looked at before rows.
    """
    link = await store.connect()
    try:
        await link.try_out()
    except Exception as error:  # the worker survives whatever else it is
        if is_forbidden(driver_error(error)):
            raise NoPermission(f"{first_line(driver_error(error))}; {GRANTS}") from error
        logger.debug("could not try a worker's statements", exc_info=True)
    finally:
        await link.close()


def leave(code: int) -> None:
    """End the process now: a thread that is stuck in a handler would keep it for ever."""
    logging.shutdown()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)


def show_log(level: int = logging.INFO) -> None:
    """Write our records to standard output, unless the program's own logging takes care of them."""
    if logger.hasHandlers():
        return
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    logger.addHandler(handler)
    if logger.level == logging.NOTSET:
        logger.setLevel(level)
