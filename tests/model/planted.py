"""Stores with one defect each, of the kinds that the machine has to find."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from outbox_core.memory import MemoryLink, MemoryStore, _Row
from outbox_core.message import Delivery, NewMessage
from outbox_core.outcome import DeadLetter, Outcome, Release, Retry
from outbox_core.store import CLAIM_BYTES, KeyClaim, KeyWant, Settlement, Want
from tests.contract.harness import MemoryOutbox


class Planted(MemoryStore):
    """A store whose defect may be its link's."""

    Link: type[MemoryLink] = MemoryLink

    async def connect(self) -> MemoryLink:
        return self.Link(self)


def planted(defect: type[Planted]) -> MemoryOutbox:
    """An outbox on such a store."""
    outbox = MemoryOutbox()
    outbox.store = defect(outbox.store._clock)
    return outbox


# Publishing


class PublishesBeforeTheCommit(Planted):
    def insert_sync(self, messages: Sequence[NewMessage], session: object | None) -> list[int | None]:
        return super().insert_sync(messages, None)


class PublishesATimerTwice(Planted):
    def _conflicting(self, message: NewMessage) -> _Row | None:
        return super()._conflicting(message._replace(timer_id=None))


# Claiming


class ClaimsWhatIsLeased(Planted):
    class Link(MemoryLink):
        def _due_rows(self, want: Want, now: datetime) -> list[_Row]:
            band = (want.band.queue, want.band.priority, None)
            rows = self._store._rows.values()
            return [row for row in rows if (row.message.queue, row.message.priority, row.message.key) == band]


class ClaimsTheNextOfAKeyThatIsOut(Planted):
    class Link(MemoryLink):
        async def claim_keyed(self, want: KeyWant, *, lease: float) -> KeyClaim:
            claim = await super().claim_keyed(want, lease=lease)
            now = self._store._clock()
            for row in self._store._rows.values() if not claim.deliveries else ():
                free = row.due_at <= now and row.parked is None and not self._store._leased(row)
                if free and row.message.queue == want.queue and row.message.key is not None:
                    return claim._replace(deliveries=[self._lease(row, UUID(int=row.id), now, lease)])
            return claim


class ClaimsMoreThanTheBytes(Planted):
    class Link(MemoryLink):
        async def claim(
            self, wants: Sequence[Want], *, total: int, lease: float, most_bytes: int = CLAIM_BYTES
        ) -> list[Delivery]:
            return await super().claim(wants, total=total, lease=lease, most_bytes=most_bytes + 1)


class LeavesAHoleInAKey(Planted):
    class Link(MemoryLink):
        async def claim_keyed(self, want: KeyWant, *, lease: float) -> KeyClaim:
            claim = await super().claim_keyed(want, lease=lease)
            if len(claim.deliveries) > 2:
                hole = claim.deliveries.pop(1)
                self._store._rows[hole.id].token = self._store._rows[hole.id].leased_until = None
            return claim


class ForgetsFailuresWithTheLease(Planted):
    class Link(MemoryLink):
        def _lease(self, row: _Row, *rest: Any) -> Delivery:
            if row.token is not None:
                row.attempts = row.deliveries = 0
            return super()._lease(row, *rest)


# Holding


class CountsEachBeginning(Planted):
    class Link(MemoryLink):
        async def begin(self, delivery: Delivery) -> bool:
            row = self._store._held(delivery)
            if row is not None:
                row.deliveries += 1
            return row is not None


class ExtendsWhatWasGivenBack(Planted):
    class Link(MemoryLink):
        async def extend(self, deliveries: Sequence[Delivery], lease: float) -> set[int]:
            until = self._store._clock() + timedelta(seconds=lease)
            rows = {one.token: self._store._rows.get(one.id) for one in deliveries}
            ours = [row for token, row in rows.items() if row is not None and row.token == token]
            for row in ours:
                row.leased_until = until
            return {row.id for row in ours}


# Settling


class SettlesForAnybody(Planted):
    def _held(self, delivery: Delivery) -> _Row | None:
        row = self._rows.get(delivery.id)
        return None if row is None or row.parked is not None else row


class SettlesSuspectsThatWereGivenBack(Planted):
    def _held(self, delivery: Delivery) -> _Row | None:
        row = self._rows.get(delivery.id)
        return row if row is not None and row.token == delivery.token else None


class CompletesInSpiteOfTheRollback(Planted):
    async def complete(self, deliveries: Sequence[Delivery], session: object) -> set[int]:
        ours = {row.id for delivery in deliveries if (row := self._held(delivery)) is not None}
        for id in ours:
            del self._rows[id]
        return ours


class Changed(MemoryLink):
    """Settles something else."""

    def _settle(self, row: _Row, settlement: Settlement, worker: str) -> None:
        super()._settle(row, settlement._replace(outcome=self.changed(settlement.outcome)), worker)

    def changed(self, outcome: Outcome) -> Outcome:
        raise NotImplementedError


class RetriesAtOnce(Planted):
    class Link(Changed):
        def changed(self, outcome: Outcome) -> Outcome:
            return replace(outcome, delay=0.0) if isinstance(outcome, Retry) else outcome


class BlamesWhatIsGivenBack(Planted):
    class Link(Changed):
        def changed(self, outcome: Outcome) -> Outcome:
            return Retry(0.0) if isinstance(outcome, Release) else outcome


class HaltsNoKey(Planted):
    class Link(Changed):
        def changed(self, outcome: Outcome) -> Outcome:
            return replace(outcome, halts=False) if isinstance(outcome, DeadLetter) else outcome


# Dead letters


class DropsDeadLetters(Planted):
    def _bury(self, row: _Row, dead: DeadLetter, worker: str | None) -> None:
        pass


class RedrivesWithOldFailures(Planted):
    def _wake(self, row: _Row) -> None:
        attempts = row.attempts
        super()._wake(row)
        row.attempts = attempts


# Operating


class ForgetsPauses(Planted):
    async def set_paused(self, queue: str, paused: bool, session: object | None) -> None:
        pass


DEFECTS = [
    PublishesBeforeTheCommit,
    PublishesATimerTwice,
    ClaimsWhatIsLeased,
    ClaimsTheNextOfAKeyThatIsOut,
    ClaimsMoreThanTheBytes,
    LeavesAHoleInAKey,
    ForgetsFailuresWithTheLease,
    CountsEachBeginning,
    ExtendsWhatWasGivenBack,
    SettlesForAnybody,
    SettlesSuspectsThatWereGivenBack,
    CompletesInSpiteOfTheRollback,
    RetriesAtOnce,
    BlamesWhatIsGivenBack,
    HaltsNoKey,
    DropsDeadLetters,
    RedrivesWithOldFailures,
    ForgetsPauses,
]
