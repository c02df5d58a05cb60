"""How much is claimed, from which queue, and when to look again.

    room of the claimants --plan--> wants --claim, claim_keyed--> deliveries --> claimants
                                                  \\--nothing--> linger | arm | sleep until due, told or polled

While messages come quickly the claimer looks every few milliseconds and publishers notify nobody; when they stop coming
it arms the queues, looks once more, and sleeps until a publisher notifies, a scheduled message becomes due, or the poll
that catches everything else (docs/decisions/0002-wake-ups.md).
"""

import asyncio
import logging
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from itertools import groupby
from math import ceil
from operator import attrgetter
from time import monotonic
from typing import NamedTuple

from outbox_core.claimant import Claimant
from outbox_core.events import Claimed, Observer
from outbox_core.links import LinkDown, LinkKeeper
from outbox_core.message import Delivery, size_of
from outbox_core.outcome import Release
from outbox_core.settler import Settler
from outbox_core.store import CLAIM_BYTES, Armed, Band, KeyClaim, KeyWant, Link, Survey, Want
from outbox_core.waiting import within

logger = logging.getLogger("outbox")

GLANCE = 0.005  # seconds between looks while messages keep coming
QUIET = 0.02  # seconds without one after which they no longer do
PUBLISHING_PAUSE = 0.02  # seconds, while a transaction that will not notify is open
PROXIED_PAUSE = 0.25  # seconds, while publishers notify for another worker's sake
KEYED = 10.0  # seconds for which a queue is asked for messages with a key after it had some
BARREN = 0.25  # seconds for which thousands of keys in a row that had nothing to claim are not passed again
SURVEY_EVERY = 1.0  # seconds, at least: paused queues, new priorities, and rows below the low-water mark

_queue, _band = attrgetter("queue"), attrgetter("queue", "priority")


