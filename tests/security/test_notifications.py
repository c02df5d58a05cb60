"""A role that may do nothing in the database can still send notifications."""

import asyncio
import threading
from time import monotonic

import psycopg

from tests.databases import plain
from tests.places import Place, running, statements_of_workers, until

SECONDS = 2.0


async def test_a_flood_of_notifications_costs_some_looks_a_second_and_delays_nobody(postgres: Place) -> None:
    broker = postgres.broker()
    seen: list[str] = []

    @broker.subscriber("orders", max_workers=4, max_fetch_interval=60)
    async def handle(body: str) -> None:
        seen.append(body)

    ended = threading.Event()
    flood = threading.Thread(target=send, args=(postgres, ended))
    with statements_of_workers() as sent:
        async with running(broker):
            flood.start()
            try:
                await asyncio.sleep(0.5)
                sent.clear()
                await asyncio.sleep(SECONDS)
                claims = len([statement for statement in sent if statement.startswith("UPDATE")])
                began = monotonic()
                await broker.publish("a", "orders")
                await until(lambda: seen, ["a"])
                took = monotonic() - began
            finally:
                ended.set()
                await asyncio.to_thread(flood.join)

    assert 0 < claims <= 25 * SECONDS
    assert took < 1.0


def send(place: Place, ended: threading.Event) -> None:
    with psycopg.connect(plain(place.url), autocommit=True) as connection:
        while not ended.is_set():
            connection.execute("SELECT pg_notify('outbox_outbox', 'orders') FROM generate_series(1, 10)")
