"""Messages for those who ask for one at a time, and say themselves what becomes of it.

    who waits --room--> claim --> delivery --> who has waited longest --vote--> settled before `settle` returns

A puller without anybody who waits claims nothing. What was handed out belongs to whoever has it until there is a vote or its
lease is lost, and its lease is extended for as long as the process lives.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Sequence
from time import perf_counter

from outbox_core.dispatch import decide_anyway
from outbox_core.events import Handled, Observer
from outbox_core.isolation import Isolation
from outbox_core.message import Delivery
from outbox_core.options import ConsumerOptions
from outbox_core.outcome import Release
from outbox_core.settler import Settler

logger = logging.getLogger("outbox")


class Puller:
    """One subscriber that is pulled: its options, who waits, and what is in their hands.

    A suspect is counted before it is handed out, and while it is in somebody's hands no other suspect begins; but it is not
    alone as in a slot, because whoever pulls may be a handler, which would wait for its own end.
    """

    longest_run = 1  # the next of a key is for whoever pulls when the one before it has its end
    alive = True  # nothing of its own runs on that could end

    def __init__(self, options: ConsumerOptions) -> None:
        self.options = options
        self.more = True
        self.leaving = asyncio.Lock()
        self._waiting: deque[asyncio.Future[Delivery | None]] = deque()
        self._suspects: deque[Delivery] = deque()  # claimed, and waiting for their turn
        self._introductions: set[asyncio.Task[None]] = set()
        self._in_hands: dict[Delivery, float] = {}  # without a vote; since when
        self._in_turn: dict[Delivery, asyncio.Event] = {}  # suspects in hands, until their outcome is written
        self._stopping = False

    # Life

    def start(
        self, settler: Settler, isolation: Isolation, *, observe: Observer | None, need: Callable[[], None]
    ) -> None:
        self._settler = settler
        self._isolation = isolation
        self._observe = observe
        self._need = need

    def halt(self) -> int:
        """Whoever waits gets None; what is in somebody's hands stays there until `stop`."""
        self._stopping = True
        while self._waiting:
            waiting = self._waiting.popleft()
            if not waiting.done():
                waiting.set_result(None)
        return self._give_back_suspects(keep=0)

    async def stop(self, timeout: float) -> tuple[int, int]:
        """Give back what has no vote, at once: whoever has it may be who waits for this stop, and would wait in vain."""
        released = self.halt()
        if in_hands := [*self._in_hands]:
            logger.warning("%d messages pulled from %r have no vote; given back", len(in_hands), self.options.queues)
        for delivery in in_hands:
            self._give_back(delivery)
        introductions = [*self._introductions]
        for task in introductions:
            task.cancel()
        await asyncio.gather(*introductions, return_exceptions=True)
        return released + len(in_hands), 0

    # Who waits

    async def pull(self, timeout: float | None) -> Delivery | None:
        """The next message; None after *timeout* seconds (None waits for ever), or when the puller stops.

        Cancelling it loses nothing: a message that has just arrived goes to who waits next, or is given back.
        """
        try:
            async with asyncio.timeout(timeout):
                while (delivery := await self._next()) is not None and delivery.lease_lost:
                    pass
                return delivery
        except TimeoutError:
            return None

    async def _next(self) -> Delivery | None:
        if self._stopping:
            return None
        waiting: asyncio.Future[Delivery | None] = asyncio.get_running_loop().create_future()
        self._waiting.append(waiting)
        self._need()
        try:
            return await waiting
        except asyncio.CancelledError:
            if not waiting.cancelled() and (delivery := waiting.result()) is not None:
                self.pass_on(delivery)
            raise
        finally:
            if waiting in self._waiting:
                self._waiting.remove(waiting)

    # What is claimed

    @property
    def attended(self) -> bool:
        return bool(self._waiting)

    def running(self) -> list[Delivery]:
        return list(self._in_hands.copy())

    def room(self) -> int:
        return max(0, len(self._waiting) - len(self._suspects))

    def wants_more(self) -> bool:
        return self.room() > 0

    def add(self, deliveries: Sequence[Delivery]) -> None:
        for delivery in deliveries:
            if not self._settler.may_start(delivery, self.options):
                continue
            if delivery.suspect:
                self._suspects.append(delivery)
                task = asyncio.create_task(self._introduce(delivery))
                self._introductions.add(task)
                task.add_done_callback(self._introductions.discard)
            else:
                self._hand_out(delivery)

    async def _introduce(self, suspect: Delivery) -> None:
        """Hand out a suspect in its turn, and keep the turn until its outcome is in the database."""
        async with self._isolation.turn():
            wanted = suspect in self._suspects and bool(self._waiting)
            if wanted and not await self._settler.begin(suspect):
                return
            if suspect not in self._suspects:  # given back meanwhile, as the suspect that it still is
                suspect.begun = False
                return
            self._suspects.remove(suspect)
            over = self._in_turn[suspect] = asyncio.Event()
            self._hand_out(suspect)
            await over.wait()

    def _hand_out(self, delivery: Delivery) -> None:
        while self._waiting:
            waiting = self._waiting.popleft()
            if not waiting.done():
                self._in_hands[delivery] = perf_counter()
                waiting.set_result(delivery)
                return
        delivery.begun = False  # nobody has looked at it, so a suspect is still one
        self._give_back(delivery)

    def give_back_stalled(self) -> None:
        """Suspects for whom nobody waits any more."""
        self._give_back_suspects(keep=len(self._waiting))

    def tell_overdue(self, limit: float) -> None:
        """Whoever has a message has no handler; its program may take the time that it likes."""

    def _give_back_suspects(self, *, keep: int) -> int:
        released = max(0, len(self._suspects) - keep)
        for _ in range(released):
            self._give_back(self._suspects.pop())
        return released

    # What becomes of it

    async def settle(self, delivery: Delivery, error: BaseException | None = None) -> None:
        """Write what was voted, or what follows from *error*; `delivery.lease_lost` says if it had no effect.

        The first vote stands: another one only waits until that is written. A cancellation ends the waiting, not the vote.
        """
        since = self._in_hands.pop(delivery, None)
        if since is None:
            await self._settler.written(delivery)
            return
        seconds = perf_counter() - since
        outcome = decide_anyway(delivery, error, self.options, seconds=seconds)
        try:
            await self._settler.settle_now(delivery, outcome)
        finally:
            self._end(delivery)
            if self._observe is not None:
                self._observe(Handled(delivery, outcome, error, seconds))

    def pass_on(self, delivery: Delivery) -> None:
        """Whoever got *delivery* has gone without looking at it."""
        if self._in_hands.pop(delivery, None) is not None:
            self._hand_out(delivery)

    def lost(self, delivery: Delivery) -> None:
        if delivery in self._suspects:
            self._suspects.remove(delivery)
            self._need()
        self._end(delivery)

    def _give_back(self, delivery: Delivery) -> None:
        """As it was. Whoever still has it sees a lost lease, and what they vote has no effect."""
        self._settler.put(delivery, Release())
        self._settler.hurry()
        delivery.lease_lost = True
        self._end(delivery)

    def _end(self, delivery: Delivery) -> None:
        self._in_hands.pop(delivery, None)
        if (over := self._in_turn.pop(delivery, None)) is not None:
            over.set()
