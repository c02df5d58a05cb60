"""Any calls in any order on one store, each told to `Expected` with its answer, and the whole outbox compared after each."""

from collections.abc import Coroutine, Mapping, Sequence
from contextlib import suppress
from datetime import timedelta
from typing import Any, Protocol, TypeVar

from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from outbox_core.envelope import compose
from outbox_core.message import Delivery, NewMessage, TimerConflict
from outbox_core.outcome import Ack, DeadLetter, DeadReason, Outcome, Release, Retry
from outbox_core.store import CLAIM_BYTES, Band, KeyWant, Link, Settlement, Want
from tests.contract.harness import Outbox
from tests.model.expected import Expected

T = TypeVar("T")

BOUNDED = settings(
    max_examples=10,
    stateful_step_count=40,
    deadline=None,
    database=None,
    suppress_health_check=[*HealthCheck],
    report_multiple_bugs=False,
    print_blob=False,
)

QUEUES = ("mails", "orders")
STEP = 110.0  # seconds by which time passes: never in sum what delays and leases are, and never near it
DELAYS = st.sampled_from([0.0, 0.0, 0.0, 100.0, 200.0])
EXTENSIONS = {"ignore": 0.0, "extend": 50.0, "replace": 50.0}  # seconds by which a changed timer's delay is another
LEASES = st.sampled_from([100.0, 200.0])
BANDS = [Band(queue, priority) for queue in QUEUES for priority in (0, 5)]
QUEUE = st.sampled_from(QUEUES)
PRIORITY = st.sampled_from([0, 0, 5])
CONFLICT: st.SearchStrategy[TimerConflict] = st.sampled_from(["ignore", "extend", "replace"])
BYTES = st.sampled_from([CLAIM_BYTES, CLAIM_BYTES, 1, 2, 3, 5])  # of bodies that have one or two
WORKER = st.integers(0, 1)  # which of the two links
KEY = st.sampled_from(["a", "b", "c"])
TIMER = st.sampled_from(["t", "u"])
WHICH = st.integers(0, 5)  # which delivery: mostly one that is held, at times a stale one
REASON: st.SearchStrategy[DeadReason] = st.sampled_from(["rejected", "retry_terminal", "max_deliveries"])
OUTCOME: st.SearchStrategy[Outcome] = st.one_of(
    st.just(Ack()),
    st.builds(Retry, DELAYS, failed=st.booleans()),
    st.just(Release()),
    st.builds(DeadLetter, REASON, halts=st.booleans()),
)


class Abort(Exception):
    """What makes a transaction roll back."""


class Ground(Protocol):
    """Where a machine runs: one store, emptied for each example, on an event loop that all of them share."""

    def empty(self) -> tuple[Outbox, Sequence[Link]]:
        """The empty outbox, and two workers' links."""

    def run(self, call: Coroutine[Any, Any, T]) -> T:
        """What *call* returns."""


