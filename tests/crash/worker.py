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
from sqlalchemy import MetaData
from sqlalchemy.ext.asyncio import create_async_engine

from outbox_core.faststream import OutboxBroker
from outbox_core.message import Delivery
from outbox_core.sql import Row, Statement
from outbox_core.store import Link, Settlement, Want
from outbox_sqlalchemy import ConstantRetry, OutboxMessage, SqlAlchemyStore, make_outbox_tables
from outbox_sqlalchemy.store import SqlAlchemyExecutor
from outbox_sqlalchemy.tables import names_of
from tests.crash.ledger import Ledger


@dataclass(frozen=True, kw_only=True)
class Orders:
    """What one worker process shall do.

    `seconds`: how long a handler runs; `gate`: a file for which it also waits. `failing`, `rejected`, `deadly`:
    numbers whose handler fails in its first run here, is rejected, or ends the interpreter. `blocking`: numbers whose
    handler blocks the event loop for `blocks` seconds, or `spinning`: for ever, without letting any other thread run.
    `retry`: seconds. `dies`: claimed, running, handled or settling, the point at which the process kills itself.
    """

    url: str
    ledger: str
    queues: tuple[str, ...] = ("crash",)
    options: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0
    gate: str | None = None
    failing: tuple[int, ...] = ()
    rejected: tuple[int, ...] = ()
    deadly: tuple[int, ...] = ()
    blocking: tuple[int, ...] = ()
    blocks: float = 3_600.0
    spinning: tuple[int, ...] = ()
    stuck_timeout: float | None = 30.0
    retry: float = 0.1
    dies: str | None = None


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


class MortalExecutor(SqlAlchemyExecutor):
    """Dies after the first statement of a settlement that has several."""

    async def execute(self, statement: Statement) -> Sequence[Row]:
        rows = await super().execute(statement)
        if statement.text.startswith("DELETE"):
            die()
        return rows


class WatchedLink:
    """Writes down what is claimed. May die with fresh leases, or with outcomes that are not written."""

    def __init__(self, link: Link, ledger: Ledger, dies: str | None) -> None:
        self._link = link
        self._ledger = ledger
        self._dies = dies

    def __getattr__(self, name: str) -> Any:
        return getattr(self._link, name)

    async def claim(self, wants: Sequence[Want], *, total: int, lease: float) -> list[Delivery]:
        deliveries = await self._link.claim(wants, total=total, lease=lease)
        self._ledger.claim(int(delivery.payload) for delivery in deliveries)
        if deliveries and self._dies == "claimed":
            die()
        return deliveries

    async def settle(self, settlements: Sequence[Settlement], *, worker: str) -> set[int]:
        if self._dies == "handled":
            die()
        return await self._link.settle(settlements, worker=worker)


class WatchedStore(SqlAlchemyStore):
    """A store that writes down what is claimed, and may die at one point."""

    ledger: Ledger
    dies: str | None

    async def open(self) -> SqlAlchemyExecutor:
        executor = await super().open()
        return MortalExecutor(executor._connection) if self.dies == "settling" else executor

    async def connect(self) -> Any:
        return WatchedLink(await super().connect(), self.ledger, self.dies)


def make_app(orders: Orders) -> FastStream:
    engine = create_async_engine(orders.url)
    store = WatchedStore(engine, names_of(make_outbox_tables(MetaData())))
    store.ledger = ledger = Ledger(Path(orders.ledger))
    store.dies = orders.dies
    broker = OutboxBroker(store, logger=None, stuck_timeout=orders.stuck_timeout)
    retry = ConstantRetry(delay_seconds=orders.retry)
    failed: set[int] = set()

    @broker.subscriber(orders.queues, retry_strategy=retry, **orders.options)
    async def handle(number: int, message: OutboxMessage) -> None:
        run = ledger.begin(number, message.deliveries)
        if number in orders.deadly:
            os._exit(1)
        if number in orders.blocking:
            time.sleep(orders.blocks)  # noqa: ASYNC251  what a careless handler does
        if number in orders.spinning:
            re.match("(a+)+$", "a" * 60 + "b")
        await asyncio.sleep(orders.seconds)
        if orders.dies == "running":
            die()
        while orders.gate and not os.path.exists(orders.gate):  # noqa: ASYNC110, ASYNC240  a test opens it from outside
            await asyncio.sleep(0.01)
        ledger.end(run)
        if number in orders.rejected:
            await message.reject()
        if number in orders.failing and number not in failed:
            failed.add(number)
            raise RuntimeError(f"message {number} fails as ordered")

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
