"""The engine of one process: claim, dispatch, settle, for any number of subscribers.

    rows --claimer--> deliveries --slots, or who pulls--> outcomes --settler--> rows

Four connections serve any number of subscribers and handlers: one claims, one settles, one listens, and in a thread of its
own one extends leases. They are the worker's own, never the application's pool. The worker survives any outage of the
database, and stops in order: no more claims, give back what has not begun, wait for handlers, write what they did.
"""

import asyncio
import logging
import os
import random
import socket
from collections.abc import Sequence
from functools import partial
from secrets import token_hex
from time import monotonic
from typing import Any

from outbox_core.claimant import Claimant
from outbox_core.claimer import Claimer
from outbox_core.errors import NotStarted, OptionError, SchemaMismatch
from outbox_core.events import (
    Claimed,
    ConnectionRestored,
    Event,
    LeaseLost,
    ListenDegraded,
    Observer,
    WorkerStarted,
    WorkerStopped,
)
from outbox_core.heartbeat import Heartbeat
from outbox_core.hints import Hints
from outbox_core.isolation import Isolation
from outbox_core.links import LinkDown, LinkKeeper
from outbox_core.message import Delivery
from outbox_core.options import check_stuck_timeout
from outbox_core.quoting import one_line
from outbox_core.settler import Settler
from outbox_core.store import Link, Listener, Store
from outbox_core.threads import LoopThread
from outbox_core.waiting import Question, within
from outbox_core.watchdog import Watchdog

logger = logging.getLogger("outbox")

TICK = 1.0  # seconds between looks at stalled buffers and overdue handlers
OVERDUE = 30.0  # seconds of a handler run that are told where no stuck_timeout says how many
PROOF_TIMEOUT = 2.0  # seconds in which a notification to oneself must arrive
PROOF_AGAIN = 60.0  # seconds until listening is proved again, or at most until it is tried again where it did not work
NO_LISTEN = "this store has no wake-ups"
SETTLE_TIMEOUT = 5.0  # seconds for the last outcomes at the end


