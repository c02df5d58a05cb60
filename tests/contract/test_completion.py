"""Completing a message in a transaction: what its handler does and the end of the message are one."""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress

import pytest

from outbox_core.completion import TRIES, in_transaction
from outbox_core.envelope import compose
from outbox_core.events import Event, Handled, LeaseLost, Settled
from outbox_core.message import Delivery
from outbox_core.options import ConsumerOptions
from outbox_core.outcome import Ack, Nack, Reject, Retry, Snooze, Vote
from outbox_core.retry import ConstantRetry, NoRetry
from outbox_core.slots import Consumer
from outbox_core.store import Store
from tests.contract.conftest import Work
from tests.contract.harness import Outbox, SqlOutbox, bodies, claim, settle, until


class Abort(Exception):
    """What makes a test's transaction roll back."""


async def all_gone(outbox: Outbox) -> bool:
    return await outbox.pending("orders") == []


# The port


async def test_a_completed_message_is_gone_at_the_commit_and_not_before(outbox: Outbox) -> None:
    link = await outbox.link()
    await outbox.publish(compose("a", "orders"), compose("b", "orders"))
    first, second = await claim(link)

    async with outbox.transaction() as session:
        assert await outbox.store.complete([first], session) == {first.id}
        assert bodies(await outbox.pending()) == ["a", "b"]

    assert bodies(await outbox.pending()) == ["b"]
    assert await settle(link, second, Ack()) == {second.id}


async def test_a_rollback_leaves_the_message_with_its_owner(outbox: Outbox) -> None:
    link = await outbox.link()
    await outbox.publish(compose("a", "orders"))
    (delivery,) = await claim(link)

    with suppress(Abort):
        async with outbox.transaction() as session:
            await outbox.store.complete([delivery], session)
            raise Abort

    assert [message.leased for message in await outbox.pending()] == [True]
    assert await link.extend([delivery], 30.0) == {delivery.id}


async def test_many_are_completed_at_once(outbox: Outbox) -> None:
    link = await outbox.link()
    await outbox.publish(*(compose(str(number), "orders") for number in range(50)))
    deliveries = await claim(link)

    async with outbox.transaction() as session:
        ours = await outbox.store.complete(deliveries, session)

    assert ours == {delivery.id for delivery in deliveries}
    assert await outbox.pending() == []


async def test_only_the_owner_of_the_lease_completes(outbox: Outbox) -> None:
    one, two = await outbox.link(), await outbox.link()
    await outbox.publish(compose("stolen", "orders"), compose("kept", "orders"))
    stale, kept = await claim(one)
    await outbox.age(60)
    (owned,) = await claim(two, limit=1)
    assert owned.id == stale.id

    async with outbox.transaction() as session:
        assert await outbox.store.complete([stale, kept], session) == {kept.id}

    assert bodies(await outbox.pending()) == ["stolen"]
    assert await settle(two, owned, Ack()) == {owned.id}


async def test_what_is_completed_already_is_nobodys(outbox: Outbox) -> None:
    link = await outbox.link()
    await outbox.publish(compose("a", "orders"))
    (delivery,) = await claim(link)
    await settle(link, delivery, Ack())

    async with outbox.transaction() as session:
        assert await outbox.store.complete([delivery], session) == set()


async def test_what_is_published_in_the_transaction_is_committed_with_it(outbox: Outbox) -> None:
    link = await outbox.link()
    await outbox.publish(compose("a", "orders"))
    (delivery,) = await claim(link)

    async with outbox.transaction() as session:
        await outbox.store.insert([compose("b", "mails")], session)
        await outbox.store.complete([delivery], session)
        assert bodies(await outbox.pending()) == ["a"]

    assert bodies(await outbox.pending()) == ["b"]


async def test_what_is_published_in_the_transaction_is_rolled_back_with_it(outbox: Outbox) -> None:
    link = await outbox.link()
    await outbox.publish(compose("a", "orders"))
    (delivery,) = await claim(link)

    with suppress(Abort):
        async with outbox.transaction() as session:
            await outbox.store.complete([delivery], session)
            await outbox.store.insert([compose("b", "mails")], session)
            raise Abort

    assert bodies(await outbox.pending()) == ["a"]


