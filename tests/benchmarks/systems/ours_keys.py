"""Claims of messages with a key beside claims of messages without one: the links of a worker, in claims of up to 500."""

from collections.abc import AsyncIterator
from time import perf_counter

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from outbox_core.claimer import _Keys
from outbox_core.message import Delivery
from outbox_core.outcome import Ack
from outbox_core.schema import Tables
from outbox_core.slots import LONGEST_RUN
from outbox_core.store import Band, KeyWant, Link, Settlement, Want
from outbox_sqlalchemy.store import SqlAlchemyStore
from tests.benchmarks.systems import ours
from tests.benchmarks.workloads import Result, vacuum

AT_ONCE = 500  # messages a claim
LEASE = 30.0  # seconds

# About 300 bytes a row, the keys in turn.
FILL = """INSERT INTO bench_ours (message_id, queue, key, payload, headers, next_attempt_at)
    SELECT gen_random_uuid(), 'orders', :prefix || n % :keys, CAST(repeat('x', 200) AS bytea),
           '{"content-type": "application/json"}', statement_timestamp()
    FROM generate_series(0, :messages - 1) AS n"""
BLOCK = """UPDATE bench_ours SET attempts_count = 1, next_attempt_at = statement_timestamp() + interval '1 hour'
    WHERE id IN (SELECT min(id) FROM bench_ours WHERE key LIKE 'blocked-%' GROUP BY key)"""


async def drain(dsn: str, messages: int, *, keys: int = 0, blocked: int = 0, blocked_keys: int = 1) -> Result:
    """Claim *messages* that have *keys* keys, none at all for 0, and ack them; *blocked* others lie in front.

    The first of each of the *blocked_keys* waits for another attempt.
    """
    engine = await ours.prepare(dsn)
    blocked = min(blocked, messages * 5 // 2)  # a smoke run does not fill a table for seconds
    await fill(engine, blocked, "blocked-", blocked_keys)
    await fill(engine, messages, "key-" if keys else None, keys or 1)
    async with engine.begin() as connection:
        await connection.execute(text(BLOCK))
    await vacuum(engine, "bench_ours")
    store = SqlAlchemyStore(engine, Tables("bench_ours"))
    claiming, settling = await store.connect(), await store.connect()
    claims = claimed_keyed(claiming) if keys else claimed_unkeyed(claiming)
    claimed = settled = 0.0
    handled = 0
    while handled < messages:
        began = perf_counter()
        deliveries = await anext(claims)
        between = perf_counter()
        if deliveries:
            await settling.settle([Settlement(delivery, Ack()) for delivery in deliveries], worker="bench")
        claimed, settled = claimed + between - began, settled + perf_counter() - between
        handled += len(deliveries)
    await claiming.close()
    await settling.close()
    await engine.dispose()
    return Result({"claimed/s": messages / claimed, "and settled/s": messages / (claimed + settled)})


async def fill(engine: AsyncEngine, messages: int, prefix: str | None, keys: int) -> None:
    async with engine.begin() as connection:
        await connection.execute(text(FILL), {"messages": messages, "prefix": prefix, "keys": keys})


async def claimed_unkeyed(link: Link) -> AsyncIterator[list[Delivery]]:
    since = None
    while True:
        deliveries = await link.claim([Want(Band("orders"), AT_ONCE, since)], total=AT_ONCE, lease=LEASE)
        since = deliveries[0].due if deliveries else None
        yield deliveries


async def claimed_keyed(link: Link) -> AsyncIterator[list[Delivery]]:
    """Round after round over the keys, as a worker with one slot goes: not again at once over those that are blocked."""
    keys = _Keys()
    while True:
        want = KeyWant("orders", AT_ONCE, LONGEST_RUN, keys.after("orders"), keys=1)
        claim = await link.claim_keyed(want, lease=LEASE)
        keys.learn(want, claim)
        yield claim.deliveries
