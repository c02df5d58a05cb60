"""A worker process of an earlier version of the packages, whose folder comes before today's.

    python -m tests.crash.previous_worker '{"url": …, "product": …, "ledger": …, …}'

See `Orders`. It uses nothing but what was public then, and still is.
"""

import asyncio
import json
import logging
import sys
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from faststream import FastStream
from sqlalchemy import MetaData, create_engine, make_url
from sqlalchemy.ext.asyncio import create_async_engine

from tests.crash.ledger import Ledger


@dataclass(frozen=True, kw_only=True)
class Orders:
    """`product`: the folder of the packages. `creates`: make the tables and end. `seconds`: how long a handler runs."""

    url: str
    product: str
    ledger: str = ""
    creates: bool = False
    seconds: float = 0.0
    options: dict[str, Any] = field(default_factory=dict)


def create_tables(orders: Orders) -> None:
    from outbox_sqlalchemy import make_outbox_tables

    make_outbox_tables(metadata := MetaData())
    metadata.create_all(create_engine(make_url(orders.url).set(drivername="postgresql+psycopg")))


def make_app(orders: Orders) -> FastStream:
    from outbox_sqlalchemy import OutboxBroker, OutboxMessage, make_outbox_tables

    engine = create_async_engine(orders.url)
    broker = OutboxBroker(engine, outbox_table=make_outbox_tables(MetaData()), logger=None)
    ledger = Ledger(Path(orders.ledger))

    @broker.subscriber("crash", **orders.options)
    async def handle(number: int, message: OutboxMessage) -> None:
        run = ledger.begin(number, message.deliveries)
        await asyncio.sleep(orders.seconds)
        ledger.end(run)

    def say_so() -> None:
        logging.info("consuming")

    return FastStream(broker, logger=None, after_startup=[say_so], after_shutdown=[engine.dispose])


def main() -> None:
    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s", level=logging.INFO)
    orders = Orders(**json.loads(sys.argv[1]))
    sys.path.insert(0, orders.product)
    if orders.creates:
        create_tables(orders)
        return
    with suppress(KeyboardInterrupt):
        asyncio.run(make_app(orders).run())


if __name__ == "__main__":
    main()