async def test_the_stores_own_transaction_is_a_session(outbox: Outbox) -> None:
    link = await outbox.link()
    await outbox.publish(compose("a", "orders"))
    (delivery,) = await claim(link)

    with suppress(Abort):
        async with outbox.store.transaction() as session:
            await outbox.store.complete([delivery], session)
            raise Abort
    assert bodies(await outbox.pending()) == ["a"]

    async with outbox.store.transaction() as session:
        await outbox.store.insert([compose("b", "mails")], session)
        await outbox.store.complete([delivery], session)
    assert bodies(await outbox.pending()) == ["b"]


async def test_a_completed_message_is_archived_at_the_commit(archiving_outbox: SqlOutbox) -> None:
    link = await archiving_outbox.link()
    await archiving_outbox.publish(compose("a", "orders"))
    (delivery,) = await claim(link)

    with suppress(Abort):
        async with archiving_outbox.transaction() as session:
            await archiving_outbox.store.complete([delivery], session)
            raise Abort
    assert await archiving_outbox.archived() == []

    async with archiving_outbox.transaction() as session:
        assert await archiving_outbox.store.complete([delivery], session) == {delivery.id}
        assert await archiving_outbox.archived() == []

    assert await archiving_outbox.archived() == [b"a"]
    assert await archiving_outbox.pending() == []


async def test_a_message_that_is_not_ours_is_not_archived(archiving_outbox: SqlOutbox) -> None:
    one, two = await archiving_outbox.link(), await archiving_outbox.link()
    await archiving_outbox.publish(compose("a", "orders"))
    (stale,) = await claim(one)
    await archiving_outbox.age(60)
    await claim(two)

    async with archiving_outbox.transaction() as session:
        assert await archiving_outbox.store.complete([stale], session) == set()

    assert await archiving_outbox.archived() == []


# Handlers in a worker

Handle = Callable[[Sequence[Delivery]], Awaitable[object]]


def transactional(store: Store, handle: Handle, *, before: Handle | None = None, **options: object) -> Consumer:
    """A consumer whose handler runs in a transaction of *store*, and what does not vote is acked. *before*: outside it."""

    async def handle_and_vote(batch: Sequence[Delivery]) -> None:
        await handle(batch)
        for delivery in batch:
            delivery.cast(Ack())

    async def handle_in_transaction(batch: Sequence[Delivery]) -> None:
        if before is not None:
            await before(batch)
        await in_transaction(store, batch, handle_and_vote)

    given = {"max_fetch_interval": 0.1, "retry_strategy": ConstantRetry(delay_seconds=0.01), **options}
    return Consumer(ConsumerOptions.of("orders", given), handle_in_transaction)  # type: ignore[arg-type]  # of tests


def publishing(outbox: Outbox) -> Handle:
    """A handler that publishes one mail for each order."""

    async def handle(batch: Sequence[Delivery]) -> None:
        for delivery in batch:
            await outbox.store.insert([compose(delivery.payload, "mails")], delivery.session)

    return handle


async def test_a_handlers_messages_and_the_end_of_its_own_are_committed_together(outbox: Outbox, work: Work) -> None:
    published, finish = asyncio.Event(), asyncio.Event()
    events: list[Event] = []

    async def handle(batch: Sequence[Delivery]) -> None:
        await publishing(outbox)(batch)
        published.set()
        await finish.wait()

    await outbox.publish(compose("a", "orders"))
    await work(transactional(outbox.store, handle), observers=[events.append])

    await published.wait()
    assert [(one.queue, one.leased) for one in await outbox.pending()] == [("orders", True)]
    finish.set()
    await until(lambda: all_gone(outbox))
    assert [(one.queue, one.payload) for one in await outbox.pending()] == [("mails", b"a")]
    await until(lambda: Settled(1, ()) in events)
    assert not [event for event in events if isinstance(event, LeaseLost)]


async def test_every_message_has_a_transaction_of_its_own(outbox: Outbox, work: Work) -> None:
    await outbox.publish(*(compose(str(number), "orders") for number in range(20)))

    await work(transactional(outbox.store, publishing(outbox), max_workers=4))

    await until(lambda: all_gone(outbox))
    assert sorted(bodies(await outbox.pending("mails")), key=int) == [str(number) for number in range(20)]


