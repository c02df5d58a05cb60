"""Outcomes on their way into the database, and what is held of everything that is not there yet.

    outcomes --put--> batch --one fenced statement a kind--> rows

A batch is whatever has come together while the last one was written, so it grows with the load and nobody sets its size.
Settling is idempotent (id and token), so after an unknown answer it is simply repeated on a fresh link.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Sequence
from itertools import islice, starmap
from time import monotonic

from outbox_core.dispatch import refuse
from outbox_core.events import DeadLettered, LeaseLost, Observer, Settled
from outbox_core.links import LinkDown, LinkKeeper
from outbox_core.message import Delivery, size_of
from outbox_core.options import ConsumerOptions
from outbox_core.outcome import DeadLetter, Outcome, Release, Retry
from outbox_core.quoting import one_line
from outbox_core.store import CLAIM_BYTES, Settlement
from outbox_core.waiting import within

logger = logging.getLogger("outbox")

LINGER = 0.002  # seconds in which fast handlers fill a batch; what a kill -9 may repeat is bounded by it
MAX_BATCH = 1_000
MAX_UNSETTLED = 5_000  # outcomes; more would only wait for the database
MAX_UNSETTLED_BYTES = 4 * CLAIM_BYTES  # of the payloads of their messages
UNWATCHED = 0.9  # seconds; the shortest lease is one
STUCK_AFTER = 30.0  # seconds
GIVE_UP_AFTER = 5  # refusals of one settlement on its own; its lease will end and another worker sees it


class Settler:
    """Owns every delivery from its claim to its settlement."""

    def __init__(self, keeper: LinkKeeper, *, worker: str, observe: Observer) -> None:
        self._keeper = keeper
        self.worker = worker
        self._observe = observe
        self._held: dict[Delivery, float] = {}  # with the length of its lease in seconds
        self._outcomes: dict[Delivery, Outcome] = {}
        self._work = asyncio.Event()
        self._urgent = asyncio.Event()
        self._settled = asyncio.Event()
        self._batch_limit = MAX_BATCH
        self._unanswered: set[Delivery] = set()  # settlements that were sent and may have been written
        self._refusals: dict[Delivery, int] = {}  # settlements that failed alone
        self._moved = 0.0  # when there was the first outcome, or the last was written
        self.watched = monotonic()  # when all leases were seen to last, or were extended; the heartbeat writes it
        self._catching_up = asyncio.Lock()
        self._works = False  # whether any was written since the last of these failures
        self.scheduled: Callable[[], None] = lambda: (
            None
        )  # called when messages may be claimed again, now or at a new time
        self.extend: Callable[[], Awaitable[None]] = _extend_nothing  # the heartbeat's
        self.emptied: Callable[[], None] = lambda: None  # called when nothing is held any more

    # What is ours

    def hold(self, deliveries: Sequence[Delivery], *, lease: float, since: float) -> None:
        """Take over freshly claimed deliveries; *since* is the monotonic time before the claim was sent."""
        self._forget_older({delivery.id for delivery in deliveries if delivery.suspect})
        ends = since + lease
        for delivery in deliveries:
            delivery.lease_ends = ends
        self._held |= dict.fromkeys(deliveries, lease)
        if monotonic() > ends:  # the loop was blocked while the answer waited for it
            self.watched = 0.0

    def _forget_older(self, claimed: set[int]) -> None:
        """Give up what is held of rows that were *claimed* again here: their leases had ended, and nobody could extend them.

        The store answers with ids, so an answer that is about the new delivery would be taken for one about the old one too.
        """
        if claimed:
            for delivery in [delivery for delivery in self._held if delivery.id in claimed]:
                self.forget(delivery)

    @property
    def stuck(self) -> bool:
        """Whether there are outcomes, and none was written for a while."""
        return bool(self._outcomes) and monotonic() - self._moved > STUCK_AFTER

    @property
    def idle(self) -> bool:
        """Whether nothing is held."""
        return not self._held

    @property
    def unsettled(self) -> int:
        """Outcomes that are not in the database yet."""
        return len(self._outcomes)

    @property
    def full(self) -> bool:
        """Whether so much waits for the database that nothing should be added to it."""
        return len(self._outcomes) > MAX_UNSETTLED or size_of(self._outcomes) > MAX_UNSETTLED_BYTES

    def forget(self, delivery: Delivery) -> None:
        """Give up a delivery whose lease is over."""
        if self._drop(delivery):
            delivery.lease_lost = True
            logger.warning(
                "lost the lease on message %s in %r; it will be delivered again", delivery.id, delivery.queue
            )
            self._observe(LeaseLost(delivery))

    def _drop(self, delivery: Delivery) -> bool:
        self._outcomes.pop(delivery, None)
        if self._unanswered or self._refusals:  # rarely
            self._unanswered.discard(delivery)
            self._refusals.pop(delivery, None)
        held = self._held.pop(delivery, None) is not None
        if held and not self._held:
            self.emptied()
        return held

    async def begin(self, delivery: Delivery) -> bool:
        """Count the delivery before its handler starts. False: it is not ours any more."""
        while monotonic() < delivery.lease_ends:
            try:
                delivery.begun = await self._keeper.call(lambda link: link.begin(delivery))
            except LinkDown:
                await self._keeper.pause()
            else:
                break
        if not delivery.begun:
            self.forget(delivery)
        return delivery.begun

    def leases(self) -> dict[Delivery, float]:
        """What is held, with the length of its lease in seconds; from any thread, since a copy of a dict is atomic."""
        return self._held.copy()

    def leases_run_down(self) -> bool:
        """Whether a third of any lease is gone; from any thread."""
        now = monotonic()
        if any(now > delivery.lease_ends - lease * 2 / 3 for delivery, lease in self.leases().items()):
            return True
        self.watched = now
        return False

    def leases_unwatched(self) -> bool:
        """Whether leases are over that nobody could extend in time, though perhaps nobody else has claimed the rows."""
        now = monotonic()
        if now - self.watched <= UNWATCHED:
            return False
        return any(now > delivery.lease_ends for delivery in self._held)

    async def catch_up(self) -> None:
        """Extend what is still ours, late as it is, before anything is done that trusts in a lease."""
        async with self._catching_up:
            if self.leases_unwatched():
                await self.extend()
                self.watched = monotonic()  # if that failed, asking again at once would not help

    def lost(self, deliveries: Iterable[Delivery]) -> None:
        """A look at the rows says that these are not ours; it may be older than what was done here since.

        If its end is our own doing, which is on its way into the database or in a transaction there, that decides.
        """
        for delivery in deliveries:
            if delivery not in self._outcomes and delivery.completion is None:
                self.forget(delivery)

    # What becomes of it

    def may_start(self, delivery: Delivery, options: ConsumerOptions) -> bool:
        """Whether a handler may begin with *delivery*; if not, it is forgotten or has its outcome."""
        if delivery.lease_lost or monotonic() > delivery.lease_ends:
            self.forget(delivery)
            return False
        outcome = refuse(delivery, options)
        if outcome is not None:
            logger.error("message %s in %r is dead: %s", delivery.id, delivery.queue, outcome)
            self.put(delivery, outcome)
            return False
        return True

    def put(self, delivery: Delivery, outcome: Outcome) -> None:
        """Have *outcome* written soon. Does nothing for a delivery whose lease was lost."""
        if delivery in self._held:
            if not self._outcomes:
                self._moved = monotonic()
                self._work.set()
            self._outcomes[delivery] = outcome

    def completed(self, delivery: Delivery) -> None:
        """Its handler's transaction has deleted the row."""
        if self._drop(delivery):
            self._observe(Settled(1, ()))
            if delivery.key is not None:
                self.scheduled()

    def undecided(self, deliveries: Iterable[Delivery]) -> list[Delivery]:
        """Those that are held and have no outcome yet."""
        return [delivery for delivery in deliveries if delivery in self._held and delivery not in self._outcomes]

    def parting(self, begun: Iterable[Delivery]) -> list[Settlement]:
        """What can be said of the rest if the process ends now with its loop blocked in one of *begun*; from any thread.

        What waits behind one of them in its key waits on: the table may know by it that somebody has the key.
        """
        outcomes, running = self._outcomes.copy(), set(begun)
        held = {delivery.line for delivery in running} - {None}
        return [
            Settlement(delivery, outcomes.get(delivery) or Release())
            for delivery in self.leases()
            if delivery in outcomes
            or not (delivery in running or delivery.line in held or delivery.completion is not None)
        ]

    def hurry(self) -> None:
        """Do not linger: no handler is running that could add to the batch."""
        self._urgent.set()

    async def settle_now(self, delivery: Delivery, outcome: Outcome) -> bool:
        """Write one outcome before going on; say whether the message was still ours."""
        self.put(delivery, outcome)
        await self.written(delivery)
        return not delivery.lease_lost

    async def written(self, *deliveries: Delivery) -> None:
        """Return when the outcomes of *deliveries* are in the database, or given up."""
        waiting = set(deliveries)
        while waiting := waiting & self._outcomes.keys():
            self.hurry()
            self._settled.clear()
            await self._settled.wait()

    async def run(self) -> None:
        """Write batches until cancelled. What is not written by then never is, and whoever waits for it is told so."""
        try:
            while True:
                await self._work.wait()
                if len(self._outcomes) < self._batch_limit and not self._urgent.is_set():
                    await within(LINGER, self._urgent.wait())
                await self._write_batch()
        finally:
            for delivery in self._outcomes:
                delivery.lease_lost = True
            self._outcomes.clear()
            self._settled.set()

    async def drained(self) -> None:
        """Return when everything that is decided by now is written."""
        await self.written(*self._outcomes)

    async def _write_batch(self) -> None:
        batch = self._next_batch()
        if not batch:
            self._rest()
            return
        try:
            ours = await self._keeper.call(lambda link: link.settle(batch, worker=self.worker))
        except LinkDown as down:
            self._failed(batch, down)
            await self._keeper.pause()
        else:
            self._written(batch, ours)
            self._works = True
            self._moved = monotonic()
            self._batch_limit = min(self._batch_limit * 2, MAX_BATCH)
        self._rest()

    def _next_batch(self) -> list[Settlement]:
        """The oldest outcomes, or one that was refused before if there are no others."""
        if not self._refusals:
            oldest = islice(self._outcomes.items(), self._batch_limit)
        else:
            refused = {one.line for one in self._refusals} - {None}
            fresh = [
                (one, outcome)
                for one, outcome in self._outcomes.items()
                if one not in self._refusals and one.line not in refused  # or a key's end came before its begin
            ]
            oldest = islice(fresh or self._outcomes.items(), self._batch_limit if fresh else 1)
        return [*starmap(Settlement, oldest)]

    def _rest(self) -> None:
        if not self._outcomes:
            self._work.clear()
            self._urgent.clear()
        self._settled.set()

    def _written(self, batch: list[Settlement], ours: set[int]) -> None:
        lost, scheduled = [], False
        for delivery, outcome in batch:
            if delivery.id in ours or self._was_ours(delivery):
                self._drop(delivery)
                if isinstance(outcome, DeadLetter):
                    self._observe(DeadLettered(delivery, outcome.reason))
            else:
                lost.append(delivery.id)
                self.forget(delivery)
            scheduled = scheduled or delivery.key is not None or isinstance(outcome, Retry | Release)
        self._observe(Settled(len(batch), tuple(lost)))
        if scheduled:
            self.scheduled()

    def _was_ours(self, delivery: Delivery) -> bool:
        """Whether a row that is missing can only have been settled by our own first try: nobody else had a lease."""
        asked_before = delivery in self._unanswered or delivery.completion == "unknown"
        return asked_before and monotonic() <= delivery.lease_ends

    def _failed(self, batch: list[Settlement], down: LinkDown) -> None:
        """Halve the batch, so that one settlement that the database refuses cannot hold up the others for ever."""
        self._batch_limit = max(1, len(batch) // 2)
        if not down.sent:
            return
        self._unanswered.update(settlement.delivery for settlement in batch)
        if len(batch) == 1:
            self._refused(batch[0].delivery, down)

    def _refused(self, delivery: Delivery, down: LinkDown) -> None:
        """Put it behind the others; after a few times give it up, unless nothing can be written at all."""
        if delivery not in self._outcomes:
            return
        self._outcomes[delivery] = self._outcomes.pop(delivery)
        self._refusals[delivery] = self._refusals.get(delivery, 0) + self._works
        self._works = False
        if self._refusals[delivery] >= GIVE_UP_AFTER:
            logger.error("cannot settle message %s in %r: %s", delivery.id, delivery.queue, one_line(str(down)))
            self.forget(delivery)


async def _extend_nothing() -> None:
    pass
