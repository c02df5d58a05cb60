"""procrastinate 3.10 on psycopg, with its defaults and with the best settings found in a sweep."""

import asyncio
from time import perf_counter
from typing import Any

import psycopg
from procrastinate import App, PsycopgConnector
from sqlalchemy import make_url

from tests.benchmarks.workloads import Countdown, Result, adding, body
from tests.databases import execute, plain


async def _prepare(dsn: str) -> App:
    url = make_url(dsn)
    execute(url, "DROP SCHEMA public CASCADE")
    execute(url, "CREATE SCHEMA public")
    execute(url, "CREATE TABLE bench_orders (id bigserial PRIMARY KEY, name text)")
    app = App(connector=PsycopgConnector(conninfo=plain(url)))
    await app.open_async()
    await app.schema_manager.apply_schema_async()
    return app


async def publish_one(dsn: str, messages: int) -> Result:
    """Its documented way to publish in a transaction: a connection of the application's, given to `defer_async`."""
    app = await _prepare(dsn)
    task = app.task(queue="orders", name="handle")(_nothing)
    async with await psycopg.AsyncConnection.connect(plain(make_url(dsn))) as connection:

        async def transaction(number: int, publish: bool) -> None:
            async with connection.transaction():
                await connection.execute("INSERT INTO bench_orders (name) VALUES (%s)", ["order"])
                if publish:
                    await task.configure(connection=connection).defer_async(body=body(number))

        result = await adding(messages, transaction)
    await app.close_async()
    return result


async def publish_batch(dsn: str, messages: int) -> Result:
    app = await _prepare(dsn)
    task = app.task(queue="orders", name="handle")(_nothing)
    rounds = max(1, messages // 1_000)
    started = perf_counter()
    for _ in range(rounds):
        await task.batch_defer_async(*({"body": body(number)} for number in range(1_000)))
    wall = perf_counter() - started
    await app.close_async()
    return Result({"msg/s": rounds * 1_000 / wall})


async def drain(dsn: str, messages: int, *, best: bool = False) -> Result:
    app = await _prepare(dsn)
    countdown = Countdown(messages)

    @app.task(queue="orders", name="handle")
    async def handle(body: dict[str, Any]) -> None:
        countdown.one()

    await handle.batch_defer_async(*({"body": body(number)} for number in range(messages)))
    execute(make_url(dsn), "VACUUM ANALYZE procrastinate_jobs")
    options: dict[str, Any] = {"concurrency": 30, "delete_jobs": "always"} if best else {}
    countdown.start()
    worker = asyncio.create_task(app.run_worker_async(install_signal_handlers=False, **options))
    await countdown.done.wait()
    worker.cancel()
    await asyncio.gather(worker, return_exceptions=True)
    await app.close_async()
    return countdown.result()


async def _nothing(body: dict[str, Any]) -> None:
    pass
