"""Defects for the engine, of the kinds that a simulation has to find. Each patches one thing."""

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest

from outbox_core.heartbeat import Heartbeat
from outbox_core.isolation import Isolation
from outbox_core.links import LinkKeeper
from outbox_core.message import Delivery
from outbox_core.outcome import Outcome, Release, Retry
from outbox_core.runs import Runs
from outbox_core.settler import Settler
from outbox_core.worker import Worker


def leases_are_not_extended(patch: pytest.MonkeyPatch) -> None:
    async def look(self: Heartbeat) -> None:
        pass

    patch.setattr(Heartbeat, "_look", look)


def what_could_not_be_settled_is_forgotten(patch: pytest.MonkeyPatch) -> None:
    def failed(self: Settler, batch: Sequence[Any], down: object) -> None:
        for settlement in batch:
            self._drop(settlement.delivery)

    patch.setattr(Settler, "_failed", failed)


def the_worker_does_not_come_back(patch: pytest.MonkeyPatch) -> None:
    async def pause(self: LinkKeeper) -> None:
        await asyncio.Event().wait()

    patch.setattr(LinkKeeper, "pause", pause)


def a_broken_link_is_kept(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(LinkKeeper, "_drop", lambda self, error: None)


def a_key_goes_on_after_a_failure(patch: pytest.MonkeyPatch) -> None:
    leave = Runs.leave

    def leave_acked(self: Runs, batch: Sequence[Delivery]) -> Any:
        for delivery in batch:
            delivery.acked = True
        return leave(self, batch)

    patch.setattr(Runs, "leave", leave_acked)


def what_is_given_back_counts_as_failed(patch: pytest.MonkeyPatch) -> None:
    put = Settler.put

    def put_failed(self: Settler, delivery: Delivery, outcome: Outcome) -> None:
        put(self, delivery, Retry(0.0) if isinstance(outcome, Release) else outcome)

    patch.setattr(Settler, "put", put_failed)


def a_stop_does_not_wait_for_settlements(patch: pytest.MonkeyPatch) -> None:
    async def write_nothing(self: Worker) -> None:
        pass

    patch.setattr(Worker, "_write_the_rest", write_nothing)


def a_suspect_is_not_alone(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Isolation, "alone", Isolation.turn)
