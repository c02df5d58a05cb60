"""What the demo does, and what it counts.

    half of the orders --> SIGKILL the web site's worker
        --> the other half, goods over HTTP, and meanwhile SIGKILL the shipping service and start it again
        --> the web site's worker started again --> outbox empty --> count

It runs in a process of its own, which places orders and asks over HTTP, and handles nothing.
"""

import asyncio
import sys
from dataclasses import asdict
from time import monotonic

import httpx
from asgiref.sync import sync_to_async
from django.core.management import call_command
from django.db import connections
from django.db.models import Sum
from sqlalchemy import func, select

from outbox_django.models import DeadLetter, OutboxMessage

from messages import GoodsReceived
from orders.models import Order, Product
from orders.placing import place_order
from shipping.models import Receipt, Shipment, create_tables
from shipping.sessions import engine, new_session
from stage import Worker, listen

SKUS = ["MUG-01", "TEA-07", "POT-02"]
RECEIPTS = 40

started = monotonic()


class Story:
    """One run."""

    def __init__(self, orders: int) -> None:
        self.orders = orders
        self.socket = listen()
        host, port = self.socket.getsockname()
        self.client = httpx.AsyncClient(base_url=f"http://{host}:{port}", trust_env=False)
        self.website = Worker("Django's worker", "manage.py", "outbox_worker")
        service = ("-m", "uvicorn", "shipping.service:app", "--fd", str(self.socket.fileno()))
        self.shipping = Worker("the FastAPI service", *service, sockets=[self.socket])
        self.workers = (self.website, self.shipping)
        self.confirmed = 0  # pieces
        self.repeated = 0  # requests

    async def run(self) -> bool:
        """Whether everything came out as promised."""
        try:
            await self.make_tables()
            await self.start(self.website)
            await self.start(self.shipping)
            await self.place_orders(self.orders // 2)
            await self.kill_holding("orders.shipped", self.website)
            async with asyncio.TaskGroup() as at_once:
                at_once.create_task(self.place_orders(self.orders - self.orders // 2))
                at_once.create_task(self.receive_goods(RECEIPTS))
                at_once.create_task(self.kill_holding("orders.placed", self.shipping, start_again=True))
            await self.start(self.website)
            await self.until_empty()
            say(f"/health of {self.shipping.name} answers {(await self.client.get('/health')).status_code}")
            for worker in self.workers:  # uvicorn shuts down in order, and then ends by the signal: -15
                say(f"{worker.name} stopped with SIGTERM, exit code {await worker.stop()}")
            return await self.report()
        except BaseException:
            print(*(worker.read_log() for worker in self.workers), sep="\n", file=sys.stderr)
            raise
        finally:
            await asyncio.gather(*(worker.kill() for worker in self.workers))
            await self.client.aclose()
            self.socket.close()
            await engine.dispose()
            await sync_to_async(connections.close_all)()

    async def make_tables(self) -> None:
        await sync_to_async(call_command)("migrate", verbosity=0)
        await create_tables()
        await Product.objects.abulk_create([Product(sku=sku) for sku in SKUS])
        say(f"tables made by Django's migrations, on {engine.dialect.name}")

    async def start(self, worker: Worker) -> None:
        say(f"{worker.name} started, process {await worker.start()}")

    # Both sides publish

    async def place_orders(self, count: int) -> None:
        for number in range(count):
            await sync_to_async(place_order)(SKUS[number % len(SKUS)], quantity=1)
        say(f"{count} orders placed, with Django")

    async def receive_goods(self, count: int) -> None:
        for note in range(count):
            goods = GoodsReceived(SKUS[note % len(SKUS)], quantity=note)
            while not await self.confirms(note, goods):
                self.repeated += 1
            self.confirmed += goods.quantity
        say(f"goods received {count} times, over HTTP")

    async def confirms(self, note: int, goods: GoodsReceived) -> bool:
        """Whether the shipping service answers that it has them. If not, nobody knows whether it has."""
        try:
            answer = await self.client.put(f"/receipts/{note}", json=asdict(goods))
        except httpx.TransportError:
            self.check_workers()
            return False
        return answer.is_success

    # The trouble

    async def kill_holding(self, queue: str, worker: Worker, start_again: bool = False) -> None:
        held = OutboxMessage.objects.filter(queue=queue, acquired_token__isnull=False)
        while not await held.aexists():
            self.check_workers()
            await asyncio.sleep(0.005)
        await worker.kill()
        say(f"{worker.name} killed with SIGKILL, {await held.acount()} messages in hand")
        if start_again:
            await self.start(worker)

    def check_workers(self) -> None:
        for worker in self.workers:
            worker.check()

    # The end

    async def until_empty(self) -> None:
        while await OutboxMessage.objects.aexists():
            self.check_workers()
            await asyncio.sleep(0.02)
        say("outbox empty")

    async def report(self) -> bool:
        async with new_session() as session:
            shipped, runs = (await session.execute(select(func.count(), func.sum(Shipment.runs)))).one()
            received = await session.scalar(select(func.sum(Receipt.quantity)))
        placed = await Order.objects.acount()
        told = await Order.objects.filter(state=Order.State.SHIPPED).acount()
        stock = (await Product.objects.aaggregate(total=Sum("stock")))["total"]
        dead = await DeadLetter.objects.acount()
        print_table(
            {
                "orders placed, in Django": placed,
                "shipped, in FastAPI": shipped,
                "marked as shipped, in Django": told,
                "pieces confirmed, over HTTP": self.confirmed,
                "received, in FastAPI": received,
                "added to the stock, in Django": stock,
                "requests repeated": self.repeated,
                "duplicates (runs beyond one)": runs - shipped,
                "lost": (placed - told) + (self.confirmed - stock),
                "dead": dead,
                "seconds": f"{monotonic() - started:.1f}",
            }
        )
        return self.orders == placed == shipped == told and self.confirmed == received == stock and not dead


def say(what: str) -> None:
    print(f"{monotonic() - started:5.1f} s  {what}", flush=True)


def print_table(rows: dict[str, object]) -> None:
    print()
    for name, value in rows.items():
        print(f"  {name:<34}{value:>6}")
