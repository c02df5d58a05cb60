"""A worker process as an application would have it, which dies where its orders say.

    python -m tests.crash.worker '{"url": …, "queues": […], …}'

See `Orders`. Nothing in the library knows about this: the store is subclassed here, and what kills is a real SIGKILL.
"""

import asyncio
import json
import logging
import os
import re
import signal
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from faststream import FastStream
from sqlalchemy import MetaData, insert
from sqlalchemy.ext.asyncio import create_async_engine

from outbox_core.faststream import OutboxBroker
from outbox_core.message import Delivery
from outbox_core.sql import Row, Statement
from outbox_core.store import CLAIM_BYTES, KeyClaim, KeyWant, Link, Settlement, Want
from outbox_sqlalchemy import ConstantRetry, OutboxMessage, SqlAlchemyStore, make_outbox_tables
from outbox_sqlalchemy.store import SqlAlchemyExecutor
from outbox_sqlalchemy.tables import names_of
from tests.crash.ledger import Ledger, number_in
from tests.crash.shop import EFFECTS

EXIT_AS_ORDERED = 66


@dataclass(frozen=True, kw_only=True)
class Orders:
    """What one worker process shall do.

    `seconds`: how long a handler runs; `slow`: for which numbers it runs `slow_seconds`; `gate`: a file for which it also
    waits. `failing`, `rejected`, `deadly`: numbers whose handler fails in its first run here, is rejected, or ends the
    interpreter. `blocking`: numbers whose handler blocks the event loop for `blocks` seconds, or `spinning`: for ever,
    without letting any other thread run. `fails`: every message fails once or up to so many times, by its number. `retry`:
    seconds. `dies`: the point at which the process kills itself (see `Fate.meets`), when it has come there `spares` times
    before. `transactional`: handlers also write a row into the table `effects`, in the transaction that ends their message.
    """

    url: str
    ledger: str
    queues: tuple[str, ...] = ("crash",)
    options: dict[str, Any] = field(default_factory=dict)
    transactional: bool = False
    seconds: float = 0.0
    slow: tuple[int, ...] = ()
    slow_seconds: float = 0.0
    gate: str | None = None
    failing: tuple[int, ...] = ()
    rejected: tuple[int, ...] = ()
    deadly: tuple[int, ...] = ()
    blocking: tuple[int, ...] = ()
    blocks: float = 3_600.0
    spinning: tuple[int, ...] = ()
    stuck_timeout: float | None = 30.0
    fails: int = 0
    retry: float = 0.1
    dies: str | None = None
    spares: int = 0


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


class Fate:
    """Where this process comes to its end, if it does."""

    def __init__(self, orders: Orders) -> None:
        self.point = orders.dies
        self._spares = orders.spares

    def meets(self, point: str) -> None:
        """Called at each *point* of the life of a message."""
        if point == self.point:
            if not self._spares:
                die()
            self._spares -= 1


class MortalExecutor(SqlAlchemyExecutor):
    """Dies after the first statement of a settlement that has several."""

    fate: Fate

    async def execute(self, statement: Statement) -> Sequence[Row]:
        rows = await super().execute(statement)
        if statement.text.startswith("DELETE"):
            self.fate.meets("settling")
        return rows


class WatchedLink:
    """Writes down what is claimed. May die between any two statements."""

    def __init__(self, link: Link, ledger: Ledger, fate: Fate) -> None:
        self._link = link
        self._ledger = ledger
        self._fate = fate

    def __getattr__(self, name: str) -> Any:
        return getattr(self._link, name)

    async def claim(
        self, wants: Sequence[Want], *, total: int, lease: float, most_bytes: int = CLAIM_BYTES
    ) -> list[Delivery]:
        self._ledger.ask()
        deliveries = await self._link.claim(wants, total=total, lease=lease, most_bytes=most_bytes)
        self._claimed(deliveries)
        return deliveries

    async def claim_keyed(self, want: KeyWant, *, lease: float) -> KeyClaim:
        self._ledger.ask()
        claim = await self._link.claim_keyed(want, lease=lease)
        self._claimed(claim.deliveries)
        return claim

    def _claimed(self, deliveries: Sequence[Delivery]) -> None:
        self._ledger.answer(number_in(delivery.payload) for delivery in deliveries)
        if deliveries:
            self._fate.meets("claimed")

    async def begin(self, delivery: Delivery) -> bool:
        ours = await self._link.begin(delivery)
        self._fate.meets("begun")
        return ours

    async def extend(self, deliveries: Sequence[Delivery], lease: float) -> set[int]:
        ours = await self._link.extend(deliveries, lease)
        self._fate.meets("extended")
        return ours

    async def settle(self, settlements: Sequence[Settlement], *, worker: str) -> set[int]:
        self._fate.meets("handled")
        ours = await self._link.settle(settlements, worker=worker)
        self._fate.meets("settled")
        return ours


class WatchedStore(SqlAlchemyStore):
    """A store that writes down what is claimed, and may die at one point."""

    ledger: Ledger
    fate: Fate

    async def open(self) -> SqlAlchemyExecutor:
        executor = await super().open()
        if self.fate.point != "settling":
            return executor
        mortal = MortalExecutor(executor._connection)
        mortal.fate = self.fate
        return mortal

    async def connect(self) -> Any:
        return WatchedLink(await super().connect(), self.ledger, self.fate)


def make_app(orders: Orders) -> FastStream:
    engine = create_async_engine(orders.url)
    store = WatchedStore(engine, names_of(make_outbox_tables(MetaData())))
    store.ledger = ledger = Ledger(Path(orders.ledger))
    store.fate = fate = Fate(orders)
    broker = OutboxBroker(store, logger=None, stuck_timeout=orders.stuck_timeout)
    retry = ConstantRetry(delay_seconds=orders.retry)
    failed: set[int] = set()

    @broker.subscriber(orders.queues, retry_strategy=retry, transactional=orders.transactional, **orders.options)
    async def handle(number: int, message: OutboxMessage) -> None:
        run = ledger.begin(number, message.deliveries)
        try:
            await work(number, message)
        except BaseException:
            ledger.fail(run)
            raise
        ledger.end(run)
        if number in orders.rejected:
            await message.reject()
        if number in orders.failing and number not in failed:
            failed.add(number)
            raise RuntimeError(f"message {number} fails as ordered")

    async def work(number: int, message: OutboxMessage) -> None:
        if number in orders.deadly:
            os._exit(EXIT_AS_ORDERED)
        if number in orders.blocking:
            time.sleep(orders.blocks)  # noqa: ASYNC251  what a careless handler does
        if number in orders.spinning:
            re.match("(a+)+$", "a" * 60 + "b")
        if orders.fails and message.attempt <= 1 + number % orders.fails:
            raise RuntimeError(f"message {number} fails as ordered")
        if orders.transactional:
            await message.session.execute(insert(EFFECTS), {"message": number})
        await asyncio.sleep(orders.slow_seconds if number in orders.slow else orders.seconds)
        fate.meets("running")
        while orders.gate and not os.path.exists(orders.gate):  # noqa: ASYNC110, ASYNC240  a test opens it from outside
            await asyncio.sleep(0.01)

    def say_so() -> None:
        logging.info("consuming")

    return FastStream(broker, logger=None, after_startup=[say_so], after_shutdown=[engine.dispose])


def main() -> None:
    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s", level=logging.INFO)
    orders = Orders(**json.loads(sys.argv[1]))
    with suppress(KeyboardInterrupt):
        asyncio.run(make_app(orders).run())


if __name__ == "__main__":
    main()
