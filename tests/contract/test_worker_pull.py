"""A puller on a worker, on every store: messages one at a time for those who wait, settled when the vote returns."""

import asyncio

import pytest

from outbox_core.envelope import compose
from outbox_core.errors import OptionError
from outbox_core.events import Event, Handled, WorkerStopped
from outbox_core.message import Delivery
from outbox_core.outcome import Ack, DeadLetter, Nack, Reject, Snooze
from outbox_core.retry import ConstantRetry, NoRetry
from tests.contract.conftest import Work
from tests.contract.harness import Outbox, bodies, claim, consumer, pulled, puller, settle, until, vote


async def leased(outbox: Outbox) -> list[str]:
    return bodies([message for message in await outbox.pending() if message.leased])


async def suspects(outbox: Outbox, *names: str) -> None:
    """Messages whose owner has gone away without a word."""
    await outbox.publish(*(compose(name, "orders") for name in names))
    await claim(await outbox.link(), lease=10)
    await outbox.age(11)


# One at a time


async def test_nothing_is_claimed_while_nobody_waits(outbox: Outbox, work: Work) -> None:
    handled: list[bytes] = []

    async def handle(delivery: Delivery) -> None:
        handled.append(delivery.payload)

    await outbox.publish(compose("a", "orders"))
    await work(puller(), consumer(handle, "mails"))
    await outbox.publish(compose("b", "mails"))
    await until(lambda: handled == [b"b"])

    assert "a" not in await leased(outbox)


async def test_who_waits_gets_one_message_and_no_more_is_claimed(outbox: Outbox, work: Work) -> None:
    its = puller()
    await outbox.publish(compose("a", "orders"), compose("b", "orders"))
    await work(its)

    delivery = await pulled(its)

    assert delivery.payload == b"a"
    assert await leased(outbox) == ["a"]


async def test_who_waits_in_vain_gets_none(outbox: Outbox, work: Work) -> None:
    its = puller()
    await work(its)

    assert await its.pull(0.05) is None


async def test_those_who_wait_get_different_messages(outbox: Outbox, work: Work) -> None:
    its = puller()
    await work(its)
    waiting = [asyncio.create_task(pulled(its)) for _ in range(3)]
    await outbox.publish(*(compose(body, "orders") for body in ("a", "b", "c")))

    got = await asyncio.gather(*waiting)

    assert bodies(got) == ["a", "b", "c"]


async def test_several_queues_are_pulled_by_turns(outbox: Outbox, work: Work) -> None:
    its = puller(["orders", "mails"])
    await outbox.publish(*(compose("order", "orders") for _ in range(3)), *(compose("mail", "mails") for _ in range(3)))
    await work(its)

    got = []
    for _ in range(6):
        got.append(delivery := await pulled(its))
        await vote(its, delivery, Ack())

    assert sorted(bodies(got[:4])) == ["mail", "mail", "order", "order"]
    assert await outbox.pending() == []


async def test_the_highest_priority_is_pulled_first(outbox: Outbox, work: Work) -> None:
    its = puller()
    await outbox.publish(compose("low", "orders", priority=-1), compose("high", "orders", priority=7))
    await work(its)

    assert bodies([await pulled(its), await pulled(its)]) == ["high", "low"]


async def test_a_paused_queue_is_not_pulled_until_it_is_resumed(outbox: Outbox, work: Work) -> None:
    its = puller()
    await outbox.publish(compose("a", "orders"))
    await outbox.store.set_paused("orders", True, None)
    await work(its)

    assert await its.pull(0.2) is None

    await outbox.store.set_paused("orders", False, None)
    assert (await pulled(its)).payload == b"a"


async def test_a_pause_holds_for_who_asks_again_after_a_while(outbox: Outbox, work: Work) -> None:
    its = puller()
    await outbox.publish(compose("a", "orders"), compose("b", "orders"))
    await work(its)
    await pulled(its)
    await outbox.store.set_paused("orders", True, None)
    await asyncio.sleep(1.2)  # longer than the claimer trusts in what it has seen

    assert await its.pull(0.2) is None