class Claimer:
    """Gives the claimants what they have room for, with one statement for all queues at a time."""

    def __init__(self, keeper: LinkKeeper, settler: Settler, *, observe: Observer) -> None:
        self._keeper = keeper
        self._settler = settler
        self._observe = observe
        self._claimants: dict[str, Claimant] = {}
        self._wake = asyncio.Event()
        self._stopping = False
        self._bands: dict[str, list[int]] = {}
        self._paused: frozenset[str] = frozenset()
        self._since: dict[Band, float] = {}
        self._hot: set[str] = set()
        self._turn = 0
        self._keyed_first = True
        self._surveyed = 0.0
        self._known: frozenset[str] = frozenset()  # the queues that were surveyed
        self._due_at: float | None = None
        self._keys = _Keys()
        self._found_at = 0.0
        self._found_before = 0.0
        self._armed: Armed | None = None
        self._armed_for: tuple[str, ...] = ()
        self._poll = 0.0
        self.listening: Callable[[], bool] = lambda: False
        self._asking: list[asyncio.Future[None]] = []  # who waits for `exhausted`

    # Who wants messages

    def add(self, claimant: Claimant) -> None:
        self._claimants |= dict.fromkeys(claimant.options.queues, claimant)
        self._known -= {*claimant.options.queues}
        self._wake.set()

    def remove(self, claimant: Claimant) -> None:
        for queue in claimant.options.queues:
            self._claimants.pop(queue, None)

    @property
    def queues(self) -> tuple[str, ...]:
        return tuple(self._claimants)

    def nudge(self) -> None:
        """There is room, or something was published."""
        self._wake.set()

    def heard(self, queue: str) -> None:
        """A publisher notified."""
        claimant = self._claimants.get(queue)
        if claimant is not None:
            claimant.more = True
            if claimant.wants_more():
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
        if asking or self._knows_little():  # they ask for priorities that are new, too
            await self._survey()
        attended = self._attended()
        hungry = [claimant for claimant in attended if claimant.wants_more()]
        if not hungry or self._settler.full:
            if not attended:
                self._answer(asking)
            await self._disarm()
            for claimant in attended:  # nobody tells us of messages, so a free slot has to ask
                claimant.more = True
            await self._wait(SURVEY_EVERY)
            return
        everyone = len(hungry) == len(attended)
        found = await self._claim(hungry)
        if everyone and not found and not any(claimant.more for claimant in hungry):
            self._answer(asking)
        if found:
            self._found_before, self._found_at = self._found_at, monotonic()
            self._poll = 0.0
        if not any(claimant.more for claimant in hungry) and not self._stopping:
            await self._rest(hungry)

    def _answer(self, asking: Sequence[asyncio.Future[None]]) -> None:
        """Tell them that nothing is due any more."""
        for asked in asking:
            if not asked.done():
                asked.set_result(None)
        self._asking = [asked for asked in self._asking if not asked.done()]

    def _attended(self) -> list[Claimant]:
        return [claimant for claimant in dict.fromkeys(self._claimants.values()) if claimant.attended]

    def _attended_queues(self) -> tuple[str, ...]:
        return tuple(queue for queue, claimant in self._claimants.items() if claimant.attended)

    # Looking

    def _knows_little(self) -> bool:
        """Whether the last survey is old, or queues were not part of it, which may be paused or have priorities."""
        return monotonic() - self._surveyed >= SURVEY_EVERY or not self._known.issuperset(self._attended_queues())

    async def _survey(self) -> None:
        survey = await self._survey_attended()
        bands: dict[str, list[int]] = {queue: [0] for queue in self._known}
        for band in survey.bands:
            if band.queue in bands and band.priority not in bands[band.queue]:
                bands[band.queue].append(band.priority)
        self._bands = {queue: sorted(priorities, reverse=True) for queue, priorities in bands.items()}
        self._paused = survey.paused
        self._due_at = None if survey.due_in is None else monotonic() + survey.due_in
        self._since.clear()
        if self._keys.seen(survey.keyed):
            self._wake.set()  # for they were not asked for in the last claim

    async def _survey_attended(self) -> Survey:
        """Again if somebody came meanwhile whose queues were not part of it."""
        while True:
            queues = self._attended_queues()
            survey = await self._keeper.call(partial(_survey, queues))
            self._surveyed, self._known = monotonic(), frozenset(queues)
            if not self._knows_little():
                return survey

    async def _claim(self, hungry: Sequence[Claimant]) -> int:
        found = 0
        if self._settler.leases_unwatched():  # or this worker would claim its own messages again
            await self._settler.catch_up()
        for lease in sorted({claimant.options.lease_ttl_seconds for claimant in hungry}):
            group = [claimant for claimant in hungry if claimant.options.lease_ttl_seconds == lease]
            found += await self._claim_group(group, lease)
        return found

    async def _claim_group(self, group: Sequence[Claimant], lease: float) -> int:
        """Messages without a key and messages with one, each kind first in turn, since the first may take all the room."""
        for claimant in group:
            claimant.more = False
        self._keyed_first = not self._keyed_first
        if self._keyed_first:
            return await self._claim_keyed(group, lease) + await self._claim_unkeyed(group, lease)
        return await self._claim_unkeyed(group, lease) + await self._claim_keyed(group, lease)

    async def _claim_unkeyed(self, group: Sequence[Claimant], lease: float) -> int:
        wants = self._plan(group)
        if not wants:
            return 0
        total = sum(claimant.room() for claimant in group)
        sent = monotonic()
        deliveries = await self._keeper.call(
            lambda link: link.claim(wants, total=total, lease=lease, most_bytes=CLAIM_BYTES)
        )
        self._learn(wants, deliveries, group)
        self._take_over(deliveries, lease, sent)
        return len(deliveries)

    async def _claim_keyed(self, group: Sequence[Claimant], lease: float) -> int:
        found = 0
        for claimant in group:
            queues = self._keys.in_turn(queue for queue in self._open_queues(claimant) if self._keys.asked(queue))
            for place, queue in enumerate(queues):
                share = ceil(claimant.room() / (len(queues) - place))
                if share > 0:
                    found += await self._claim_keys_of(queue, claimant, share, lease)
        return found

    async def _claim_keys_of(self, queue: str, claimant: Claimant, share: int, lease: float) -> int:
        want = KeyWant(queue, share, claimant.longest_run, self._keys.after(queue), keys=claimant.options.max_workers)
        sent = monotonic()
        claim = await self._keeper.call(lambda link: link.claim_keyed(want, lease=lease))
        if self._keys.learn(want, claim):
            claimant.more = True
        self._take_over(claim.deliveries, lease, sent)
        return len(claim.deliveries)

    def _open_queues(self, claimant: Claimant) -> list[str]:
        return [queue for queue in claimant.options.queues if queue not in self._paused]

    def _take_over(self, deliveries: list[Delivery], lease: float, sent: float) -> None:
        self._settler.hold(deliveries, lease=lease, since=sent)
        self._hand_out(deliveries)
        if deliveries:
            self._observe(Claimed(len(deliveries), monotonic() - sent))

    def _plan(self, group: Sequence[Claimant]) -> list[Want]:
        """Wants that share each claimant's room among its queues: none can take it all while others have messages.

        Quiet queues are asked first, since they give little; the hot ones take turns.
        """
        wants = []
        self._turn += 1
        for claimant in group:
            if not claimant.room():
                continue
            queues = self._open_queues(claimant)
            hot = [queue for queue in queues if queue in self._hot]
            share = max(1, ceil(claimant.room() / max(1, len(hot))))
            for queue in [*(queue for queue in queues if queue not in self._hot), *_turned(hot, self._turn)]:
                for priority in self._bands.get(queue, [0]):
                    band = Band(queue, priority)
                    wants.append(Want(band, share, self._since.get(band)))
        return wants

    def _learn(self, wants: Sequence[Want], deliveries: Sequence[Delivery], group: Sequence[Claimant]) -> None:
        """Remember which bands had as much as they were asked for, and where their next claim may start."""
        by_band = {Band(*band): [*its] for band, its in groupby(deliveries, key=_band)}
        full = {want.band for want in wants if len(by_band.get(want.band, ())) >= want.limit}
        unasked: set[Band] = set()
        if size_of(deliveries) >= CLAIM_BYTES:
            last, bands = Band(*_band(deliveries[-1])), [want.band for want in wants]
            full.add(last)
            unasked = {*bands[bands.index(last) + 1 :]}
        for want in wants:
            if want.band in full:
                self._since[want.band] = by_band[want.band][0].due
            elif want.band in unasked:
                continue  # what came before it had all the bytes of the claim
            elif self._since.pop(want.band, None) is not None:
                full.add(want.band)  # it came back short from above the mark; something may lie below
        self._hot = {band.queue for band in by_band} | {band.queue for band in full}
        for claimant in group:
            claimant.more |= any(band.queue in claimant.options.queues for band in full | unasked)

    def _hand_out(self, deliveries: Sequence[Delivery]) -> None:
        for queue, its in groupby(deliveries, key=_queue):
            claimant = self._claimants.get(queue)
            if claimant is not None:
                claimant.add([*its])
                continue
            for delivery in its:  # removed while the claim was on its way
                self._settler.put(delivery, Release())

    # Resting

    async def _rest(self, hungry: Sequence[Claimant]) -> None:
        """Nothing more is there for now: glance, or arm and look once more, or sleep."""
        now = monotonic()
        if not self.listening():
            await self._sleep_polling(hungry, now)
        elif self._busy(now):
            await self._disarm()
            await self._wait(GLANCE)
        elif self._armed is None or self._armed_for != self._attended_queues():
            await self._arm()
        else:
            await self._sleep_armed(hungry)

    def _busy(self, now: float) -> bool:
        """Whether messages keep coming: two looks in a row found some, and the last was just now."""
        if now - self._found_at > QUIET:
            return False
        return self._armed is None or self._found_at - self._found_before <= QUIET

    async def _arm(self) -> None:
        queues = self._armed_for = self._attended_queues()
        self._armed = await self._keeper.call(lambda link: link.arm(queues))
        if self._armed == "publishing":
            self._armed = None
            await self._wait(PUBLISHING_PAUSE)

    async def _disarm(self) -> None:
        """Spare the publishers: from now on nobody tells this worker anything, so it has to look by itself."""
        if self._armed is None:
            return
        self._armed = None
        for claimant in self._attended():
            claimant.more = True
        await self._keeper.call(lambda link: link.disarm())

    async def _sleep_armed(self, hungry: Sequence[Claimant]) -> None:
        await self._survey()
        longest = self._until_due(min(claimant.options.max_fetch_interval for claimant in hungry))
        if self._armed == "armed":
            await self._wait(longest)
            return
        until = monotonic() + longest
        while self._armed == "proxied" and (left := until - monotonic()) > 0:
            if await self._wait(min(PROXIED_PAUSE, left)):
                return
            await self._arm()

    async def _sleep_polling(self, hungry: Sequence[Claimant], now: float) -> None:
        if now - self._surveyed > GLANCE:
            await self._survey()
        shortest = min(claimant.options.min_fetch_interval for claimant in hungry)
        longest = min(claimant.options.max_fetch_interval for claimant in hungry)
        self._poll = min(max(self._poll * 2, shortest), longest)
        await self._wait(self._until_due(self._poll))

    def _until_due(self, longest: float) -> float:
        dues = [due for due in (self._due_at, self._keys.due_at) if due is not None]
        return max(GLANCE, min([*(due - monotonic() for due in dues), longest]))

    async def _wait(self, seconds: float) -> bool:
        """Whether somebody called before *seconds* had passed."""
        return await within(seconds, self._wake.wait())


