"""How much is claimed, from which queue, and when to look again.

    room in the slots --plan--> wants --claim--> deliveries --> buffers
                                              \\--nothing--> linger | arm | sleep until due, told or polled

While messages come quickly the claimer looks every few milliseconds and publishers notify nobody; when they stop coming
it arms the queues, looks once more, and sleeps until a publisher notifies, a scheduled message becomes due, or the poll
that catches everything else (docs/decisions/0002-wake-ups.md).
"""

import asyncio
import logging
from collections.abc import Callable, Sequence
from datetime import datetime
from functools import partial
from math import ceil
from time import monotonic

from outbox_core.events import Claimed, Observer
from outbox_core.links import LinkDown, LinkKeeper
from outbox_core.message import Delivery
from outbox_core.outcome import Release
from outbox_core.settler import Settler
from outbox_core.slots import Consumer
from outbox_core.store import Armed, Band, Link, Survey, Want
from outbox_core.waiting import within

logger = logging.getLogger("outbox")

GLANCE = 0.005  # seconds between looks while messages keep coming
QUIET = 0.02  # seconds without one after which they no longer do
PUBLISHING_PAUSE = 0.02  # seconds, while a transaction that will not notify is open
PROXIED_PAUSE = 0.25  # seconds, while publishers notify for another worker's sake
SURVEY_EVERY = 1.0  # seconds, at least: paused queues, new priorities, and rows below the low-water mark
MAX_UNSETTLED = 5_000  # outcomes; more would only wait for the database


