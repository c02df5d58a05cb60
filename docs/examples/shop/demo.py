"""Two frameworks, one outbox table: the web site is Django, the shipping service is FastAPI and SQLAlchemy.

    Django      place_order ── orders.placed ──▶ ship            FastAPI
    Django     mark_shipped ◀── orders.shipped ──┘               FastAPI
    Django     add_to_stock ◀── goods.received ── receive_goods  FastAPI ◀── HTTP

Both processes are killed while they hold messages. `make demo` runs it on a new SQLite file, `make demo DSN=postgresql://…`
in a new database on that server. It exits with 1 if anything was lost, left behind, or counted twice.
"""

import argparse
import asyncio
import os
import sys

import django

from stage import empty_database

DEADLINE = 55  # seconds for everything


async def main(dsn: str, orders: int) -> bool:
    async with asyncio.timeout(DEADLINE), empty_database(dsn) as url:
        os.environ.update(SHOP_DSN=url, DJANGO_SETTINGS_MODULE="website.settings")
        django.setup()
        from story import Story  # the shop can be imported now that it has a database

        return await Story(orders).run()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Let two frameworks share an outbox, kill both, and count.")
    parser.add_argument("--dsn", default="", help="a PostgreSQL server, as a URL; empty: an SQLite file")
    parser.add_argument("--orders", type=int, default=50)
    arguments = parser.parse_args()
    sys.exit(not asyncio.run(main(arguments.dsn, arguments.orders)))
