"""A process that places orders: each is a row of its own and its message, in one transaction.

    python -m tests.crash.shop '{"url": …, "ledger": …, "orders": 1000, …}'

See `Orders`. Every fiftieth transaction is rolled back, so its message must never be seen. When the database fails, the
shop goes on with the next number; whether an order exists, the table `orders` knows and nobody else.
"""

import json
import logging
import sys
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from time import monotonic, sleep

from sqlalchemy import Column, Connection, Engine, Integer, MetaData, Table, create_engine, insert
from sqlalchemy.exc import DBAPIError

from outbox_sqlalchemy import OutboxBroker, make_outbox_tables
from tests.crash.ledger import Ledger

METADATA = MetaData()
ORDERS = Table("orders", METADATA, Column("id", Integer, primary_key=True, autoincrement=False))
EFFECTS = Table(
    "effects", METADATA, Column("message", Integer)
)  # without a primary key: what is done twice is there twice


@dataclass(frozen=True, kw_only=True)
class Orders:
    """`orders`: how many to place, `rate` a second, in bursts of so many at once.

    `first`: the first number; `keys`: the messages have so many, by their numbers. `broken`: numbers whose message
    nobody can decode.
    """

    url: str
    ledger: str
    orders: int
    rate: float
    burst: int = 1
    first: int = 0
    queue: str = "crash"
    keys: int = 0
    broken: tuple[int, ...] = ()


class _RollBack(Exception):
    """Ends a transaction that shall leave nothing."""


class Shop:
    """Places orders on one connection, made again when it is gone."""

    def __init__(self, orders: Orders) -> None:
        self._orders = orders
        self._engine: Engine = create_engine(orders.url, connect_args={"connect_timeout": 5, "prepare_threshold": None})
        self._tables = make_outbox_tables(MetaData())
        self._broker = OutboxBroker(outbox_table=self._tables, logger=None)
        self._ledger = Ledger(Path(orders.ledger))

    def run(self) -> None:
        begun, placed = monotonic(), 0
        for number in count(self._orders.first):
            if placed == self._orders.orders:
                return
            if placed % self._orders.burst == 0:
                sleep(max(0.0, begun + placed / self._orders.rate - monotonic()))
            placed += self._place(number)

    def _place(self, number: int) -> bool:
        """Whether the order was placed, as far as one knows."""
        try:
            with self._engine.begin() as connection:
                self._write(connection, number)
                if number % 50 == 49:
                    raise _RollBack
        except _RollBack:
            return False
        except DBAPIError as error:
            logging.warning("order %s: %s", number, str(error).splitlines()[0])
            sleep(0.1)
            return False
        self._ledger.publish(number)
        return True

    def _write(self, connection: Connection, number: int) -> None:
        connection.execute(insert(ORDERS), {"id": number})
        queue = self._orders.queue
        if number in self._orders.broken:
            broken = {"queue": queue, "payload": b"{%d" % number, "headers": {"content-type": "application/json"}}
            connection.execute(insert(self._tables.outbox), broken)
            return
        key = str(number % self._orders.keys) if self._orders.keys else None
        self._broker.publish_sync(number, queue, session=connection, key=key)


def main() -> None:
    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s", level=logging.INFO)
    Shop(Orders(**json.loads(sys.argv[1]))).run()


if __name__ == "__main__":
    main()