class Claimer:
    """Keeps the consumers' buffers filled, with one statement for all queues at a time."""

    def __init__(self, keeper: LinkKeeper, settler: Settler, *, observe: Observer) -> None:
        self._keeper = keeper
        self._settler = settler
        self._observe = observe
        self._consumers: dict[str, Consumer] = {}
        self._wake = asyncio.Event()
        self._stopping = False
        self._bands: dict[str, list[int]] = {}
        self._paused: frozenset[str] = frozenset()
        self._since: dict[Band, datetime] = {}
        self._hot: set[str] = set()
        self._turn = 0
        self._surveyed = 0.0
        self._due_in: float | None = None
        self._found_at = 0.0
        self._found_before = 0.0
        self._armed: Armed | None = None
        self._poll = 0.0
        self.listening: Callable[[], bool] = lambda: False
        self._asking: list[asyncio.Future[None]] = []  # who waits for `exhausted`

    # Who wants messages

    def add(self, consumer: Consumer) -> None:
        for queue in consumer.options.queues:
            self._consumers[queue] = consumer
            self._bands[queue] = [0]
        self._surveyed = 0.0
        self._armed = None
        self._wake.set()

    def remove(self, consumer: Consumer) -> None:
        for queue in consumer.options.queues:
            self._consumers.pop(queue, None)
        self._armed = None

    @property
    def queues(self) -> tuple[str, ...]:
        return tuple(self._consumers)

    def nudge(self) -> None:
        """There is room, or something was published."""
        self._wake.set()

    def heard(self, queue: str) -> None:
        """A publisher notified."""
        consumer = self._consumers.get(queue)
        if consumer is not None:
            consumer.more = True
            self._wake.set()

    async def exhausted(self) -> None:
        """Return once a look that began after this call, with empty hands, has found nothing due; or at the end."""
        asked = asyncio.get_running_loop().create_future()
        self._asking.append(asked)
        self.nudge()
        await asked

    def empty_handed(self) -> None:
        """Everything that was claimed is settled."""
        if self._asking:
            self.nudge()

    # The loop

    async def run(self) -> None:
        """Claim until `stop`; never ends half-way through a claim."""
        try:
            await self._claim_until_stopped()
        finally:
            self._answer(self._asking)

    async def _claim_until_stopped(self) -> None:
        while not self._stopping:
            self._wake.clear()
            try:
                await self._look()
            except LinkDown:
                self._armed = None
                self._surveyed = 0.0
                await self._keeper.pause()
            except Exception:
                logger.exception("the claimer failed; it goes on after a pause")
                await self._keeper.pause()

    def stop(self) -> None:
        self._stopping = True
        self._wake.set()

    async def _look(self) -> None:
        asking = [*self._asking] if self._settler.idle else []
        if asking or monotonic() - self._surveyed >= SURVEY_EVERY:  # they ask for priorities that are new, too
            await self._survey()
        hungry = [consumer for consumer in self._each_consumer() if consumer.wants_more()]
        if not hungry or self._settler.unsettled > MAX_UNSETTLED:
            if not self._consumers:
                self._answer(asking)
            await self._disarm()
            for consumer in self._each_consumer():  # nobody tells us of messages, so a free slot has to ask
                consumer.more = True
            await self._wait(SURVEY_EVERY)
            return
        everyone = len(hungry) == len(self._each_consumer())
        found = await self._claim(hungry)
        if everyone and not found and not any(consumer.more for consumer in hungry):
            self._answer(asking)
        if found:
            self._found_before, self._found_at = self._found_at, monotonic()
            self._poll = 0.0
        if not any(consumer.more for consumer in hungry) and not self._stopping:
            await self._rest(hungry)

    def _answer(self, asking: Sequence[asyncio.Future[None]]) -> None:
        """Tell them that nothing is due any more."""
        for asked in asking:
            if not asked.done():
                asked.set_result(None)
        self._asking = [asked for asked in self._asking if not asked.done()]

    def _each_consumer(self) -> list[Consumer]:
        return list(dict.fromkeys(self._consumers.values()))

    # Looking

    async def _survey(self) -> None:
        survey = await self._survey_all()
        self._surveyed = monotonic()
        bands: dict[str, list[int]] = {queue: [0] for queue in self._consumers}
        for band in survey.bands:
            if band.queue in bands and band.priority not in bands[band.queue]:
                bands[band.queue].append(band.priority)
        self._bands = {queue: sorted(priorities, reverse=True) for queue, priorities in bands.items()}
        self._paused, self._due_in = survey.paused, survey.due_in
        self._since.clear()

    async def _survey_all(self) -> Survey:
        """Again if a consumer came meanwhile, whose queues may be paused or have priorities."""
        while True:
            queues = self.queues
            survey = await self._keeper.call(partial(_survey, queues))
            if queues == self.queues:
                return survey

    async def _claim(self, hungry: Sequence[Consumer]) -> int:
        found = 0
        if self._settler.leases_unwatched():  # or this worker would claim its own messages again
            await self._settler.catch_up()
        for lease in sorted({consumer.options.lease_ttl_seconds for consumer in hungry}):
            group = [consumer for consumer in hungry if consumer.options.lease_ttl_seconds == lease]
            found += await self._claim_group(group, lease)
        return found

    async def _claim_group(self, group: Sequence[Consumer], lease: float) -> int:
        wants = self._plan(group)
        if not wants:
            for consumer in group:
                consumer.more = False
            return 0
        total = sum(consumer.room() for consumer in group)
        sent = monotonic()
        deliveries = await self._keeper.call(lambda link: link.claim(wants, total=total, lease=lease))
        self._settler.hold(deliveries, lease=lease, since=sent)
        self._learn(wants, deliveries, group)
        self._hand_out(deliveries)
        if deliveries:
            self._observe(Claimed(len(deliveries), monotonic() - sent))
        return len(deliveries)

    def _plan(self, group: Sequence[Consumer]) -> list[Want]:
        """Wants that share each consumer's room among its queues: none can take it all while others have messages.

        Quiet queues are asked first, since they give little; the hot ones take turns.
        """
        wants = []
        self._turn += 1
        for consumer in group:
            queues = [queue for queue in consumer.options.queues if queue not in self._paused]
            hot = [queue for queue in queues if queue in self._hot]
            turn = self._turn % len(hot) if hot else 0
            share = max(1, ceil(consumer.room() / max(1, len(hot))))
            for queue in [*(queue for queue in queues if queue not in self._hot), *hot[turn:], *hot[:turn]]:
                for priority in self._bands.get(queue, [0]):
                    band = Band(queue, priority)
                    wants.append(Want(band, share, self._since.get(band)))
        return wants

    def _learn(self, wants: Sequence[Want], deliveries: Sequence[Delivery], group: Sequence[Consumer]) -> None:
        """Remember which bands had as much as they were asked for, and where their next claim may start."""
        by_band: dict[Band, list[Delivery]] = {}
        for delivery in deliveries:
            by_band.setdefault(Band(delivery.queue, delivery.priority), []).append(delivery)
        full = {want.band for want in wants if len(by_band.get(want.band, ())) >= want.limit}
        for want in wants:
            if want.band in full:
                self._since[want.band] = by_band[want.band][0].due_at
            elif self._since.pop(want.band, None) is not None:
                full.add(want.band)  # it came back short from above the mark; something may lie below
        self._hot = {band.queue for band in by_band} | {band.queue for band in full}
        for consumer in group:
            consumer.more = any(band.queue in consumer.options.queues for band in full)

    def _hand_out(self, deliveries: Sequence[Delivery]) -> None:
        by_consumer: dict[Consumer, list[Delivery]] = {}
        for delivery in deliveries:
            consumer = self._consumers.get(delivery.queue)
            if consumer is None:  # removed while the claim was on its way
                self._settler.put(delivery, Release())
            else:
                by_consumer.setdefault(consumer, []).append(delivery)
        for consumer, its in by_consumer.items():
            consumer.add(its)

    # Resting

    async def _rest(self, hungry: Sequence[Consumer]) -> None:
        """Nothing more is there for now: glance, or arm and look once more, or sleep."""
        now = monotonic()
        if not self.listening():
            await self._sleep_polling(hungry, now)
        elif self._busy(now):
            await self._disarm()
            await self._wait(GLANCE)
        elif self._armed is None:
            await self._arm()
        else:
            await self._sleep_armed(hungry)

    def _busy(self, now: float) -> bool:
        """Whether messages keep coming: two looks in a row found some, and the last was just now."""
        if now - self._found_at > QUIET:
            return False
        return self._armed is None or self._found_at - self._found_before <= QUIET

    async def _arm(self) -> None:
        self._armed = await self._keeper.call(lambda link: link.arm(self.queues))
        if self._armed == "publishing":
            self._armed = None
            await self._wait(PUBLISHING_PAUSE)

    async def _disarm(self) -> None:
        """Spare the publishers: from now on nobody tells this worker anything, so it has to look by itself."""
        if self._armed is None:
            return
        self._armed = None
        for consumer in self._each_consumer():
            consumer.more = True
        await self._keeper.call(lambda link: link.disarm())

    async def _sleep_armed(self, hungry: Sequence[Consumer]) -> None:
        await self._survey()
        longest = self._until_due(min(consumer.options.max_fetch_interval for consumer in hungry))
        if self._armed == "armed":
            await self._wait(longest)
            return
        until = monotonic() + longest
        while self._armed == "proxied" and (left := until - monotonic()) > 0:
            if await self._wait(min(PROXIED_PAUSE, left)):
                return
            await self._arm()

    async def _sleep_polling(self, hungry: Sequence[Consumer], now: float) -> None:
        if now - self._surveyed > GLANCE:
            await self._survey()
        shortest = min(consumer.options.min_fetch_interval for consumer in hungry)
        longest = min(consumer.options.max_fetch_interval for consumer in hungry)
        self._poll = min(max(self._poll * 2, shortest), longest)
        await self._wait(self._until_due(self._poll))

    def _until_due(self, longest: float) -> float:
        if self._due_in is None:
            return longest
        return max(GLANCE, min(self._due_in, longest))

    async def _wait(self, seconds: float) -> bool:
        """Whether somebody called before *seconds* had passed."""
        return await within(seconds, self._wake.wait())


async def _survey(queues: Sequence[str], link: Link) -> Survey:
    return await link.survey(queues)