async def test_a_failing_handler_takes_back_what_it_published_and_is_retried(outbox: Outbox, work: Work) -> None:
    attempts: list[int] = []

    async def handle(batch: Sequence[Delivery]) -> None:
        attempts.extend(delivery.attempts for delivery in batch)
        await publishing(outbox)(batch)
        if len(attempts) < 3:
            raise ValueError("not yet")

    await outbox.publish(compose("a", "orders"))
    await work(transactional(outbox.store, handle))

    await until(lambda: all_gone(outbox))
    assert attempts == [0, 1, 2]
    assert bodies(await outbox.pending("mails")) == ["a"]


@pytest.mark.parametrize("vote", [Nack(3_600), Reject(), Snooze(3_600)], ids=["nack", "reject", "snooze"])
async def test_any_other_vote_than_ack_rolls_back(outbox: Outbox, work: Work, vote: Vote) -> None:
    async def handle(batch: Sequence[Delivery]) -> None:
        await publishing(outbox)(batch)
        batch[0].cast(vote)

    await outbox.publish(compose("a", "orders"))
    await work(transactional(outbox.store, handle))

    if isinstance(vote, Reject):
        await until(lambda: all_gone(outbox))
        assert [letter.payload for letter in await outbox.dead_letters()] == [b"a"]
    else:
        await until(lambda: scheduled(outbox))
    assert await outbox.pending("mails") == []


async def scheduled(outbox: Outbox) -> bool:
    return (await outbox.store.stats())["orders"].scheduled == 1


async def test_a_batch_is_completed_as_one(outbox: Outbox, work: Work) -> None:
    sizes: list[int] = []

    async def handle(batch: Sequence[Delivery]) -> None:
        sizes.append(len(batch))
        await publishing(outbox)(batch)

    await outbox.publish(*(compose(str(number), "orders") for number in range(5)))
    await work(transactional(outbox.store, handle, batch=True))

    await until(lambda: all_gone(outbox))
    assert sizes == [5]
    assert bodies(await outbox.pending("mails")) == ["0", "1", "2", "3", "4"]


async def test_a_message_that_was_acked_beside_a_failed_one_is_handled_again(outbox: Outbox, work: Work) -> None:
    batches: list[list[str]] = []

    async def handle(batch: Sequence[Delivery]) -> None:
        batches.append(bodies(batch))
        await publishing(outbox)(batch)
        for delivery in batch:
            if delivery.payload == b"bad" and delivery.attempts == 0:
                delivery.cast(Nack(3_600))

    await outbox.publish(compose("good", "orders"), compose("bad", "orders"))
    await work(transactional(outbox.store, handle, batch=True))

    await until(lambda: scheduled(outbox))
    await until(lambda: len(batches) == 2)
    assert batches == [["good", "bad"], ["good"]]
    await until(lambda: mailed(outbox, ["good"]))
    (bad,) = await outbox.pending("orders")
    assert (bad.payload, bad.attempts_count) == (b"bad", 1)


async def mailed(outbox: Outbox, expected: list[str]) -> bool:
    return sorted(bodies(await outbox.pending("mails"))) == expected


class Unlucky:
    """A store whose first commits fail."""

    def __init__(self, store: Store, failures: int) -> None:
        self._store = store
        self.complete = store.complete
        self.is_conflict = store.is_conflict
        self._failures = failures

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[object]:
        async with self._store.transaction() as session:
            yield session
            if self._failures:
                self._failures -= 1
                raise ConnectionError("the commit failed")


async def test_a_failed_commit_is_retried(outbox: Outbox, work: Work) -> None:
    attempts: list[int] = []

    async def handle(batch: Sequence[Delivery]) -> None:
        attempts.append(batch[0].attempts)
        await publishing(outbox)(batch)

    await outbox.publish(compose("a", "orders"))
    await work(transactional(Unlucky(outbox.store, 2), handle))  # type: ignore[arg-type]  # all that is used

    await until(lambda: all_gone(outbox))
    assert attempts == [0, 1, 2]
    assert await outbox.dead_letters() == []
    assert bodies(await outbox.pending("mails")) == ["a"]


# Conflicts


class Chosen(Exception):
    """What a database says whose choice was another transaction."""


class Contended:
    """A store whose first transactions lose against others, at their commit or while the handler runs."""

    def __init__(self, store: Store, losses: int) -> None:
        self._store = store
        self.complete = store.complete
        self.losses = losses

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[object]:
        async with self._store.transaction() as session:
            yield session
            self.contend()

    def contend(self) -> None:
        if self.losses:
            self.losses -= 1
            raise Chosen

    def is_conflict(self, error: Exception) -> bool:
        return isinstance(error, Chosen)


