"""The reference: asyncpg and hand-written statements on our table, with a lease, a fence and the same durability."""

import json
from time import perf_counter, process_time
from uuid import uuid4

import asyncpg
from sqlalchemy import make_url

from tests.benchmarks.systems import ours
from tests.benchmarks.workloads import Result, body

CLAIM = """
UPDATE bench_ours SET acquired_token = $1, leased_until = statement_timestamp() + interval '30 s'
WHERE ctid = ANY (ARRAY(
    SELECT ctid FROM bench_ours
    WHERE queue = 'orders' AND priority = 0 AND failure_reason IS NULL AND next_attempt_at <= statement_timestamp()
      AND (leased_until IS NULL OR leased_until <= statement_timestamp())
    ORDER BY next_attempt_at, id LIMIT 500 FOR UPDATE SKIP LOCKED))
RETURNING id, payload
"""
INSERT = """
INSERT INTO bench_ours (message_id, queue, payload, headers, next_attempt_at)
SELECT gen_random_uuid(), 'orders', payload, '{"content-type": "application/json"}', statement_timestamp()
FROM unnest($1::bytea[]) AS message (payload)
"""


async def connect(dsn: str) -> asyncpg.Connection:
    url = make_url(dsn).set(drivername="postgresql")
    return await asyncpg.connect(url.render_as_string(hide_password=False))


async def publish_batch(dsn: str, messages: int) -> Result:
    await (await ours.prepare(dsn)).dispose()
    connection = await connect(dsn)
    bodies = [body(number) for number in range(1_000)]
    rounds = max(1, messages // 1_000)
    started = perf_counter()
    for _ in range(rounds):
        async with connection.transaction():
            await connection.execute(INSERT, [json.dumps(one).encode() for one in bodies])
    wall = perf_counter() - started
    await connection.close()
    return Result({"msg/s": rounds * 1_000 / wall})


async def drain(dsn: str, messages: int, *, best: bool = False) -> Result:
    await (await ours.prepare(dsn)).dispose()
    connection = await connect(dsn)
    for start in range(0, messages, 1_000):
        bodies = [json.dumps(body(n)).encode() for n in range(start, min(messages, start + 1_000))]
        await connection.execute(INSERT, bodies)
    await connection.execute("VACUUM ANALYZE bench_ours")
    wall, cpu, handled = perf_counter(), process_time(), 0
    while handled < messages:
        token = uuid4()
        rows = await connection.fetch(CLAIM, token)
        for row in rows:
            json.loads(row["payload"])
        ids = [row["id"] for row in rows]
        await connection.execute("DELETE FROM bench_ours WHERE id = ANY ($1) AND acquired_token = $2", ids, token)
        handled += len(rows)
    wall, cpu = perf_counter() - wall, process_time() - cpu
    await connection.close()
    return Result({"msg/s": messages / wall, "CPU µs/msg": cpu / messages * 1e6})