class Worker:
    """Runs claimants on a store. Loop-bound parts are made by `start`, so one object lives through many loops.

    *stuck_timeout*: seconds for which the event loop may be blocked with messages in hand before the process is ended
    (`outbox_core.watchdog`); None: for ever. A handler that runs for as long without blocking it is logged.
    """

    def __init__(
        self,
        store: Store,
        *,
        name: str | None = None,
        observers: Sequence[Observer] = (),
        stuck_timeout: float | None = 30.0,
    ) -> None:
        self.store = store
        self.stuck_timeout = check_stuck_timeout(stuck_timeout)
        self.name = name or f"{socket.gethostname()}:{os.getpid()}:{token_hex(2)}"
        self._observers = list(observers)
        self._claimants: list[Claimant] = []
        self._tasks: list[asyncio.Task[Any]] = []
        self._question = Question(self._ask)
        self._listening = False
        self._released = 0
        self._cut = 0
        self._life = asyncio.Lock()
        self.running = False

    # Life

    def watch(self, observer: Observer) -> None:
        """Have *observer* called with every event from now on; of single handler runs, from the next claimant on."""
        self._observers.append(observer)

    async def start(self, queues: Sequence[str] = ()) -> None:
        """Connect, check the tables, and start claiming for what is added. Does nothing if running.

        *queues*: what is going to be added, for those who are told of the start.
        Raises `DatabaseUnavailable` or `SchemaMismatch`: a worker that cannot begin says so at once; later it survives.
        """
        async with self._life:
            if not self.running:
                await self._start(queues)

    async def _start(self, queues: Sequence[str]) -> None:
        await self._check_tables()
        self._claims = LinkKeeper("claim", self.store, self._observe)
        self._settles = LinkKeeper("settle", self.store, self._observe)
        try:
            await self._claims.connect()
            await self._settles.connect()
        except BaseException:
            await self._claims.close()
            raise
        self._settler = Settler(self._settles, worker=self.name, observe=self._observe)
        self._claimer = Claimer(self._claims, self._settler, observe=self._observe)
        self._claimer.listening = lambda: self._listening
        self._hints = Hints(self._claimer.heard, serves=lambda queue: queue in self._claimer.queues)
        self._settler.scheduled = self._claimer.nudge
        self._settler.emptied = self._claimer.empty_handed
        self._isolation = Isolation()
        self._start_thread()
        self._listen_tried = asyncio.Event()
        self._restored = asyncio.Event()
        self.running = True
        loops = (self._claimer.run(), self._settler.run(), self._tend(), self._listen())
        self._tasks = [asyncio.create_task(loop) for loop in loops]
        await self._listen_tried.wait()
        self._observe(WorkerStarted(self.name, tuple(queues), self._listening))

    def _start_thread(self) -> None:
        """Have leases extended and the loop watched from outside of it."""
        self._outside = LoopThread("outbox-heartbeat")
        post = self._outside.post
        keeper = LinkKeeper("heartbeat", self.store, partial(post, self._observe))
        loop = asyncio.get_running_loop()
        self._heartbeat = Heartbeat(self._settler, keeper, runs=loop.is_running, post=post)
        self._watchdog = Watchdog(
            limit=self.stuck_timeout,
            running=self._begun,
            in_hand=lambda: not self._settler.idle,
            part=lambda: self._heartbeat.part(self._begun()),
            post=post,
            observe=self._observe,
        )
        self._settler.extend = partial(self._outside.call, self._heartbeat.extend)
        self._outside.start(self._heartbeat.run, self._watchdog.run)

    def _begun(self) -> list[Delivery]:
        """The deliveries whose handler has begun; from any thread."""
        return [delivery for claimant in [*self._claimants] for delivery in claimant.running()]

    async def _check_tables(self) -> None:
        for table, differences in (await self.store.differences()).items():
            needed = [difference for difference in differences if difference.needed]
            if fatal := [difference.text for difference in needed if difference.fatal]:
                raise SchemaMismatch(table, fatal)
            for difference in needed:
                logger.warning("%s in %s: %s; claims may be slow", table, self.store.name, difference.text)

    def add(self, claimant: Claimant) -> None:
        """Start *claimant* and claim for its queues."""
        if not self.running:
            raise NotStarted("the worker is not running; start it before adding consumers")
        for queue in claimant.options.queues:
            if queue in self._claimer.queues:
                raise OptionError(
                    f"queue {queue!r} has two subscribers, and each would get some of its messages; "
                    "give one subscriber several handlers with filter=…"
                )
        observe = self._observe if self._observers else None
        claimant.start(self._settler, self._isolation, observe=observe, need=self._claimer.nudge)
        self._claimants.append(claimant)
        self._claimer.add(claimant)

    async def remove(self, claimant: Claimant, *, timeout: float) -> None:
        """Drain one claimant; the others go on."""
        async with claimant.leaving:
            if claimant in self._claimants:
                await self._drain(claimant, timeout)
                self._claimants.remove(claimant)
        await self._write_the_rest()

    async def _drain(self, claimant: Claimant, timeout: float) -> None:
        self._claimer.remove(claimant)
        released = claimant.halt()
        await self._tell_others(released, claimant.options.queues)
        more, cut = await claimant.stop(timeout)
        await self._tell_others(more, claimant.options.queues)
        if cut:
            logger.warning("%d handlers of %r were cut after %g s", cut, claimant.options.queues, timeout)
        self._released += released + more
        self._cut += cut

    async def stop(self, *, timeout: float) -> None:
        """Drain and disconnect. Handlers get *timeout* seconds; those that are cut are given back. Idempotent."""
        async with self._life:
            if self.running:
                await self._stop(timeout)
        self._life = asyncio.Lock()  # the next start may be on another loop

    async def _stop(self, timeout: float) -> None:
        self.running = False
        self._claimer.stop()
        await asyncio.wait(self._tasks[:1], timeout=SETTLE_TIMEOUT)  # the claim on its way lands first
        await asyncio.gather(*(self.remove(claimant, timeout=timeout) for claimant in [*self._claimants]))
        await self._write_the_rest()
        await self._question.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks.clear()
        await asyncio.gather(self._claims.close(), self._settles.close(), self._outside.stop())
        self._observe(WorkerStopped(self.name, self._released, self._cut))
        self._released = self._cut = 0

    async def _tell_others(self, released: int, queues: Sequence[str]) -> None:
        """Of what was given back, which they would otherwise find at their next poll."""
        if not released or not await self._drained() or not self._listening:
            return
        for queue in queues:
            try:
                await self._settles.call(partial(_notify, queue))
            except LinkDown:
                return

    async def _write_the_rest(self) -> None:
        if not await self._drained():
            logger.warning(
                "%d outcomes could not be written in time; these messages will be delivered again",
                self._settler.unsettled,
            )

    async def _drained(self) -> bool:
        """Whether all outcomes could be written in a few seconds, to which an outage's past counts."""
        return await within(max(1.0, SETTLE_TIMEOUT - self._settles.down_for), self._settler.drained())

    def halt(self) -> None:
        """Let no handler begin any more; what has not begun is given back, and what runs goes on until `stop`."""
        for claimant in self._claimants:
            claimant.halt()

    async def drained(self) -> None:
        """Return once nothing is due in the consumers' queues and nothing is in hand, or the worker stops.

        What is scheduled stays, and so does what a pause or another worker holds.
        """
        if not self.running:
            raise NotStarted("the worker is not running, so it drains nothing; start it first")
        await self._claimer.exhausted()

    # Health

    async def ping(self, timeout: float | None = None) -> bool:
        """Whether the database answers, every loop is alive and free, and claims and settlements succeed. Never raises."""
        claiming_settling_tending = self._tasks[:3]
        if not self.running or any(task.done() for task in claiming_settling_tending):
            return False
        if self._watchdog.blocked or not self._outside.alive:
            return False
        if self._settler.stuck or not all(claimant.alive for claimant in self._claimants):
            return False
        longest = max((claimant.options.max_fetch_interval for claimant in self._claimants), default=TICK)
        if monotonic() - self._claims.last_success > 2 * max(longest, TICK) + 10:
            return False
        return await self._question.answer(timeout)

    async def _ask(self) -> bool:
        """Whether the database answers."""
        try:
            await self._settles.call(lambda link: link.ping())
        except LinkDown:
            return False
        return True

    # Loops

    async def _tend(self) -> None:
        """Have given back what does not get any further, and told what takes very long."""
        while True:
            await asyncio.sleep(TICK)
            for claimant in self._claimants:
                claimant.give_back_stalled()
                claimant.tell_overdue(self.stuck_timeout or OVERDUE)

    async def _listen(self) -> None:
        """Keep a listener that is proved to hear, or say once that there is none."""
        degraded: str | None = None
        pause = TICK
        try:
            while (reason := await self._listen_once()) != NO_LISTEN:
                self._listen_tried.set()
                if reason is None:
                    degraded, pause = None, TICK
                elif degraded is None:
                    degraded = reason
                    logger.warning("no wake-ups from %s: %s; polling instead", self.store.name, one_line(reason))
                    self._observe(ListenDegraded(reason))
                await self._pause_listening(pause * random.uniform(0.1, 1.0))  # noqa: S311  no secret
                pause = min(pause * 2, PROOF_AGAIN)
        finally:
            self._listen_tried.set()

    async def _pause_listening(self, seconds: float) -> None:
        """Less, if meanwhile another connection works again: then this one may too."""
        self._restored.clear()
        await within(seconds, self._restored.wait())

    async def _listen_once(self) -> str | None:
        """Listen until the connection ends (None), or say why that does not work.

        It is proved again and again: a network that forgets an idle connection tells nobody.
        """
        proof, proved = f"proof:{token_hex(8)}", asyncio.Event()

        def heard(payload: str) -> None:
            if payload == proof:
                proved.set()
            else:
                self._hints.heard(payload)

        listener: Listener | None = None
        try:
            listener = await self.store.listen(heard)
            if listener is None:
                return NO_LISTEN
            while True:
                await self._settles.call(lambda link: link.notify(proof))
                if not await within(PROOF_TIMEOUT, proved.wait()) and not proved.is_set():
                    return "a notification to itself did not arrive (a pooler in transaction mode swallows LISTEN)"
                proved.clear()
                self._listening = True
                self._listen_tried.set()
                self._claimer.nudge()
                if await within(PROOF_AGAIN, listener.closed()):
                    return None
        except Exception as error:
            return repr(error)
        finally:
            self._listening = False
            if listener is not None:
                await listener.close()

    # Events

    def _observe(self, event: Event) -> None:
        if isinstance(event, ConnectionRestored):
            self._restored.set()
        if isinstance(event, Claimed):
            self._hints.came_true()
        if isinstance(event, LeaseLost):
            for claimant in self._claimants:
                if event.delivery.queue in claimant.options.queues:
                    claimant.lost(event.delivery)
        for observer in self._observers:
            try:
                observer(event)
            except Exception:
                logger.exception("an observer failed on %r", event)


async def _notify(payload: str, link: Link) -> None:
    await link.notify(payload)