class _Keys:
    """Where the next claim of keys goes on in each queue that has some, and when the first of those that wait is due."""

    def __init__(self) -> None:
        self._seen: dict[str, float] = {}
        self._after: dict[str, str | None] = {}
        self._brought: dict[str, int] = {}  # messages, since the first key was passed, until the last one is
        self._barren: dict[str, _Barren] = {}
        self._due: dict[str, float] = {}
        self._turn = 0

    def seen(self, queues: Iterable[str]) -> bool:
        """These have messages with a key; say whether that is news."""
        news = any(not self.asked(queue) for queue in queues)
        self._seen |= dict.fromkeys(queues, monotonic())
        return news

    def asked(self, queue: str) -> bool:
        """Whether *queue* is asked for messages with a key. It still is for a while when it has none any more."""
        return queue in self._seen and monotonic() - self._seen[queue] < KEYED

    def in_turn(self, queues: Iterable[str]) -> list[str]:
        """Another one first each time."""
        self._turn += 1
        return _turned([*queues], self._turn)

    def after(self, queue: str) -> str | None:
        """The key after which the next claim begins, None for the first one."""
        after = self._after.get(queue)
        barren = self._barren.get(queue)
        return barren.end if barren is not None and barren.begin == after and monotonic() < barren.until else after

    def learn(self, want: KeyWant, claim: KeyClaim) -> bool:
        """Remember where to go on; say whether there may be more to claim at once.

        There may be until all keys were passed and nothing was brought. One claim that passes all of them is enough: what it
        left of them is looked at again once the part that it took is acked.
        """
        queue = want.queue
        if claim.deliveries:
            self._seen[queue] = monotonic()
        elif claim.after is not None:
            self._remember_barren(queue, want.after, claim.after)
        self._after[queue] = claim.after
        self._remember_due(want, claim)
        brought = self._brought.pop(queue, 0) + len(claim.deliveries)
        if claim.after is not None:
            self._brought[queue] = brought
            return True
        return want.after is not None and brought > 0

    def _remember_barren(self, queue: str, begin: str | None, end: str) -> None:
        """Keys without anything to claim need not be passed again at once."""
        known = self._barren.get(queue)
        if known is not None and known.end == begin and known.until > monotonic():
            self._barren[queue] = _Barren(known.begin, end, known.until)
        else:
            self._barren[queue] = _Barren(begin, end, monotonic() + BARREN)

    def _remember_due(self, want: KeyWant, claim: KeyClaim) -> None:
        if claim.due_in is not None:
            due_at, known = monotonic() + claim.due_in, self._due.get(want.queue, 0.0)
            self._due[want.queue] = due_at if known < monotonic() else min(due_at, known)
        elif want.after is None and claim.after is None:
            self._due.pop(want.queue, None)

    @property
    def due_at(self) -> float | None:
        """By this process's monotonic clock; None if nothing waits that was passed lately."""
        return min((due for due in self._due.values() if due > monotonic()), default=None)


class _Barren(NamedTuple):
    """The keys after *begin* up to *end*, none of which had anything to claim; believed *until* a monotonic time."""

    begin: str | None
    end: str
    until: float


def _turned(queues: list[str], turn: int) -> list[str]:
    """Each of *queues* is first at another *turn*."""
    place = turn % len(queues) if queues else 0
    return [*queues[place:], *queues[:place]]


async def _survey(queues: Sequence[str], link: Link) -> Survey:
    return await link.survey(queues)
