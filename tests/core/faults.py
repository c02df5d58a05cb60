"""The memory store with a database's faults: calls that fail before or after their effect, and connections that fail."""

import asyncio
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from uuid import uuid4

from outbox_core.memory import MemoryLink, MemoryStore
from outbox_core.message import Delivery
from outbox_core.store import Settlement


class FaultyStore(MemoryStore):
    """Asks `before` and `after` about every begin, extend, look and settle, with the payloads concerned; they may raise."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[str, list[str]]] = []
        self.before: Callable[[str, list[str]], None] = lambda call, bodies: None
        self.after: Callable[[str, list[str]], None] = lambda call, bodies: None
        self.down = False
        self.latency = 0.0  # seconds that a settlement takes
        self.connections = 0

    async def connect(self) -> "FaultyLink":
        if self.down:
            raise ConnectionError("the database is down")
        self.connections += 1
        return FaultyLink(self)

    def give_to_another_worker(self, body: str) -> None:
        """As after a lease that has ended and a claim elsewhere."""
        for row in self._rows.values():
            if row.message.payload == body.encode():
                row.token, row.leased_until = uuid4(), datetime.now(UTC) + timedelta(minutes=1)


class FaultyLink(MemoryLink):
    def __init__(self, store: FaultyStore) -> None:
        super().__init__(store)
        self._faulty = store

    async def begin(self, delivery: Delivery) -> bool:
        self._enter("begin", [delivery])
        begun = await super().begin(delivery)
        self._leave("begin", [delivery])
        return begun

    async def extend(self, deliveries: Sequence[Delivery], lease: float) -> set[int]:
        self._enter("extend", deliveries)
        ours = await super().extend(deliveries, lease)
        self._leave("extend", deliveries)
        return ours

    async def ours(self, deliveries: Sequence[Delivery]) -> set[int]:
        self._enter("ours", deliveries)
        ours = await super().ours(deliveries)
        self._leave("ours", deliveries)
        return ours

    async def settle(self, settlements: Sequence[Settlement], *, worker: str) -> set[int]:
        deliveries = [settlement.delivery for settlement in settlements]
        self._enter("settle", deliveries)
        await asyncio.sleep(self._faulty.latency)
        ours = await super().settle(settlements, worker=worker)
        self._leave("settle", deliveries)
        return ours

    def _enter(self, call: str, deliveries: Sequence[Delivery]) -> None:
        if self._faulty.down:
            raise ConnectionError("the database is down")
        bodies = [delivery.payload.decode() for delivery in deliveries]
        self._faulty.calls.append((call, bodies))
        self._faulty.before(call, bodies)

    def _leave(self, call: str, deliveries: Sequence[Delivery]) -> None:
        self._faulty.after(call, [delivery.payload.decode() for delivery in deliveries])
