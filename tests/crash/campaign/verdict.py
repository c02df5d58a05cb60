"""What a run has shown, and what its limits say to that."""

from bisect import bisect
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from math import inf
from statistics import median

from sqlalchemy import func, select

from tests.crash.campaign.site import Site
from tests.crash.ledger import Run
from tests.crash.shop import EFFECTS, ORDERS

PATIENT = 3.0  # times as much time has a short run, on a machine that does other things meanwhile


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """The figures of one run. Moments and lengths are seconds; `broken`: what was beyond a limit, in words.

    `repeated`: handlings that came to their end beyond one. `needless`: the duplicates whose earlier run did not end with
    its process. `claims`: how often one process claimed at most until a message of the last shop was taken. `at_once`: runs
    that began while a live worker ran the same message. `innocents`: dead letters that were no poison, or died of another
    reason. `idle`: strikes that proved nothing.
    """

    name: str
    strikes: int
    published: int
    lost: int
    stuck: int
    phantoms: int
    duplicates: int
    repeated: int
    needless: int
    at_once: int
    redelivery: float | None
    recovery: float | None
    gave_up: int
    violations: int
    dead: int
    innocents: int
    effects: int | None
    wait: float | None
    claims: int
    warnings: tuple[int, ...]
    idle: int
    seconds: float
    broken: tuple[str, ...] = ()


def judge(site: Site, *, stuck: set[int], seconds: float, short: bool) -> Verdict:
    """The verdict when nothing moves any more."""
    evidence = _Evidence(site)
    scenario, dead = site.scenario, site.fleet.outbox.dead()
    ordered = evidence.ordered
    verdict = Verdict(
        name=scenario.name,
        strikes=len(site.strikes),
        published=len(ordered),
        lost=len(ordered - evidence.handled - dead.keys() - stuck),
        stuck=len(stuck),
        phantoms=len((evidence.seen | dead.keys() | stuck) - ordered),
        duplicates=evidence.duplicates(),
        repeated=evidence.repeated(),
        needless=evidence.needless(),
        at_once=evidence.at_once(),
        redelivery=evidence.redelivery(),
        recovery=evidence.recovery(),
        gave_up=len(site.gave_up),
        violations=evidence.violations(scenario.keys) if scenario.keys else 0,
        dead=len(dead),
        innocents=sum(scenario.poison.get(number) != reason for number, reason in dead.items()),
        effects=evidence.effects(dead) if scenario.transactional else None,
        wait=evidence.wait(scenario.shops[-1].get("first", 0)),
        claims=evidence.claims(scenario.shops[-1].get("first", 0)),
        warnings=tuple(worker.logged().count("no wake-ups") for worker in site.fleet.workers if worker.started()),
        idle=evidence.idle_strikes(),
        seconds=seconds,
    )
    return replace(verdict, broken=tuple(_broken(site, verdict, PATIENT if short else 1.0)))


def _broken(site: Site, verdict: Verdict, patience: float) -> Iterable[str]:
    yield from site.complaints
    limits = site.scenario.limits
    most: dict[str, float | None] = {
        name: getattr(limits, name)
        for name in ("lost", "stuck", "phantoms", "gave_up", "innocents", "violations", "at_once", "needless", "claims")
    }
    if limits.duplicates is not None:
        most["duplicates"] = limits.duplicates + limits.each * verdict.strikes
    for name in ("recovery", "wait"):
        limit = getattr(limits, name)
        most[name] = None if limit is None else limit * patience
    most["redelivery"] = None if limits.late is None else site.size.lease + limits.late * patience
    most["effects"] = limits.effects
    for name, limit in most.items():
        value = getattr(verdict, name)
        if limit is not None and value is not None and value > limit:
            yield f"{name} {value:g}, which may be {limit:g} at most"
    if verdict.dead != limits.dead:
        yield f"dead {verdict.dead}, which must be {limits.dead}"
    if limits.warnings is not None and any(count != limits.warnings for count in verdict.warnings):
        yield f"warnings {verdict.warnings}, which must be {limits.warnings} for each worker"
    if verdict.idle:
        yield f"{verdict.idle} strikes came when everything had been handled"
    for point in site.scenario.mortal:
        if point not in site.points_met:
            yield f"nobody died when {point}"


