"""PgQueuer 1.6 on asyncpg, with its defaults and with the best settings found in a sweep."""

import json
from time import perf_counter
from typing import Any

import asyncpg
from pgqueuer import AsyncpgDriver, Job, PgQueuer, Queries

from tests.benchmarks.systems.raw import connect
from tests.benchmarks.workloads import Countdown, Result, adding, body


async def _prepare(dsn: str) -> tuple[asyncpg.Connection, Queries]:
    connection = await connect(dsn)
    queries = Queries(AsyncpgDriver(connection))
    if await queries.schema_is_installed():
        await queries.uninstall()
    await queries.install()
    await connection.execute("CREATE TABLE IF NOT EXISTS bench_orders (id bigserial PRIMARY KEY, name text)")
    return connection, queries


async def publish_one(dsn: str, messages: int) -> Result:
    connection, queries = await _prepare(dsn)

    async def transaction(number: int, publish: bool) -> None:
        async with connection.transaction():
            await connection.execute("INSERT INTO bench_orders (name) VALUES ($1)", "order")
            if publish:
                await queries.enqueue("orders", json.dumps(body(number)).encode())

    result = await adding(messages, transaction)
    await connection.close()
    return result


async def publish_batch(dsn: str, messages: int) -> Result:
    connection, queries = await _prepare(dsn)
    rounds = max(1, messages // 1_000)
    started = perf_counter()
    for _ in range(rounds):
        async with connection.transaction():
            await _fill(queries, 1_000)
    wall = perf_counter() - started
    await connection.close()
    return Result({"msg/s": rounds * 1_000 / wall})


async def drain(dsn: str, messages: int, *, best: bool = False) -> Result:
    connection, queries = await _prepare(dsn)
    for start in range(0, messages, 1_000):
        await _fill(queries, min(1_000, messages - start))
    await connection.execute("VACUUM ANALYZE pgqueuer")
    worker = PgQueuer(AsyncpgDriver(connection))
    countdown = Countdown(messages)

    @worker.entrypoint("orders")
    async def handle(job: Job) -> None:
        json.loads(job.payload or b"")
        countdown.one()
        if countdown.done.is_set():
            worker.shutdown.set()

    options: dict[str, Any] = {"batch_size": 500} if best else {}
    countdown.start()
    await worker.run(**options)
    return countdown.result()


async def _fill(queries: Queries, count: int) -> None:
    payloads: list[bytes | None] = [json.dumps(body(number)).encode() for number in range(count)]
    await queries.enqueue(["orders"] * count, payloads, [0] * count)
