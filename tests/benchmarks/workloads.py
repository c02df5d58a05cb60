"""What is measured, the same for every system: a system is a module with the coroutines that these need."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from statistics import median
from time import perf_counter, process_time

from sqlalchemy import MetaData, text
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

PADDING = "x" * 160


@dataclass(frozen=True, slots=True)
class Result:
    """One run: a rate (higher is better) or a duration in microseconds (lower is better), by name."""

    figures: dict[str, float]

    def as_json(self) -> str:
        return json.dumps(self.figures)


def body(number: int) -> dict[str, object]:
    """About 200 bytes of JSON."""
    return {"id": number, "customer": f"customer-{number % 100}", "pad": PADDING}


async def empty_tables(dsn: str, metadata: MetaData) -> AsyncEngine:
    """An engine on new tables of *metadata*, with a domain table beside them."""
    engine = create_async_engine(dsn, pool_size=20)
    async with engine.begin() as connection:
        await connection.run_sync(metadata.drop_all)
        await connection.run_sync(metadata.create_all)
        await connection.execute(text("CREATE TABLE IF NOT EXISTS bench_orders (id bigserial PRIMARY KEY, name text)"))
    return engine


async def vacuum(engine: AsyncEngine, table: str) -> None:
    """As autovacuum would leave a table that was just filled."""
    async with engine.connect() as connection:
        await connection.execution_options(isolation_level="AUTOCOMMIT")
        await connection.execute(text(f"VACUUM ANALYZE {table}"))


class Countdown:
    """Counts handler runs; `done` is set at the last one, and the clocks are read then."""

    def __init__(self, total: int) -> None:
        self.total = total
        self.count = 0
        self.done = asyncio.Event()

    def start(self) -> None:
        self._wall, self._cpu = perf_counter(), process_time()

    def one(self) -> None:
        self.more(1)

    def more(self, count: int) -> None:
        self.count += count
        if self.count >= self.total and not self.done.is_set():
            self.wall, self.cpu = perf_counter() - self._wall, process_time() - self._cpu
            self.done.set()

    def result(self) -> Result:
        return Result({"msg/s": self.total / self.wall, "CPU µs/msg": self.cpu / self.total * 1e6})


async def interleaved(count: int, *works: Callable[[int], Awaitable[object]]) -> list[float]:
    """Microseconds a call, the median of each of *works*, which take turns: a commit's time differs by more than they do."""
    taken: list[list[float]] = [[] for _ in works]
    for number in range(-(count // 10), count):  # the first ones warm up
        for work, times in zip(works, taken, strict=True):
            started = perf_counter()
            await work(number)
            if number >= 0:
                times.append(perf_counter() - started)
    return [median(times) * 1e6 for times in taken]


async def adding(messages: int, transaction: Callable[[int, bool], Awaitable[object]]) -> Result:
    """What a message adds to a transaction, in microseconds; *transaction* takes a number, and whether to publish."""
    alone, published = await interleaved(
        messages, lambda number: transaction(number, False), lambda number: transaction(number, True)
    )
    return Result({"adds µs": published - alone})


def percentiles(milliseconds: list[float]) -> Result:
    return Result({f"p{share * 100:.0f} ms": _percentile(milliseconds, share) for share in (0.5, 0.95, 0.99)})


def _percentile(values: list[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))]
