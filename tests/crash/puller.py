"""A process that pulls messages, and never comes to an end with some of them.

    python -m tests.crash.puller '{"url": …, "ledger": …, …}'

See `Orders`. What kills it is the test's real SIGKILL.
"""

import asyncio
import json
import logging
import os
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sqlalchemy import MetaData
from sqlalchemy.ext.asyncio import create_async_engine

from outbox_sqlalchemy import OutboxBroker, make_outbox_tables
from tests.crash.ledger import Ledger


@dataclass(frozen=True, kw_only=True)
class Orders:
    """`at_once`: how many pull side by side. `gate`: a file for which they wait before they ack. `deadly`: never acked."""

    url: str
    ledger: str
    gate: str
    deadly: tuple[int, ...] = ()
    at_once: int = 1
    options: dict[str, Any] = field(default_factory=dict)


async def run(orders: Orders) -> None:
    broker = OutboxBroker(create_async_engine(orders.url), outbox_table=make_outbox_tables(MetaData()), logger=None)
    subscriber = broker.subscriber("crash", **orders.options)
    ledger = Ledger(Path(orders.ledger))

    async def pull() -> None:
        async for message in subscriber:
            number = await message.decode()
            run = ledger.begin(number, message.deliveries)
            while number in orders.deadly or not os.path.exists(orders.gate):  # noqa: ASYNC110, ASYNC240  as a worker's
                await asyncio.sleep(0.01)
            ledger.end(run)
            await message.ack()

    await broker.start()
    logging.info("consuming")
    await asyncio.gather(*(pull() for _ in range(orders.at_once)))


def main() -> None:
    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s", level=logging.INFO)
    asyncio.run(run(Orders(**json.loads(sys.argv[1]))))


if __name__ == "__main__":
    main()