@pytest.mark.parametrize("batch", [False, True], ids=["alone", "batch"])
async def test_a_transaction_that_lost_against_another_is_run_again_and_nothing_has_failed(
    outbox: Outbox, work: Work, batch: bool
) -> None:
    runs: list[tuple[int, int, Vote | None]] = []
    events: list[Event] = []
    store = Contended(outbox.store, 3)

    async def handle(batch: Sequence[Delivery]) -> None:
        runs.extend((delivery.attempts, delivery.deliveries, delivery.vote) for delivery in batch)
        await publishing(outbox)(batch)

    await outbox.publish(compose("a", "orders"))
    await work(transactional(store, handle, batch=batch), observers=[events.append])  # type: ignore[arg-type]  # as above

    await until(lambda: Settled(1, ()) in events)
    assert runs == [(0, 0, None)] * 4
    assert bodies(await outbox.pending()) == ["a"]
    assert await outbox.dead_letters() == []
    assert [event.outcome for event in events if isinstance(event, Handled)] == [Ack()]


async def test_a_vote_before_the_loss_is_withdrawn(outbox: Outbox, work: Work) -> None:
    store = Contended(outbox.store, 2)

    async def handle(batch: Sequence[Delivery]) -> None:
        batch[0].cast(Reject() if store.losses else Ack())
        store.contend()
        await publishing(outbox)(batch)

    await outbox.publish(compose("a", "orders"))
    await work(transactional(store, handle))  # type: ignore[arg-type]  # as above

    await until(lambda: mailed(outbox, ["a"]))
    assert await outbox.pending("orders") == []
    assert await outbox.dead_letters() == []


@pytest.mark.parametrize("outbox", ["memory", "psycopg"], indirect=True)
async def test_who_loses_every_time_has_failed(outbox: Outbox, work: Work, caplog: pytest.LogCaptureFixture) -> None:
    runs: list[int] = []

    async def handle(batch: Sequence[Delivery]) -> None:
        runs.append(batch[0].attempts)
        await publishing(outbox)(batch)

    await outbox.publish(compose("a", "orders"))
    with caplog.at_level(logging.WARNING, "outbox"):
        await work(transactional(Contended(outbox.store, 1_000_000), handle, retry_strategy=NoRetry()))  # type: ignore[arg-type]  # as above
        await until(lambda: all_gone(outbox))

    (letter,) = await outbox.dead_letters()
    assert (letter.reason, letter.error, letter.attempts) == ("retry_terminal", "Chosen: ", 1)
    assert len(runs) >= TRIES
    assert set(runs) == {0}
    assert await outbox.pending("mails") == []
    assert [record.levelname for record in caplog.records] == ["WARNING"]


async def test_who_lost_its_lease_while_it_waited_does_not_run_again(outbox: Outbox, work: Work) -> None:
    runs: list[str] = []
    events: list[Event] = []

    async def handle(batch: Sequence[Delivery]) -> None:
        runs.extend(bodies(batch))
        batch[0].lease_lost = True  # as the settler says when it cannot extend it
        raise Chosen

    await outbox.publish(compose("a", "orders"))
    await work(transactional(Contended(outbox.store, 0), handle), observers=[events.append])  # type: ignore[arg-type]  # as above

    await until(lambda: [event for event in events if isinstance(event, Handled)])
    assert runs[0] == "a"
    assert await outbox.pending("mails") == []
    (handled,) = [event for event in events if isinstance(event, Handled)][:1]
    assert handled.outcome == Retry(0.0, failed=False)


# Leases


async def steal(outbox: Outbox, limit: int = 100) -> list[Delivery]:
    """What is claimed by somebody else after the leases have ended."""
    link = await outbox.link()
    await outbox.age(60)
    return await claim(link, limit=limit)


async def test_who_has_lost_the_lease_commits_nothing(outbox: Outbox, work: Work) -> None:
    stolen: list[Delivery] = []
    events: list[Event] = []

    async def lose(batch: Sequence[Delivery]) -> None:
        stolen.extend(await steal(outbox))

    await outbox.publish(compose("a", "orders"))
    await work(transactional(outbox.store, publishing(outbox), before=lose), observers=[events.append])

    await until(lambda: [event for event in events if isinstance(event, LeaseLost)])
    assert [(one.queue, one.leased) for one in await outbox.pending()] == [("orders", True)]
    (owned,) = stolen
    assert await settle(await outbox.link(), owned, Ack()) == {owned.id}