class _Evidence:
    """The ledger and the tables, as questions."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self._died = site.died
        self._runs = site.fleet.ledger.runs()
        self.handled = site.fleet.ledger.handled()
        self.seen = {run.message for run in self._runs}
        with site.fleet.outbox.engine.connect() as connection:
            self.ordered = set(connection.scalars(select(ORDERS.c.id)))
            self._effects = dict(connection.execute(select(EFFECTS.c.message, func.count()).group_by("message")).all())

    def duplicates(self) -> int:
        """Handler runs beyond those that were ordered."""
        poison, ordered = self._site.scenario.poison, self._site.scenario.runs_ordered
        counts = Counter(run.message for run in self._runs if run.message not in poison)
        return sum(count - ordered(number) for number, count in counts.items())

    def repeated(self) -> int:
        counts = Counter(run.message for run in self._runs if run.ended is not None)
        return sum(count - 1 for count in counts.values())

    def needless(self) -> int:
        """Duplicates of what nobody died of."""
        runs = self._by_message()
        return sum(first.pid not in self._died for each in runs.values() for first, _ in pairwise(each))

    def effects(self, dead: Iterable[int]) -> int:
        """Rows beyond one, or missing, of the messages that are not dead."""
        alive = self.ordered - set(dead)
        return sum(abs(self._effects.get(number, 0) - 1) for number in alive)

    def at_once(self) -> int:
        return sum(self._overlaps(runs) for runs in self._by_message().values() if len(runs) > 1)

    def _by_message(self) -> dict[int, list[Run]]:
        """The runs of each in the order of their begin."""
        by_message: dict[int, list[Run]] = defaultdict(list)
        for run in self._runs:
            by_message[run.message].append(run)
        return by_message

    def _overlaps(self, runs: Sequence[Run]) -> int:
        return sum(second.begun < self._over(first) for first, second in pairwise(runs))

    def _over(self, run: Run) -> float:
        """When it ran no longer: done, failed, or dead with its process."""
        over = run.ended or run.failed
        return self._died.get(run.pid, inf) if over is None else over

    def redelivery(self) -> float | None:
        """The longest time from the death of a worker to the next claim of a message that it held.

        A worker may have died of its claim before it could write that down, so what counts is the last death that the
        message may have suffered.
        """
        claims = defaultdict(list)
        for claim in self._site.fleet.ledger.claims():
            claims[claim.message].append(claim)
        unseen = self._unseen_deaths()
        waits = []
        for each in claims.values():
            for first, later in pairwise(each):
                died = self._died.get(first.pid, inf)
                if first.moment < died < later.moment:
                    again = [death for death in unseen if died + self._kept() < death < later.moment]
                    waits.append(later.moment - max([died, *again]))
        return max(waits, default=None)

    def _unseen_deaths(self) -> list[float]:
        """Of workers that had asked for messages, and nobody knows what they got."""
        asking = self._site.fleet.ledger.asking()
        return [death for pid, death in self._died.items() if pid in asking]

    def _kept(self) -> float:
        """Seconds after a death in which nobody can have got what it held: leases are extended after a third at most."""
        return self._site.size.lease / 2

    def recovery(self) -> float | None:
        """The longest time without the begin of a handler after a strike, while the shops were open."""
        closed = max(self._site.fleet.ledger.published().values(), default=0.0)
        ends = [end for _, end in self._site.strikes if end < closed]
        nexts = [begun for begun, _ in self._site.strikes[1:]] + [inf]
        return max(
            (self._longest_pause(end, min(after, closed)) for end, after in zip(ends, nexts, strict=False)),
            default=None,
        )

    def _longest_pause(self, since: float, until: float) -> float:
        moments = [since, *(run.begun for run in self._runs if since < run.begun < until), until]
        return max(later - earlier for earlier, later in pairwise(moments))

    def idle_strikes(self) -> int:
        """Strikes that met nobody at work."""
        last = max((run.begun for run in self._runs), default=0.0)
        return sum(begun > last for begun, _ in self._site.strikes)

    def violations(self, keys: int) -> int:
        """Messages of a key that began before an earlier one had been handled, or ran beside another of their key."""
        by_key: dict[int, list[Run]] = defaultdict(list)
        for run in self._runs:
            by_key[run.message % keys].append(run)
        return sum(self._overlaps(runs) + self._overtaken(runs) for runs in by_key.values())

    def _overtaken(self, runs: Sequence[Run]) -> int:
        """Of one key: numbers whose first run begins before the first handling of the one before has ended."""
        begun: dict[int, float] = {}
        ended: dict[int, float] = {}
        for run in runs:
            begun.setdefault(run.message, run.begun)
            if run.ended is not None:
                ended[run.message] = min(run.ended, ended.get(run.message, inf))
        numbers = sorted(begun)
        poison = self._site.scenario.poison
        return sum(
            begun[later] < ended.get(earlier, inf) for earlier, later in pairwise(numbers) if earlier not in poison
        )

    def wait(self, first: int) -> float | None:
        """Half of the last shop's messages began no later after their commit."""
        begun: dict[int, float] = {}
        for run in self._runs:
            begun.setdefault(run.message, run.begun)
        published = self._site.fleet.ledger.published()
        waits = [begun[number] - moment for number, moment in published.items() if number >= first and number in begun]
        return median(waits) if waits else None

    def claims(self, first: int) -> int:
        """How often one process asked at most, from the commit of a message of the last shop to the claim that got it."""
        asks: dict[int, list[float]] = defaultdict(list)
        for ask in self._site.fleet.ledger.asks():
            asks[ask.pid].append(ask.moment)
        taken: dict[int, float] = {}
        for claim in self._site.fleet.ledger.claims():
            its = asks[claim.pid]
            taken.setdefault(claim.message, its[bisect(its, claim.moment) - 1])
        published = self._site.fleet.ledger.published()
        spans = [(moment, taken[number]) for number, moment in published.items() if number >= first and number in taken]
        return max(
            (bisect(moments, end) - bisect(moments, begin) for begin, end in spans for moments in asks.values()),
            default=0,
        )