class StoreMachine(RuleBasedStateMachine):
    def __init__(self, ground: Ground) -> None:
        super().__init__()
        self.run = ground.run
        self.outbox, self.links = ground.empty()
        self.expected = Expected()
        self.deliveries: list[Delivery] = []
        self._bodies = 0

    def message(self, queue: str, **options: Any) -> NewMessage:
        """With a body of its own."""
        self._bodies += 1
        delay = timedelta(seconds=options.pop("delay", 0.0))
        return compose(str(self._bodies), queue, activate_in=delay or None, **options)

    def chosen(self, which: Sequence[int]) -> list[Delivery]:
        """Some deliveries, each once. First comes what is held, then what is not, the latest first."""
        latest = self.deliveries[::-1]
        latest.sort(key=lambda one: self.expected.owned(one) is None)
        return list({latest[place % len(latest)]: None for place in which})

    # Publishing

    @rule(
        queue=QUEUE, key=st.none() | KEY, priority=PRIORITY, delay=DELAYS, timer=st.none() | st.tuples(TIMER, CONFLICT)
    )
    def publish(
        self, queue: str, key: str | None, priority: int, delay: float, timer: tuple[str, TimerConflict] | None
    ) -> None:
        timer_id, conflict = timer or (None, "ignore")
        delay += EXTENSIONS[conflict]
        options = {"key": key, "priority": priority, "timer_id": timer_id, "timer_conflict": conflict}
        self._publish(self.message(queue, delay=delay, **options))

    @precondition(lambda self: self.expected.known)
    @rule(queue=QUEUE, which=st.integers(0, 20))
    def publish_again(self, queue: str, which: int) -> None:
        self._publish(self.message(queue, message_id=self.expected.known[which % len(self.expected.known)]))

    def _publish(self, message: NewMessage) -> None:
        held = self.expected.conflicting(message)
        if held is not None and held.due == self.expected.due(message):
            return  # which of them is later is a matter of milliseconds
        (id,) = self.run(self.outbox.publish(message))
        self.expected.publish(message, id)

    @rule(queue=QUEUE, key=KEY, count=st.integers(1, 4), commits=st.booleans())
    def publish_in_a_transaction(self, queue: str, key: str, count: int, commits: bool) -> None:
        messages = [self.message(queue, key=key) for _ in range(count)]
        ids = self.run(self._publish_together(messages, commits=commits))
        if commits:
            for message, id in zip(messages, ids, strict=True):
                self.expected.publish(message, id)

    async def _publish_together(self, messages: Sequence[NewMessage], *, commits: bool) -> list[int | None]:
        ids: list[int | None] = []
        with suppress(Abort):
            async with self.outbox.transaction() as session:
                ids = await self.outbox.store.insert(messages, session)
                if not commits:
                    raise Abort
        return ids

    @precondition(lambda self: any(one.timer_id for one in self.expected.live.values()))
    @rule(queue=QUEUE, timer_id=TIMER)
    def cancel_timer(self, queue: str, timer_id: str) -> None:
        answer = self.run(self.outbox.store.cancel_timer(queue, timer_id, None))
        self.expected.cancel_timer(queue, timer_id, answer)

    # Working

    @precondition(lambda self: self.expected.live)
    @rule(
        bands=st.permutations(BANDS),
        limit=st.integers(1, 4),
        total=st.integers(1, 8),
        most_bytes=BYTES,
        lease=LEASES,
        worker=WORKER,
    )
    def claim(self, bands: Sequence[Band], limit: int, total: int, most_bytes: int, lease: float, worker: int) -> None:
        wants = [Want(band, limit) for band in bands]
        claimed = self.run(self.links[worker].claim(wants, total=total, lease=lease, most_bytes=most_bytes))
        self.expected.claim(wants, total, most_bytes, lease, claimed)
        self.deliveries += claimed

    @precondition(lambda self: self.expected.live)
    @rule(
        queue=QUEUE,
        limit=st.integers(1, 8),
        run=st.integers(1, 4),
        after=st.none() | st.none() | KEY,
        most_bytes=BYTES,
        lease=LEASES,
        worker=WORKER,
    )
    def claim_keyed(
        self, queue: str, limit: int, run: int, after: str | None, most_bytes: int, lease: float, worker: int
    ) -> None:
        want = KeyWant(queue, limit, run, after, most_bytes=most_bytes)
        claim = self.run(self.links[worker].claim_keyed(want, lease=lease))
        self.expected.claim_keyed(want, lease, claim)
        self.deliveries += claim.deliveries

    @precondition(lambda self: self.expected.live)
    @rule(steps=st.integers(1, 3))
    def let_time_pass(self, steps: int) -> None:
        self.run(self.outbox.age(steps * STEP))
        self.expected.now += steps * STEP

    @precondition(lambda self: self.deliveries)
    @rule(which=WHICH)
    def begin(self, which: int) -> None:
        (delivery,) = self.chosen([which])
        answer = self.run(self.links[0].begin(delivery))
        self.expected.begin(delivery, answer)
        delivery.begun = delivery.begun or answer

    @precondition(lambda self: self.deliveries)
    @rule(which=st.lists(WHICH, min_size=1, max_size=4), lease=LEASES)
    def extend(self, which: Sequence[int], lease: float) -> None:
        deliveries = self.chosen(which)
        self.expected.extend(deliveries, lease, self.run(self.links[0].extend(deliveries, lease)))

    @precondition(lambda self: self.deliveries)
    @rule(ends=st.lists(st.tuples(WHICH, OUTCOME), min_size=1, max_size=4), worker=WORKER)
    def settle(self, ends: Sequence[tuple[int, Outcome]], worker: int) -> None:
        self._settle({self.chosen([which])[0]: outcome for which, outcome in ends}, worker)

    @precondition(lambda self: any(map(self.expected.owned, self.deliveries)))
    @rule(outcome=OUTCOME, worker=WORKER)
    def settle_all_that_is_held(self, outcome: Outcome, worker: int) -> None:
        self._settle(dict.fromkeys(filter(self.expected.owned, self.deliveries), outcome), worker)

    def _settle(self, outcomes: Mapping[Delivery, Outcome], worker: int) -> None:
        settlements = [(delivery, _possible(delivery, outcome)) for delivery, outcome in outcomes.items()]
        ours = self.run(self.links[worker].settle([Settlement(*one) for one in settlements], worker="w1"))
        self.expected.settle(settlements, ours)

    @precondition(lambda self: self.deliveries)
    @rule(which=st.lists(WHICH, min_size=1, max_size=3))
    def complete_in_a_transaction(self, which: Sequence[int]) -> None:
        deliveries = self.chosen(which)
        ours = self.run(self._complete(deliveries))
        self.expected.ours(deliveries, ours)
        if len(ours) == len(deliveries):
            for delivery in deliveries:
                self.expected.complete(self.expected.live[delivery.id])

    async def _complete(self, deliveries: Sequence[Delivery]) -> set[int]:
        """Of a handler that rolls back if one of them is not ours any more."""
        ours: set[int] = set()
        with suppress(Abort):
            async with self.outbox.store.transaction() as session:
                ours = await self.outbox.store.complete(deliveries, session)
                if len(ours) < len(deliveries):
                    raise Abort
        return ours

    # Operating

    @precondition(lambda self: self.expected.dead or self.expected.halting)
    @rule(
        queue=st.none() | QUEUE,
        reason=st.none() | st.none() | REASON,
        limit=st.none() | st.integers(1, 3),
        dry_run=st.booleans(),
    )
    def redrive(self, queue: str | None, reason: str | None, limit: int | None, dry_run: bool) -> None:
        dead = [one.message_id for one in self.expected.dead]
        if len(dead) > len(set(dead)):
            limit = None  # which has been counted with both of the same message, or with one
        picked = self.expected.redrivable(queue, reason)[:limit]
        count = self.run(self.outbox.redrive(queue=queue, reason=reason, limit=limit, dry_run=dry_run))
        assert count == len(picked)
        if not dry_run:
            self.expected.redrive(picked, self.run(self.outbox.pending()))

    @precondition(lambda self: self.expected.halting)
    @rule(queue=QUEUE, key=KEY)
    def release_key(self, queue: str, key: str) -> None:
        self.expected.release_key(queue, key, self.run(self.outbox.store.release_key(queue, key, None)))

    @precondition(lambda self: self.expected.dead)
    @rule(queue=st.none() | QUEUE, older_than=st.sampled_from([50.0, 150.0]))
    def purge(self, queue: str | None, older_than: float) -> None:
        age = timedelta(seconds=older_than)
        purged = self.run(self.outbox.store.purge_dead_letters(age, queue, 100, None))
        self.expected.purge(older_than, queue, purged)

    @rule(queue=QUEUE, paused=st.booleans(), worker=WORKER)
    def pause_or_resume_and_look(self, queue: str, paused: bool, worker: int) -> None:
        self.run(self.outbox.store.set_paused(queue, paused, None))
        (self.expected.paused.add if paused else self.expected.paused.discard)(queue)
        self.expected.stats(self.run(self.outbox.store.stats()), QUEUES)
        self.expected.survey(self.run(self.links[worker].survey(QUEUES)), QUEUES)

    @precondition(lambda self: self.deliveries)
    @rule(worker=WORKER)
    def look_whose_they_are(self, worker: int) -> None:
        owned = [one for one in self.deliveries if self.expected.owned(one) is not None]
        stale = [one for one in self.deliveries if one not in owned]
        self.expected.ours(owned, self.run(self.links[worker].ours(owned)))
        self.expected.ours(stale, self.run(self.links[worker].ours(stale)))

    @invariant()
    def the_store_is_as_expected(self) -> None:
        pending, dead = self.run(self._everything())
        self.expected.compare(pending, dead)

    async def _everything(self) -> tuple[Any, Any]:
        return await self.outbox.pending(), await self.outbox.dead_letters()


def _possible(delivery: Delivery, outcome: Outcome) -> Outcome:
    """A message without a key halts none."""
    if isinstance(outcome, DeadLetter):
        return DeadLetter(outcome.reason, halts=outcome.halts and delivery.key is not None)
    return outcome


def check(ground: Ground, *, seeds: int, shrink: bool = True) -> None:
    """Run machines on *ground*, the same in every run; raises with the shortest calls that show a difference.

    Hypothesis would soon vary what it has, so there are many beginnings of a few examples each.
    """
    phases = [Phase.generate, Phase.shrink] if shrink else [Phase.generate]
    for number in range(seeds):
        factory = seed(number)(lambda: StoreMachine(ground))
        chosen = settings(BOUNDED, phases=phases)
        run_state_machine_as_test(factory, settings=chosen)  # type: ignore[arg-type]  # it takes a function as well