async def test_a_lease_that_is_lost_while_the_handler_runs_is_lost(waking_outbox: Outbox, work_waking: Work) -> None:
    published, finish = asyncio.Event(), asyncio.Event()
    events: list[Event] = []

    async def handle(batch: Sequence[Delivery]) -> None:
        await publishing(waking_outbox)(batch)
        published.set()
        await finish.wait()

    await waking_outbox.publish(compose("a", "orders"))
    await work_waking(transactional(waking_outbox.store, handle), observers=[events.append])
    await published.wait()
    (owned,) = await steal(waking_outbox)
    finish.set()

    await until(lambda: [event for event in events if isinstance(event, LeaseLost)])
    assert [(one.queue, one.leased) for one in await waking_outbox.pending()] == [("orders", True)]
    assert await settle(await waking_outbox.link(), owned, Ack()) == {owned.id}


async def test_a_batch_of_which_one_was_lost_is_rolled_back_and_the_others_come_back(
    outbox: Outbox, work: Work
) -> None:
    batches: list[list[str]] = []
    stolen: list[Delivery] = []

    async def lose_one(batch: Sequence[Delivery]) -> None:
        batches.append(bodies(batch))
        if not stolen:
            stolen.extend(await steal(outbox, limit=1))

    await outbox.publish(*(compose(body, "orders") for body in ["lost", "a", "b"]))
    # With room for no more, the worker does not claim its own messages again when their leases have ended.
    await work(transactional(outbox.store, publishing(outbox), before=lose_one, batch=True, max_records=3))

    await until(lambda: mailed(outbox, ["a", "b"]))
    assert batches[0] == ["lost", "a", "b"]
    assert sorted(body for batch in batches[1:] for body in batch) == ["a", "b"]
    assert [(one.payload, one.leased) for one in await outbox.pending("orders")] == [(b"lost", True)]
    assert await settle(await outbox.link(), stolen[0], Ack()) == {stolen[0].id}


class Slow:
    """A store whose transactions stay open for a while after the completion."""

    def __init__(self, store: Store, seconds: float) -> None:
        self._store = store
        self._seconds = seconds
        self.transaction = store.transaction
        self.is_conflict = store.is_conflict

    async def complete(self, deliveries: Sequence[Delivery], session: object) -> set[int]:
        ours = await self._store.complete(deliveries, session)
        await asyncio.sleep(self._seconds)
        return ours


async def test_extending_while_a_completion_is_not_committed_forgets_nothing(
    outbox: Outbox, work: Work, caplog: pytest.LogCaptureFixture
) -> None:
    events: list[Event] = []
    store = Slow(outbox.store, 2.0)  # the lease of 3 seconds is extended after a third of it
    handled: list[str] = []

    async def handle(batch: Sequence[Delivery]) -> None:
        handled.extend(bodies(batch))

    await outbox.publish(compose("a", "orders"))
    with caplog.at_level(logging.WARNING, "outbox"):
        await work(
            transactional(store, handle, lease_ttl_seconds=3.0),  # type: ignore[arg-type]  # all that is used
            observers=[events.append],
        )
        await until(lambda: Settled(1, ()) in events)

    assert await outbox.pending() == []
    assert handled == ["a"]
    assert caplog.messages == []
    assert not [event for event in events if isinstance(event, LeaseLost)]


@pytest.mark.parametrize("outbox", ["memory", "sqlite", "psycopg", "django-postgresql"], indirect=True)
async def test_a_transactional_handler_may_take_longer_than_its_lease(
    outbox: Outbox, work: Work, caplog: pytest.LogCaptureFixture
) -> None:
    handled: list[str] = []

    async def handle(batch: Sequence[Delivery]) -> None:
        handled.extend(bodies(batch))
        await publishing(outbox)(batch)
        await asyncio.sleep(3.5)

    options = {"lease_ttl_seconds": 3.0, "max_fetch_interval": 0.05}
    await outbox.publish(compose("a", "orders"))
    with caplog.at_level(logging.WARNING, "outbox"):
        await work(transactional(outbox.store, handle, **options), name="w1")
        await until(lambda: handled)
        await work(transactional(outbox.store, handle, **options), name="w2")
        await until(lambda: all_gone(outbox))

    assert handled == ["a"]
    assert bodies(await outbox.pending()) == ["a"]
    assert caplog.messages == []
