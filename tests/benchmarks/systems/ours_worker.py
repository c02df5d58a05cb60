"""A worker of `ours` in a process of its own: says "ready", begins at "go", and at "stop" says when its last handler ran.

python -m tests.benchmarks.systems.ours_worker DSN MICROSECONDS
"""

import asyncio
import sys
from time import perf_counter

from sqlalchemy.ext.asyncio import create_async_engine

from outbox_sqlalchemy import OutboxBroker
from tests.benchmarks.systems.ours import outbox


async def main(dsn: str, computing: float) -> None:
    """*computing*: seconds for which a handler keeps its processor busy."""
    sys.stdout, answers = sys.stderr, sys.stdout  # the default logger writes to the first
    broker = OutboxBroker(create_async_engine(dsn), outbox_table=outbox)
    last = 0.0

    @broker.subscriber("orders")
    async def handle(body: dict) -> None:  # type: ignore[type-arg]  # as users write it
        nonlocal last
        last = perf_counter()
        while perf_counter() - last < computing:
            pass

    print("ready", file=answers, flush=True)
    await asyncio.to_thread(sys.stdin.readline)
    async with broker:
        await broker.start()
        await asyncio.to_thread(sys.stdin.readline)
    print(last, file=answers, flush=True)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], float(sys.argv[2]) / 1e6))
