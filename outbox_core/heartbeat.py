"""Leases that are kept alive from outside the event loop, which a handler may block (docs/decisions/0008-heartbeats.md).

    the worker's loop                         the heartbeat's thread
    claim --hold--> held ----a copy---------> a third gone? --one statement a lease length--> rows
                    lease_ends <------------- extended
                    forget <----posted------- no longer ours

The settler alone says what is held, and only on its loop. Here a copy of it is read, and one thing written: `lease_ends`,
to a later time. What is settled while an extension is on its way is missing from its answer, and that is all; whether it
was lost, the settler decides when it is told, and a settlement always by the lease token.
"""

import asyncio
import logging
from collections.abc import Callable, Sequence
from contextlib import suppress
from time import monotonic

from outbox_core.links import LinkDown, LinkKeeper
from outbox_core.message import Delivery
from outbox_core.settler import Settler

logger = logging.getLogger("outbox")

LOOK = 0.2  # seconds between looks at leases, the shortest of which is a second
IDLE = 60.0  # seconds without a lease after which the connection is given back


class Heartbeat:
    """Extends every lease that is held, as long as the worker's loop runs, blocked or not."""

    def __init__(
        self,
        settler: Settler,
        keeper: LinkKeeper,
        *,
        runs: Callable[[], bool],
        post: Callable[..., None],
    ) -> None:
        """*runs*: whether there is a loop that does anything with a lease. *post*: calls a function on it."""
        self._settler = settler
        self._keeper = keeper
        self._runs = runs
        self._post = post
        self._one_at_a_time = asyncio.Lock()
        self._needed = monotonic()  # when anything was held

    async def run(self) -> None:
        """Extend in time, until cancelled."""
        try:
            while True:
                await asyncio.sleep(LOOK)
                if self._runs():
                    await self._look()
        finally:
            await self._keeper.close()

    async def extend(self) -> None:
        """Extend whatever is held, now; those that cannot be reached stay what they are."""
        with suppress(LinkDown):
            await self._extend(part=0.0)

    async def part(self, begun: Sequence[Delivery]) -> None:
        """Before the process ends with its loop blocked: write what is decided, and give back what is not in *begun*."""
        async with self._one_at_a_time:
            settlements = self._settler.parting(begun)
            if settlements:
                await self._keeper.call(lambda link: link.settle(settlements, worker=self._settler.worker))

    async def _look(self) -> None:
        try:
            if self._settler.leases_run_down():
                await self._extend(part=1 / 6)
            elif not self._settler.idle:
                await self._keeper.ready()  # there may be no connection to be had when a lease runs down
            elif monotonic() - self._needed > IDLE:
                await self._keeper.release()
            if not self._settler.idle:
                self._needed = monotonic()
        except LinkDown:
            await self._keeper.pause()
        except Exception:
            logger.exception("the heartbeat failed; it goes on after a pause")
            await self._keeper.pause()

    async def _extend(self, *, part: float) -> None:
        """Extend all leases of which *part* is gone, one length after the other. Raises `LinkDown`."""
        async with self._one_at_a_time:
            looked = monotonic()
            held = self._settler.leases()
            gone = {
                delivery: lease
                for delivery, lease in held.items()
                if delivery.completion is None and looked >= delivery.lease_ends - lease * (1 - part)
            }
            for lease in sorted(set(gone.values())):
                await self._extend_one_length([delivery for delivery, its in gone.items() if its == lease], lease)
            self._settler.watched = looked

    async def _extend_one_length(self, deliveries: Sequence[Delivery], lease: float) -> None:
        """What is missing from the answer is locked by an open transaction, and asked for again, or it is not ours."""
        sent = monotonic()
        extended = await self._keeper.call(lambda link: link.extend(deliveries, lease))
        for delivery in deliveries:
            if delivery.id in extended:
                delivery.lease_ends = sent + lease
        missing = [delivery for delivery in deliveries if delivery.id not in extended]
        if missing:
            ours = await self._keeper.call(lambda link: link.ours(missing))
            if lost := [delivery for delivery in missing if delivery.id not in ours]:
                self._post(self._settler.lost, lost)