async def test_who_waits_is_woken_by_a_publish(waking_outbox: Outbox, work_waking: Work) -> None:
    its = puller(min_fetch_interval=60.0, max_fetch_interval=60.0)
    await work_waking(its)
    assert await its.pull(0.3) is None
    waiting = asyncio.create_task(pulled(its))
    await asyncio.sleep(0.3)

    await waking_outbox.publish(compose("a", "orders"))

    async with asyncio.timeout(5):
        assert (await waiting).payload == b"a"


async def test_who_begins_to_wait_while_others_sleep_is_woken_too(waking_outbox: Outbox, work_waking: Work) -> None:
    async def handle(delivery: Delivery) -> None: ...

    its = puller(min_fetch_interval=60.0, max_fetch_interval=60.0)
    await work_waking(consumer(handle, "mails", min_fetch_interval=60.0, max_fetch_interval=60.0), its)
    await asyncio.sleep(0.3)  # asleep, for mails only
    waiting = asyncio.create_task(pulled(its))
    await asyncio.sleep(0.3)

    await waking_outbox.publish(compose("a", "orders"))

    async with asyncio.timeout(5):
        assert (await waiting).payload == b"a"


# Votes


async def test_an_acked_message_is_gone_when_its_vote_returns(outbox: Outbox, work: Work) -> None:
    its = puller()
    await outbox.publish(compose("a", "orders"))
    await work(its)

    await vote(its, await pulled(its), Ack())

    assert await outbox.pending() == []


async def test_a_nacked_message_is_retried_when_the_strategy_says_and_dead_in_the_end(
    outbox: Outbox, work: Work
) -> None:
    its = puller(retry_strategy=ConstantRetry(delay_seconds=0.2, max_attempts=2))
    await outbox.publish(compose("a", "orders"))
    await work(its)

    await vote(its, first := await pulled(its), Nack())
    (row,) = await outbox.pending()
    assert (row.attempts_count, row.deliveries_count, row.leased) == (1, 1, False)
    await vote(its, second := await pulled(its), Nack())

    (letter,) = await outbox.dead_letters()
    assert (second.claimed_at - first.claimed_at).total_seconds() >= 0.2
    assert (second.attempts, second.deliveries, second.suspect) == (1, 1, False)
    assert (letter.reason, letter.error, letter.attempts, letter.deliveries) == ("retry_terminal", None, 2, 2)


async def test_a_nack_with_a_delay_comes_back_after_it(outbox: Outbox, work: Work) -> None:
    its = puller(retry_strategy=ConstantRetry(delay_seconds=3_600))
    await outbox.publish(compose("a", "orders"))
    await work(its)

    await vote(its, await pulled(its), Nack(0.1))

    assert (await pulled(its)).attempts == 1


async def test_a_rejected_message_is_dead_when_its_vote_returns(outbox: Outbox, work: Work) -> None:
    its = puller()
    await outbox.publish(compose("a", "orders"))
    await work(its)

    await vote(its, await pulled(its), Reject())

    assert [(letter.reason, letter.attempts) for letter in await outbox.dead_letters()] == [("rejected", 1)]
    assert await outbox.pending() == []


async def test_a_snoozed_message_comes_back_without_an_attempt(outbox: Outbox, work: Work) -> None:
    its = puller(retry_strategy=NoRetry())
    await outbox.publish(compose("a", "orders"))
    await work(its)

    await vote(its, await pulled(its), Snooze(0.1))

    again = await pulled(its)
    assert (again.attempts, again.deliveries) == (0, 0)


async def test_the_first_vote_stands(outbox: Outbox, work: Work) -> None:
    its = puller()
    await outbox.publish(compose("a", "orders"))
    await work(its)
    delivery = await pulled(its)

    await vote(its, delivery, Ack())
    await vote(its, delivery, Reject())

    assert await outbox.pending() == []
    assert await outbox.dead_letters() == []


async def test_a_strategy_that_fails_itself_does_not_keep_the_message(outbox: Outbox, work: Work) -> None:
    class Broken:
        def get_next_attempt_delay(self, **_: object) -> float | None:
            raise ZeroDivisionError

    its = puller(retry_strategy=Broken())
    await outbox.publish(compose("a", "orders"))
    await work(its)

    await vote(its, await pulled(its), Nack())

    assert [(row.attempts_count, row.leased) for row in await outbox.pending()] == [(1, False)]


