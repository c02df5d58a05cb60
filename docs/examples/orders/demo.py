"""The order service while its worker is killed: nothing that was committed may be lost.

    orders are placed --> half-way: SIGKILL, messages in hand --> worker started again --> queue empty
        --> the bug behind the dead letter is fixed, redrive --> queue empty --> SIGTERM --> count

`make demo` runs it on a new SQLite file, `make demo DSN=postgresql+asyncpg://…` in a new database on that server. It exits
with 1 if an order was lost, shipped without having been committed, or left behind.
"""

import argparse
import asyncio
import random
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from time import monotonic

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncEngine, async_sessionmaker

from outbox_core.message import QueueStats
from outbox_sqlalchemy import OutboxBroker

from models import Base, Order, Setting, Shipment, outbox
from service import PRODUCTS, CardDeclined, place_order
from stage import Worker, empty_database

DEADLINE = 55  # seconds for everything
CUSTOMERS = 4
CARDS = ["4242"] * 6 + ["4000"]  # the last one is declined
BROKEN = "RUG-09"  # its weight cannot be read until the bug is fixed, so its order dies
SELLABLE = [sku for sku in PRODUCTS if sku != BROKEN]

started = monotonic()


class Demo:
    """One run of the story, and what is counted on the way."""

    def __init__(self, engine: AsyncEngine, orders: int) -> None:
        self.engine = engine
        self.orders = orders
        self.new_session = async_sessionmaker(engine)
        self.broker = OutboxBroker(engine, outbox_table=outbox)  # only looks and redrives; the worker consumes
        self.worker = Worker(engine.url)
        self.placed = Counter[str]()
        self.half_way = asyncio.Event()

    async def run(self) -> bool:
        """Whether everything came out as promised."""
        async with self.engine.begin() as connection:
            await connection.run_sync(Base.metadata.create_all)
        await self.start_worker()
        try:
            async with asyncio.TaskGroup() as at_once:
                at_once.create_task(self.place_orders())
                at_once.create_task(self.kill_worker_half_way())
            await self.until_empty()
            await self.fix_bug_and_redrive()
            await self.until_empty()
            say(f"worker stopped with SIGTERM, exit code {await self.worker.stop()}")
        except BaseException:
            print(self.worker.read_log(), file=sys.stderr)
            raise
        finally:
            await self.worker.kill()
        return await self.report()

    async def start_worker(self) -> None:
        say(f"worker started, process {await self.worker.start()}, on {self.engine.dialect.name}")

    # The customers

    async def place_orders(self) -> None:
        skus = iter([random.choice(SELLABLE), BROKEN, *random.choices(SELLABLE, k=self.orders - 2)])
        await asyncio.gather(*(self.shop(f"customer {number}", skus) for number in range(CUSTOMERS)))
        say(f"{self.placed['committed']} orders committed, {self.placed['rolled back']} rolled back")

    async def shop(self, customer: str, skus: Iterator[str]) -> None:
        for sku in skus:
            card = CARDS[0] if sku == BROKEN else random.choice(CARDS)
            try:
                async with self.new_session.begin() as session:
                    await place_order(session, customer, sku, random.randint(1, 3), card)
                self.placed["committed"] += 1
            except CardDeclined:
                self.placed["rolled back"] += 1
            if self.placed.total() >= self.orders // 2:
                self.half_way.set()
            await asyncio.sleep(0.02)

    # The trouble

    async def kill_worker_half_way(self) -> None:
        await self.half_way.wait()
        in_hand = 0
        while not in_hand:
            await self.until(lambda queue: queue.leased > 0)
            await self.worker.kill()
            in_hand = (await self.look()).leased  # the leases outlive their owner
            say(f"worker killed with SIGKILL, {in_hand} messages in hand")
            await self.start_worker()

    async def fix_bug_and_redrive(self) -> None:
        self.dead = (await self.look()).dead
        async with self.new_session.begin() as session:
            session.add(Setting(name="decimal_comma", value="allowed"))
        self.redriven = await self.broker.redrive("orders")
        say(f"bug fixed, {self.redriven} of {self.dead} dead letters redriven")

    # The end

    async def look(self) -> QueueStats:
        return (await self.broker.stats())["orders"]

    async def until(self, condition: Callable[[QueueStats], bool]) -> None:
        while not condition(await self.look()):
            self.worker.check()
            await asyncio.sleep(0.01)

    async def until_empty(self) -> None:
        await self.until(lambda queue: not queue.ready + queue.scheduled + queue.leased)
        say(f"queue empty, {(await self.look()).dead} dead")

    async def report(self) -> bool:
        async with self.new_session() as session:
            committed = set(await session.scalars(select(Order.id)))
            shipments = list(await session.scalars(select(Shipment)))
        shipped = {shipment.order_id for shipment in shipments}
        left = len(await self.broker.fetch_unprocessed()) + (await self.look()).dead
        lost, invented = committed - shipped, shipped - committed
        print_table(
            {
                "orders committed": len(committed),
                "orders rolled back": self.placed["rolled back"],
                "handled": len(shipped),
                "duplicates (runs beyond one)": sum(shipment.runs - 1 for shipment in shipments),
                "retried": sum(shipment.attempt > 1 for shipment in shipments),
                "dead": self.dead,
                "redriven": self.redriven,
                "lost": len(lost),
                "handled but never committed": len(invented),
                "left in the outbox": left,
                "seconds": f"{monotonic() - started:.1f}",
            }
        )
        return not (lost or invented or left) and self.dead == self.redriven == 1


def say(what: str) -> None:
    print(f"{monotonic() - started:5.1f} s  {what}", flush=True)


def print_table(rows: dict[str, object]) -> None:
    print()
    for name, value in rows.items():
        print(f"  {name:<30}{value:>8}")


async def main(dsn: str, orders: int) -> bool:
    async with asyncio.timeout(DEADLINE), empty_database(dsn) as engine:
        return await Demo(engine, orders).run()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Place orders, kill the worker, and count what became of them.")
    parser.add_argument("--dsn", default="", help="a PostgreSQL server, as SQLAlchemy takes it; empty: an SQLite file")
    parser.add_argument("--orders", type=int, default=300)
    arguments = parser.parse_args()
    sys.exit(not asyncio.run(main(arguments.dsn, arguments.orders)))
