"""Two claims of one key that begin before either has committed, which only PostgreSQL lets happen; and their plans."""

import asyncio
from collections.abc import Sequence
from functools import partial

from outbox_core.envelope import compose
from outbox_core.outcome import Ack
from outbox_core.sql import Executor, Row, Statement, begun
from outbox_core.sql.store import SqlLink
from tests.contract.harness import Outbox, bodies, claim_keyed, settle, until


class SlowCommit(Executor):
    """Leaves a claim of keys uncommitted until it is told to go on."""

    def __init__(self, executor: Executor) -> None:
        self._executor = executor
        self.claimed, self.go_on = asyncio.Event(), asyncio.Event()

    async def execute(self, statement: Statement) -> Sequence[Row]:
        if "SKIP LOCKED" not in statement.text:
            return await self._executor.execute(statement)
        async with begun(self._executor, "BEGIN"):
            rows = await self._executor.execute(statement)
            self.claimed.set()
            await self.go_on.wait()
        return rows

    def together(self):  # type: ignore[no-untyped-def]  # the protocol's
        return self._executor.together()

    async def close(self) -> None:
        await self._executor.close()


class SlowLock(SlowCommit):
    """Lets a claim of keys choose its rows, and keeps it from locking them until it is told to go on."""

    async def execute(self, statement: Statement) -> Sequence[Row]:
        chosen = "(SELECT ctid FROM candidate)"
        if chosen not in statement.text:
            return await self._executor.execute(statement)
        waits = "(SELECT candidate.ctid FROM candidate, (SELECT pg_advisory_xact_lock_shared(17) OFFSET 0) AS gate)"
        return await self._executor.execute(Statement(statement.text.replace(chosen, waits), statement.parameters))


async def slow_link(outbox: Outbox) -> tuple[SqlLink, SlowCommit]:
    link = await outbox.link()
    assert isinstance(link, SqlLink)
    slow = SlowCommit(link._executor)
    return SqlLink(slow, link._dialect), slow


async def test_claims_that_do_not_see_each_other_do_not_both_keep_a_key(postgres_outbox: Outbox) -> None:
    """What was published late, with a lower id, is claimed while a claim of what came after it is not committed."""
    outbox, other = postgres_outbox, await postgres_outbox.link()
    link, slow = await slow_link(outbox)
    async with outbox.transaction() as late:
        await outbox.store.insert([compose("a1", "orders", key="a")], late)
        await outbox.publish(compose("a2", "orders", key="a"), compose("b1", "orders", key="b"))
        claiming = asyncio.create_task(claim_keyed(link))
        await slow.claimed.wait()

    first = await claim_keyed(other)
    slow.go_on.set()
    second = await claiming

    assert bodies(first) == ["a1"]
    assert bodies(second) == ["b1"]
    assert [message.leased for message in await outbox.pending()] == [True, False, True]


async def test_a_row_that_was_changed_since_the_claim_chose_it_ends_its_run(postgres_outbox: Outbox) -> None:
    outbox, other = postgres_outbox, await postgres_outbox.link()
    link = await outbox.link()
    assert isinstance(link, SqlLink)
    assert isinstance(other, SqlLink)
    await outbox.publish(*(compose(f"a{number}", "orders", key="a") for number in range(4)))
    run, waiting = (
        other._executor.execute,
        "SELECT FROM pg_locks WHERE locktype = 'advisory' AND objid = 17 AND NOT granted",
    )
    await run(Statement("SELECT pg_advisory_lock(17)", {}))

    claiming = asyncio.create_task(claim_keyed(SqlLink(SlowLock(link._executor), link._dialect)))
    await until(partial(run, Statement(f"SELECT EXISTS ({waiting}) WHERE EXISTS ({waiting})", {})))
    await run(
        Statement(f"UPDATE {link._dialect.outbox} SET attempts_count = 7 WHERE payload = CAST('a2' AS bytea)", {})
    )
    await run(Statement("SELECT pg_advisory_unlock(17)", {}))

    assert bodies(await claiming) == ["a0", "a1"]
    assert [message.leased for message in await outbox.pending()] == [True, True, False, False]
    for delivery in await claiming:
        assert await claim_keyed(other) == []
        await settle(link, delivery, Ack())
    assert bodies(await claim_keyed(other)) == ["a2", "a3"]


async def test_a_row_that_somebody_has_locked_is_not_passed_over(postgres_outbox: Outbox) -> None:
    outbox, other = postgres_outbox, await postgres_outbox.link()
    link, slow = await slow_link(outbox)
    await outbox.publish(*(compose(f"a{number}", "orders", key="a") for number in range(3)))
    claiming = asyncio.create_task(claim_keyed(link))
    await slow.claimed.wait()

    assert await claim_keyed(other) == []
    slow.go_on.set()
    assert bodies(await claiming) == ["a0", "a1", "a2"]