async def test_observers_hear_of_votes(outbox: Outbox, work: Work) -> None:
    events: list[Event] = []
    its = puller(retry_strategy=NoRetry())
    await outbox.publish(compose("a", "orders"), compose("b", "orders"))
    await work(its, observers=[events.append])

    await vote(its, await pulled(its), Ack())
    await vote(its, await pulled(its), Nack())

    outcomes = [(event.delivery.payload, event.outcome) for event in events if isinstance(event, Handled)]
    assert outcomes == [(b"a", Ack()), (b"b", DeadLetter("retry_terminal"))]


# Leases


async def test_a_message_in_hand_keeps_its_lease(outbox: Outbox, work: Work) -> None:
    its = puller(lease_ttl_seconds=1.0)
    await outbox.publish(compose("a", "orders"))
    await work(its)
    delivery = await pulled(its)
    await asyncio.sleep(1.3)

    assert await claim(await outbox.link()) == []
    assert not delivery.lease_lost
    await vote(its, delivery, Ack())
    assert await outbox.pending() == []


async def test_a_vote_after_a_lost_lease_changes_nothing(outbox: Outbox, work: Work) -> None:
    its = puller(lease_ttl_seconds=30.0)
    await outbox.publish(compose("a", "orders"))
    await work(its)
    delivery = await pulled(its)
    await outbox.age(31)
    (taken_over,) = await claim(await outbox.link())

    await vote(its, delivery, Ack())

    assert delivery.lease_lost
    assert bodies(await outbox.pending()) == ["a"]
    assert await settle(await outbox.link(), taken_over, Ack()) == {taken_over.id}


async def test_a_lost_lease_is_seen_before_the_vote(outbox: Outbox, work: Work) -> None:
    its = puller(lease_ttl_seconds=1.0)
    await outbox.publish(compose("a", "orders"))
    await work(its)
    delivery = await pulled(its)
    taken: list[Delivery] = []
    link = await outbox.link()

    async def stolen() -> bool:
        await outbox.age(60)  # again if the worker extended its lease in between
        taken.extend(await claim(link))
        return bool(taken)

    await until(stolen)
    await until(lambda: delivery.lease_lost)


# Suspects


async def test_a_suspect_is_counted_before_it_is_handed_out(outbox: Outbox, work: Work) -> None:
    await suspects(outbox, "a")
    its = puller()
    await work(its)

    delivery = await pulled(its)

    assert (delivery.suspect, delivery.begun) == (True, True)
    assert [row.deliveries_count for row in await outbox.pending()] == [1]
    await vote(its, delivery, Ack())
    assert await outbox.pending() == []


async def test_a_message_that_kills_whoever_pulls_it_is_dead_in_the_end(outbox: Outbox, work: Work) -> None:
    link = await outbox.link()
    await suspects(outbox, "killer")
    for _ in range(2):
        (suspect,) = await claim(link, lease=10)
        await link.begin(suspect)
        await outbox.age(11)
    await outbox.publish(compose("next", "orders"))
    its = puller(max_deliveries=2)
    await work(its)

    delivery = await pulled(its)

    assert delivery.payload == b"next"
    await until(outbox.dead_letters)
    assert [(letter.payload, letter.reason) for letter in await outbox.dead_letters()] == [
        (b"killer", "max_deliveries")
    ]


async def test_one_suspect_at_a_time_is_in_hand_and_only_that_one_is_counted(outbox: Outbox, work: Work) -> None:
    await suspects(outbox, "a", "b")
    its = puller()
    await work(its)
    first = await pulled(its)
    second = asyncio.create_task(pulled(its))
    await until(lambda: len(its._suspects) == 1)

    assert [row.deliveries_count for row in await outbox.pending()] == [1, 0]
    assert not second.done()

    await vote(its, first, Ack())
    assert (await second).payload == b"b"


async def test_messages_that_are_no_suspects_do_not_wait_for_one(outbox: Outbox, work: Work) -> None:
    await suspects(outbox, "suspect")
    await outbox.publish(compose("a", "orders"))
    its = puller()
    await work(its)

    assert bodies([await pulled(its), await pulled(its)]) == ["suspect", "a"]


