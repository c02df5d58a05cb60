"""Those for whom the worker claims: a subscriber with handlers (`slots.Consumer`), or one that is pulled (`pull.Puller`)."""

import asyncio
from collections.abc import Callable, Sequence
from typing import Protocol

from outbox_core.events import Observer
from outbox_core.isolation import Isolation
from outbox_core.message import Delivery
from outbox_core.options import ConsumerOptions
from outbox_core.settler import Settler


class Claimant(Protocol):
    """What the claimer and the worker ask of it. Everything but `stop` answers at once."""

    options: ConsumerOptions
    longest_run: int  # messages of one key that it can take at once
    more: bool  # whether the last claim left messages behind
    leaving: asyncio.Lock  # held while it is drained

    @property
    def alive(self) -> bool:
        """Whether all of its tasks go on, or may have come to their end."""

    @property
    def attended(self) -> bool:
        """Whether anybody takes what is claimed; while not, its queues are left alone, and it counts as drained."""

    def running(self) -> list[Delivery]:
        """Those whose handler has begun, or which are in somebody's hands; from any thread."""

    def start(
        self, settler: Settler, isolation: Isolation, *, observe: Observer | None, need: Callable[[], None]
    ) -> None:
        """Take deliveries from now on. It calls *need* when there is room that a claim would not find by itself."""

    def room(self) -> int:
        """How many more messages it can take."""

    def wants_more(self) -> bool:
        """Whether it is worth a claim."""

    def add(self, deliveries: Sequence[Delivery]) -> None:
        """Take over claimed deliveries, in order; they may be more than there is room for."""

    def lost(self, delivery: Delivery) -> None:
        """The lease of *delivery* is over."""

    def give_back_stalled(self) -> None:
        """Called every second: give back what was claimed and does not get any further."""

    def tell_overdue(self, limit: float) -> None:
        """Called every second: log handlers that have run for more than *limit* seconds, at ever longer intervals."""

    def halt(self) -> int:
        """Let nothing begin any more; how many were given back."""

    async def stop(self, timeout: float) -> tuple[int, int]:
        """Come to an end, in *timeout* seconds if that can wait; how many were given back, and how many handlers were cut."""
