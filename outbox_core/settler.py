"""Outcomes on their way into the database, and the leases of everything that is not there yet.

    outcomes --put--> batch --one fenced statement a kind--> rows

A batch is whatever has come together while the last one was written, so it grows with the load and nobody sets its size.
Settling is idempotent (id and token), so after an unknown answer it is simply repeated on a fresh link.
"""

import asyncio
import logging
from collections.abc import Iterable
from functools import partial
from time import monotonic

from outbox_core.events import DeadLettered, LeaseLost, Observer, Settled
from outbox_core.links import LinkDown, LinkKeeper
from outbox_core.message import Delivery
from outbox_core.outcome import DeadLetter, Outcome
from outbox_core.store import Link, Settlement

logger = logging.getLogger("outbox")

LINGER = 0.002  # seconds in which fast handlers fill a batch; what a kill -9 may repeat is bounded by it
MAX_BATCH = 1_000
GIVE_UP_AFTER = 5  # failures of one settlement on its own; its lease will end and another worker sees it


class Settler:
    """Owns every delivery from its claim to its settlement."""

    def __init__(self, keeper: LinkKeeper, *, worker: str, observe: Observer) -> None:
        self._keeper = keeper
        self._worker = worker
        self._observe = observe
        self._held: dict[Delivery, float] = {}  # with the length of its lease in seconds
        self._outcomes: dict[Delivery, Outcome] = {}
        self._work = asyncio.Event()
        self._urgent = asyncio.Event()
        self._settled = asyncio.Event()
        self._batch_limit = MAX_BATCH
        self._failures = 0

    # What is ours

    def hold(self, deliveries: Iterable[Delivery], *, lease: float, since: float) -> None:
        """Take over freshly claimed deliveries; *since* is the monotonic time before the claim was sent."""
        for delivery in deliveries:
            delivery.lease_ends = since + lease
            self._held[delivery] = lease

    @property
    def unsettled(self) -> int:
        """Outcomes that are not in the database yet."""
        return len(self._outcomes)

    def forget(self, delivery: Delivery) -> None:
        """Give up a delivery whose lease is over."""
        self._outcomes.pop(delivery, None)
        if self._held.pop(delivery, None) is not None:
            delivery.lease_lost = True
            logger.warning(
                "lost the lease on message %s in %r; it will be delivered again", delivery.id, delivery.queue
            )
            self._observe(LeaseLost(delivery))

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

    async def extend(self) -> None:
        """Extend every lease that is held; forget those that are not ours any more. Raises `LinkDown`."""
        for lease in set(self._held.values()):
            held = [delivery for delivery, its in self._held.items() if its == lease]
            sent = monotonic()
            ours = await self._keeper.call(partial(_extend, held, lease))
            for delivery in held:
                if delivery.id in ours:
                    delivery.lease_ends = sent + lease
                elif delivery in self._held:
                    self.forget(delivery)

    # What becomes of it

    def put(self, delivery: Delivery, outcome: Outcome) -> None:
        """Have *outcome* written soon. Does nothing for a delivery whose lease was lost."""
        if delivery in self._held:
            self._outcomes[delivery] = outcome
            self._work.set()

    def hurry(self) -> None:
        """Do not linger: no handler is running that could add to the batch."""
        self._urgent.set()

    async def settle_now(self, delivery: Delivery, outcome: Outcome) -> bool:
        """Write one outcome before going on; say whether the message was still ours."""
        self.put(delivery, outcome)
        self.hurry()
        while delivery in self._outcomes:
            self._settled.clear()
            await self._settled.wait()
        return not delivery.lease_lost

    async def run(self) -> None:
        """Write batches until cancelled."""
        while True:
            await self._work.wait()
            if len(self._outcomes) < self._batch_limit and not self._urgent.is_set():
                await self._linger()
            await self._write_batch()

    async def drained(self) -> None:
        """Return when everything is written."""
        self.hurry()
        while self._outcomes:
            self._settled.clear()
            await self._settled.wait()

    async def _linger(self) -> None:
        try:
            async with asyncio.timeout(LINGER):
                await self._urgent.wait()
        except TimeoutError:
            pass

    async def _write_batch(self) -> None:
        batch = [
            Settlement(delivery, outcome)
            for delivery, outcome, _ in zip(
                self._outcomes, self._outcomes.values(), range(self._batch_limit), strict=False
            )
        ]
        if not batch:
            self._rest()
            return
        try:
            ours = await self._keeper.call(lambda link: link.settle(batch, worker=self._worker))
        except LinkDown as down:
            self._failed(batch, down)
            await self._keeper.pause()
        else:
            self._written(batch, ours, certain=not self._failures)
            self._failures, self._batch_limit = 0, min(self._batch_limit * 2, MAX_BATCH)
        self._rest()

    def _rest(self) -> None:
        if not self._outcomes:
            self._work.clear()
            self._urgent.clear()
        self._settled.set()

    def _written(self, batch: list[Settlement], ours: set[int], *, certain: bool) -> None:
        lost = []
        for settlement in batch:
            delivery = settlement.delivery
            self._outcomes.pop(delivery, None)
            # After a repeated batch a missing id may well be our own first try.
            if delivery.id in ours or not certain:
                self._held.pop(delivery, None)
                if isinstance(settlement.outcome, DeadLetter):
                    self._observe(DeadLettered(delivery, settlement.outcome.reason))
            else:
                lost.append(delivery.id)
                self.forget(delivery)
        self._observe(Settled(len(batch), tuple(lost)))

    def _failed(self, batch: list[Settlement], down: LinkDown) -> None:
        """Halve the batch, so that one settlement that the database refuses cannot hold up the others for ever."""
        self._failures += 1
        self._batch_limit = max(1, len(batch) // 2)
        if len(batch) == 1 and self._failures >= GIVE_UP_AFTER and monotonic() > batch[0].delivery.lease_ends:
            delivery = batch[0].delivery
            logger.error("cannot settle message %s in %r: %s", delivery.id, delivery.queue, down)
            self.forget(delivery)


async def _extend(held: list[Delivery], lease: float, link: Link) -> set[int]:
    return await link.extend(held, lease)