async def test_a_suspect_for_whom_nobody_waits_any_more_is_given_back_as_one(outbox: Outbox, work: Work) -> None:
    await suspects(outbox, "a", "b")
    its = puller()
    await work(its)
    await pulled(its)
    assert await its.pull(0.2) is None

    await until(lambda: _is_leased(outbox, ["a"]))
    (again,) = await claim(await outbox.link())
    assert (again.payload, again.suspect, again.deliveries) == (b"b", True, 0)


async def _is_leased(outbox: Outbox, expected: list[str]) -> bool:
    return await leased(outbox) == expected


async def test_a_handler_may_pull_a_suspect(outbox: Outbox, work: Work) -> None:
    await suspects(outbox, "suspect")
    its = puller()
    got: list[bytes] = []

    async def handle(delivery: Delivery) -> None:
        got.append((suspect := await pulled(its)).payload)
        await vote(its, suspect, Ack())

    await work(its, consumer(handle, "mails"))
    await outbox.publish(compose("go", "mails"))

    await until(lambda: _is_empty(outbox))
    assert got == [b"suspect"]


async def _is_empty(outbox: Outbox) -> bool:
    return await outbox.pending() == []


# Stopping


async def test_a_stop_gives_back_what_has_no_vote_and_lets_nobody_wait(outbox: Outbox, work: Work) -> None:
    events: list[Event] = []
    its = puller()
    await outbox.publish(compose("a", "orders"))
    worker = await work(its, observers=[events.append])
    delivery = await pulled(its)
    waiting = asyncio.create_task(its.pull(60.0))
    await until(lambda: its.attended)

    async with asyncio.timeout(2):
        await worker.stop(timeout=60.0)
        assert await waiting is None

    assert events[-1] == WorkerStopped("w1", released=1, abandoned=0)
    assert delivery.lease_lost
    (again,) = await claim(await outbox.link())
    assert (again.payload, again.attempts, again.deliveries, again.suspect) == (b"a", 0, 0, False)


async def test_a_vote_after_the_stop_has_no_effect(outbox: Outbox, work: Work) -> None:
    its = puller()
    await outbox.publish(compose("a", "orders"))
    worker = await work(its)
    delivery = await pulled(its)
    await worker.stop(timeout=1.0)

    async with asyncio.timeout(1):
        await vote(its, delivery, Ack())

    assert bodies(await outbox.pending()) == ["a"]
    assert await its.pull(60.0) is None


async def test_what_a_stop_gives_back_wakes_another_worker(waking_outbox: Outbox, work_waking: Work) -> None:
    options = {"min_fetch_interval": 60.0, "max_fetch_interval": 60.0}
    its, others = puller(**options), puller(**options)
    await waking_outbox.publish(compose("a", "orders"))
    worker = await work_waking(its, name="w1")
    await pulled(its)
    await work_waking(others, name="w2")
    waiting = asyncio.create_task(pulled(others))
    await asyncio.sleep(0.3)

    await worker.remove(its, timeout=1.0)

    async with asyncio.timeout(5):
        assert (await waiting).payload == b"a"


async def test_a_puller_nobody_asks_does_not_hold_up_who_waits_until_all_is_drained(outbox: Outbox, work: Work) -> None:
    handled: list[bytes] = []

    async def handle(delivery: Delivery) -> None:
        handled.append(delivery.payload)

    await outbox.publish(compose("a", "mails"), compose("b", "orders"))
    worker = await work(consumer(handle, "mails"), puller())

    async with asyncio.timeout(5):
        await worker.drained()

    assert handled == [b"a"]


async def test_what_is_in_hand_holds_up_who_waits_until_all_is_drained(outbox: Outbox, work: Work) -> None:
    its = puller()
    await outbox.publish(compose("a", "orders"))
    worker = await work(its)
    delivery = await pulled(its)
    drained = asyncio.create_task(worker.drained())
    finished, _ = await asyncio.wait([drained], timeout=0.3)
    assert not finished

    await vote(its, delivery, Ack())

    async with asyncio.timeout(5):
        await drained


async def test_a_queue_has_a_puller_or_a_handler_and_not_both(outbox: Outbox, work: Work) -> None:
    async def handle(delivery: Delivery) -> None: ...

    worker = await work(consumer(handle))

    with pytest.raises(OptionError, match="queue 'orders' has two subscribers"):
        worker.add(puller())
