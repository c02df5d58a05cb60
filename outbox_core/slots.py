"""The slots of one subscriber: long-lived tasks that take deliveries from a buffer and run its handler.

    buffer --next--> slot --handle--> decide --put--> settler
       ^---- the next of its key, after an ack ----'

A task a message, or a queue with locks, would cost more than everything else here; so a slot is a loop, and it yields by
itself when its handler never waits.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import AbstractAsyncContextManager
from itertools import chain
from math import ceil
from time import perf_counter
from typing import Any, TypeAlias

from outbox_core.dispatch import Silence, decide_anyway
from outbox_core.events import Handled, Observer
from outbox_core.isolation import Isolation
from outbox_core.message import Delivery
from outbox_core.options import ConsumerOptions
from outbox_core.outcome import Ack, Outcome, Release
from outbox_core.overdue import Overdue
from outbox_core.runs import Runs
from outbox_core.settler import Settler
from outbox_core.store import CLAIM_BYTES
from outbox_core.waiting import within

logger = logging.getLogger("outbox")

Handler: TypeAlias = Callable[[Sequence[Delivery]], Awaitable[object]]
Lane: TypeAlias = Callable[[], AbstractAsyncContextManager[object]]

AHEAD = 0.1  # seconds of work that are claimed in advance
LONGEST_RUN = 100  # messages of one key in one claim; if one of them fails, the rest was claimed for nothing
MAX_AHEAD = 1_000  # messages; more were hardly faster, and all of them are suspects if the worker dies
BLAME_PATIENCE = 10.0  # seconds that the outcome of a suspect may take into the database, before others go on
LANE_PAUSE = 1.0  # seconds before a slot tries to enter a lane again
CUT_TIMEOUT = 5.0  # seconds for a cancelled handler to come to its end
YIELD_EVERY = 0.001  # seconds that handlers which never wait may keep the loop, on which claims and settlements wait


class Consumer:
    """One subscriber with a handler: options, handler, buffer and slots.

    `handle` runs the handler on one delivery, or on a batch, and raises what it raised. `lane` is where that happens (in
    a thread with a connection of its own, say): it is entered for each delivery, and may be shared by many consumers, whose
    messages then wait in their buffers until it is free. A handler that is cancelled must have come to its end in every
    respect before the lane is left; a lane that fails is entered again, and loses nothing. `ack_first` completes a message
    before its handler runs: at most once. `functions`: what the user wrote and `handle` calls, to be found where it hangs.
    """

    attended = True  # by its slots, always

    def __init__(
        self,
        options: ConsumerOptions,
        handle: Handler,
        *,
        silence: Silence = "ack",
        ack_first: bool = False,
        lane: Lane | None = None,
        functions: Iterable[Callable[..., Any]] = (),
    ) -> None:
        self.options = options
        self.more = True  # whether the last claim left messages behind
        self.handle = handle
        self._cuttable = options.handler_timeout is not None or options.cancel_on_lease_lost
        self._silence: Silence = silence
        self.ack_first = ack_first
        self.lane = lane
        self.longest_run = LONGEST_RUN
        self._overdue = Overdue(functions)
        self._buffer: deque[Delivery] = deque()
        self._runs = Runs()
        self._running: dict[Delivery, float] = {}
        self._cuts: dict[Delivery, asyncio.Timeout] = {}
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._tasks: list[asyncio.Task[None]] = []
        self.leaving = asyncio.Lock()  # held while it is drained
        self._stopping = False
        self._seconds: float | None = None  # of a handler run, moving average
        self.completed = 0
        self._size = 0.0  # bytes of a payload, moving average over the claims
        self._largest = 0  # bytes of a payload: none of what has not begun has more
        self._completed_before = -1  # when it was last looked whether anything is stalled

    # Life

    def start(
        self, settler: Settler, isolation: Isolation, *, observe: Observer | None, need: Callable[[], None]
    ) -> None:
        """Start the slots. *need* is called when there is room for more and the last claim left some behind."""
        self._settler = settler
        self._isolation = isolation
        self._observe = observe
        self._need = need
        self._stopping = False
        self._tasks = [asyncio.create_task(self._slot()) for _ in range(self.options.max_workers)]

    async def stop(self, timeout: float) -> tuple[int, int]:
        """Give back what has not begun, wait for the rest up to *timeout* seconds, then cancel it.

        How many were given back, and how many handlers were cut.
        """
        released = self.halt()
        self._wake_all()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=timeout)
        cut = len(self._running)
        await self._cut_off()
        return released, cut

    async def _cut_off(self) -> None:
        """Cancel what still runs. A handler that goes on regardless, in a thread say, is left behind with its lease."""
        tasks, self._tasks = self._tasks, []
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=CUT_TIMEOUT)
        for delivery in self._running:
            logger.error(
                "the handler of message %s in %r goes on after its cancellation; it is left behind, and the message "
                "will be delivered again",
                delivery.id,
                delivery.queue,
            )

    def halt(self) -> int:
        """Start nothing more; how many were given back. What runs goes on, until `stop`."""
        self._stopping = True
        return self.give_back()

    # The buffer

    @property
    def alive(self) -> bool:
        """Whether every slot goes on, or may have come to its end."""
        return self._stopping or not any(task.done() for task in self._tasks)

    @property
    def in_hand(self) -> int:
        return self._ahead + len(self._running)

    @property
    def _ahead(self) -> int:
        """What has not begun."""
        return len(self._buffer) + len(self._runs)

    def running(self) -> list[Delivery]:
        return list(self._running.copy())

    def room(self) -> int:
        """How many more messages the slots will start within the next moment, at least the idle slots."""
        if self._stopping:
            return 0
        return max(0, self._target() - self._ahead)

    def wants_more(self) -> bool:
        """Whether it is worth a claim: a slot would go idle, or half of what is held in advance is gone."""
        return (self._ahead * 2 <= self._target() or self._falls_short) and self.room() > 0

    @property
    def _falls_short(self) -> bool:
        """Whether the last claim, cut for its bytes, has not brought enough for the slots that are idle."""
        return self.more and bool(self._buffer and self._waiting)  # all of the buffer is for slots that were woken

    def _target(self) -> int:
        """How many messages to hold that have not begun: `CLAIM_BYTES` of them, or as many as slots wait for."""
        soon = self._soon()
        if soon * self._largest <= CLAIM_BYTES:  # as with most messages, and none of them has to be looked at
            return soon
        sizes = [len(delivery.payload) for delivery in chain(self._buffer, self._runs.waiting())]
        self._largest = max(sizes, default=ceil(self._size))
        fitting = ceil((CLAIM_BYTES - sum(sizes)) / max(1.0, self._size))
        return min(soon, len(sizes) + max(len(self._waiting), fitting))

    def _soon(self) -> int:
        slots = self.options.max_workers * (self.options.max_records if self.options.batch else 1)
        idle = max(0, slots - len(self._running))
        if self.options.prefetch is not None:
            return self.options.prefetch
        if self._seconds is None:
            return idle
        # What all slots are stuck in says more than the average of what they had before.
        if idle == 0 and perf_counter() - max(self._running.values()) > AHEAD:
            return 0
        return idle + min(int(AHEAD / max(self._seconds, 1e-6) * self.options.max_workers), MAX_AHEAD)

    def add(self, deliveries: Sequence[Delivery]) -> None:
        """Hand over claimed deliveries, in order."""
        if deliveries:
            sizes = [len(delivery.payload) for delivery in deliveries]
            mean = sum(sizes) / len(sizes)
            self._size = (mean + (self._size or mean)) / 2
            self._largest = max(self._largest, *sizes)
        self._buffer.extend(self._runs.admit(deliveries))
        if self._stopping:
            self.give_back()
        for _ in range(min(len(self._buffer), len(self._waiting))):
            self._wake_one()

    def give_back(self) -> int:
        """Release everything that has not begun."""
        released = [*self._buffer, *self._runs.give_up(self._buffer)]
        self._buffer.clear()
        for delivery in released:
            self._settler.put(delivery, Release())
        if released:
            self._settler.hurry()
        return len(released)

    def give_back_stalled(self) -> None:
        """Give back what waits behind handlers of which none has come to its end since the last call."""
        if self.completed == self._completed_before and self.options.prefetch is None:
            self.give_back()
        self._completed_before = self.completed

    def tell_overdue(self, limit: float) -> None:
        """Whoever says how long a handler may take is told only of one that goes on regardless, as a thread does."""
        self._overdue.look(self._running, self._tasks, max(limit, self.options.handler_timeout or 0.0))

    def lost(self, delivery: Delivery) -> None:
        """The lease of *delivery* is over: drop it if it has not begun, cut its handler if that was asked for."""
        self._runs.drop(delivery)
        if delivery in self._buffer:
            self._buffer.remove(delivery)
            self._go_on([delivery])
        cut = self._cuts.get(delivery) if self.options.cancel_on_lease_lost else None
        if cut is not None and not cut.expired():
            cut.reschedule(asyncio.get_running_loop().time())

    # The slots

    async def _slot(self) -> None:
        yielded = perf_counter()
        while self._buffer or await self._filled():
            if self.lane is None:
                await self._deliver_or_release(self._take())
            else:
                await self._deliver_in(self.lane)
            if (now := perf_counter()) - yielded > YIELD_EVERY:
                await asyncio.sleep(0)
                yielded = now
            # A full buffer need not be measured after each message.
            if self.more and (len(self._buffer) < 16 or len(self._buffer) % 16 == 0) and self.wants_more():
                self._need()

    async def _deliver_in(self, lane: Lane) -> None:
        try:
            async with lane():
                if self._buffer:  # others may have taken it meanwhile
                    await self._deliver_or_release(self._take())
        except Exception:
            logger.exception("a lane for %r failed; trying again in %g s", self.options.queues, LANE_PAUSE)
            await asyncio.sleep(LANE_PAUSE)

    async def _filled(self) -> bool:
        """Wait for something in the buffer; False at the end."""
        while not self._buffer:
            if self._stopping:
                return False
            if not self._isolation.running:
                self._settler.hurry()
            if self.more and self.wants_more():
                self._need()
            future = asyncio.get_running_loop().create_future()
            self._waiting.append(future)
            try:
                await future
            finally:
                if future in self._waiting:
                    self._waiting.remove(future)
        return True

    def _take(self) -> list[Delivery]:
        """What one handler run gets."""
        batch = [self._buffer.popleft()]
        if not self.options.batch:
            return batch
        most = self.options.max_records
        batch += self._runs.join(batch[0], most - len(batch))
        while self._buffer and len(batch) < most:
            batch.append(first := self._buffer.popleft())
            batch += self._runs.join(first, most - len(batch))
        return batch

    def _wake_one(self) -> None:
        while self._waiting:
            future = self._waiting.popleft()
            if not future.done():
                future.set_result(None)
                return

    def _wake_all(self) -> None:
        while self._waiting:
            self._wake_one()

    async def _deliver_or_release(self, batch: list[Delivery]) -> None:
        try:
            await self._deliver(batch)
        except asyncio.CancelledError:  # the worker stops; that is nobody's failure
            for delivery in self._settler.undecided(batch):
                self._settler.put(delivery, Release())
            raise
        except Exception:
            logger.exception("a slot of %r failed; it goes on", self.options.queues)
            for delivery in self._settler.undecided(batch):
                self._settler.forget(delivery)
        finally:
            self._go_on(batch)

    def _go_on(self, batch: list[Delivery]) -> None:
        """Let those begin that waited behind *batch*, or give them back."""
        if len(batch) == 1 and batch[0].key is None:  # as most are, and every call counts
            return
        begin, back = self._runs.leave(batch)
        for delivery in back:
            self._settler.put(delivery, Release())
        for delivery in reversed(begin):
            self._buffer.appendleft(delivery)
        if self._stopping:
            self.give_back()

    async def _deliver(self, batch: list[Delivery]) -> None:
        if self._settler.leases_unwatched():
            await self._settler.catch_up()
        startable = self._startable(batch)
        suspects = [delivery for delivery in startable if delivery.suspect]
        normal = [delivery for delivery in startable if not delivery.suspect] if suspects else startable
        while normal and self._isolation.closed:
            await self._isolation.opened()
            normal = await self._still_startable(normal)
        if normal:
            self._isolation.enter()
            try:
                await self._run(normal)
            finally:
                self._isolation.leave()
        for suspect in suspects:
            await self._deliver_alone(suspect)

    async def _still_startable(self, batch: list[Delivery]) -> list[Delivery]:
        """Those that may begin after a wait, in which the worker may have been stopped or leases lost."""
        if self._settler.leases_unwatched():
            await self._settler.catch_up()
        return self._startable(batch)

    def _startable(self, batch: list[Delivery]) -> list[Delivery]:
        """Those that may begin now. If one may not, neither may those that follow it in its key."""
        if self._stopping:
            for delivery in batch:
                self._settler.put(delivery, Release())
            return []
        startable = [delivery for delivery in batch if self._settler.may_start(delivery, self.options)]
        if len(startable) == len(batch):
            return startable
        broken = {delivery.line for delivery in batch if delivery not in startable} - {None}
        for delivery in startable:
            if delivery.line in broken:
                self._settler.put(delivery, Release())
        return [delivery for delivery in startable if delivery.line not in broken]

    async def _deliver_alone(self, suspect: Delivery) -> None:
        async with self._isolation.alone() as trusted:
            if await self._still_startable([suspect]) and await self._settler.begin(suspect):
                with trusted():
                    await self._run([suspect])
                    # Until its outcome is in the database, the next suspect's crash would be blamed on this one too.
                    await within(BLAME_PATIENCE, self._settler.written(suspect))

    async def _run(self, batch: list[Delivery]) -> None:
        if self.ack_first:
            batch = [delivery for delivery in batch if await self._settler.settle_now(delivery, Ack())]
            if not batch:
                return
        started = perf_counter()
        for delivery in batch:
            self._running[delivery] = started
        error: BaseException | None = None
        try:
            await self.call(batch)
        except asyncio.CancelledError as cancelled:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            # Not an Exception, so a strategy would never retry it; and nobody wanted this handler to end.
            error = RuntimeError("something that the handler awaited was cancelled")
            error.__cause__ = cancelled
        except Exception as raised:
            error = raised
        finally:
            for delivery in batch:
                self._running.pop(delivery, None)
        self._finish(batch, error, perf_counter() - started)

    async def call(self, batch: list[Delivery]) -> None:
        """Run the handler, cut where the options say so; raises what it raised, or `TimeoutError`."""
        await (self._call_cuttable(batch) if self._cuttable else self.handle(batch))

    async def _call_cuttable(self, batch: list[Delivery]) -> None:
        async with asyncio.timeout(self.options.handler_timeout) as cut:
            self._cuts |= dict.fromkeys(batch, cut)
            try:
                await self.handle(batch)
            finally:
                for delivery in batch:
                    self._cuts.pop(delivery, None)

    def _finish(self, batch: list[Delivery], error: BaseException | None, seconds: float) -> None:
        self.completed += len(batch)
        each = seconds / len(batch)
        self._seconds = each if self._seconds is None else self._seconds + 0.2 * (each - self._seconds)
        for delivery in batch:
            outcome = self.decide(delivery, error, seconds)
            delivery.acked = self.ack_first or isinstance(outcome, Ack)
            if delivery.completion == "committed":
                self._settler.completed(delivery)
            elif not self.ack_first:
                self._settler.put(delivery, outcome)
            if self._observe is not None:
                self._observe(Handled(delivery, outcome, error, seconds))

    def decide(self, delivery: Delivery, error: BaseException | None, seconds: float) -> Outcome:
        """What becomes of *delivery* after a handler run of *seconds* that raised *error* or nothing."""
        return decide_anyway(delivery, error, self.options, seconds=seconds, silence=self._silence)
