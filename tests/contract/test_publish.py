"""Publishing: in the caller's transaction or one of the store's own, all or nothing, and timers."""

from contextlib import suppress
from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest

from outbox_core.envelope import compose
from outbox_core.errors import WrongType
from outbox_core.outcome import Ack, DeadLetter, Retry
from tests.contract.harness import Outbox, bodies, claim, claim_keyed, settle

ONE = UUID("0197a3c0-0000-7000-8000-000000000001")
TWO = UUID("0197a3c0-0000-7000-8000-000000000002")


class Abort(Exception):
    """What makes a test's transaction roll back."""


async def test_a_committed_message_exists(outbox: Outbox) -> None:
    async with outbox.transaction() as session:
        await outbox.store.insert([compose("a", "orders")], session)

    assert bodies(await outbox.pending()) == ["a"]


async def test_a_rolled_back_message_never_existed(outbox: Outbox) -> None:
    with suppress(Abort):
        async with outbox.transaction() as session:
            await outbox.store.insert([compose("a", "orders"), compose("b", "orders")], session)
            raise Abort

    assert await outbox.pending() == []


async def test_a_message_is_invisible_until_its_transaction_commits(outbox: Outbox) -> None:
    async with outbox.transaction() as session:
        await outbox.store.insert([compose("a", "orders")], session)

        assert await outbox.pending() == []

    assert bodies(await outbox.pending()) == ["a"]


async def test_publishing_without_a_session_commits_by_itself(outbox: Outbox) -> None:
    await outbox.publish(compose("a", "orders"))

    assert bodies(await outbox.pending()) == ["a"]


async def test_a_synchronous_session_publishes_in_its_transaction(outbox: Outbox) -> None:
    async with outbox.transaction() as session:
        published = await outbox.publish_sync(session, compose("a", "orders"), compose("b", "orders"))
        before_the_commit = await outbox.pending()

    assert before_the_commit == []
    assert [message.id for message in await outbox.pending()] == published
    assert bodies(await outbox.pending()) == ["a", "b"]


async def test_what_is_no_session_is_refused(outbox: Outbox) -> None:
    for stranger in outbox.strangers:
        with pytest.raises(WrongType) as refused:
            await outbox.store.insert([compose("a", "orders")], stranger)
        assert (refused.value.argument, refused.value.value) == (outbox.session_argument, stranger)

        with pytest.raises(WrongType) as refused:
            outbox.store.insert_sync([compose("a", "orders")], stranger)
        assert (refused.value.argument, refused.value.value) == (outbox.session_argument, stranger)


async def test_ids_come_back_in_the_order_of_the_messages(outbox: Outbox) -> None:
    ids = await outbox.publish(*(compose(str(number), "orders") for number in range(50)))

    stored = await outbox.pending()
    assert [message.id for message in stored] == ids
    assert bodies(stored) == [str(number) for number in range(50)]
    assert ids == sorted(id for id in ids if id is not None)


async def test_ids_come_back_in_order_from_a_batch_of_many_kinds(outbox: Outbox) -> None:
    ids = await outbox.publish(
        compose("a", "orders"),
        compose("b", "mails", key="k"),
        compose("c", "orders", priority=5),
        compose("d", "orders", activate_in=timedelta(hours=1)),
        compose("e", "orders", timer_id="t"),
        compose("f", "orders"),
    )

    stored = await outbox.pending()
    assert [message.id for message in stored] == ids
    assert bodies(stored) == ["a", "b", "c", "d", "e", "f"]


async def test_a_batch_of_nothing_does_nothing(outbox: Outbox) -> None:
    assert await outbox.publish() == []


async def test_a_message_arrives_as_it_was_published(outbox: Outbox) -> None:
    message = compose(
        b"\x00\xff raw",
        "orders",
        headers={"tenant": "Zürich 🚲", "quote": "\"'%s:name\\"},
        correlation_id="c-1",
        reply_to="answers",
        message_id=ONE,
        key="customer-7",
    )
    (id,) = await outbox.publish(message)

    (delivery,) = await claim_keyed(await outbox.link())

    assert delivery.id == id
    assert delivery.message_id == ONE
    assert delivery.queue == "orders"
    assert delivery.key == "customer-7"
    assert delivery.payload == b"\x00\xff raw"
    assert delivery.headers == {
        "tenant": "Zürich 🚲",
        "quote": "\"'%s:name\\",
        "correlation_id": "c-1",
        "reply_to": "answers",
    }
    assert (delivery.priority, delivery.attempts, delivery.deliveries) == (0, 0, 0)
    assert delivery.first_attempt_at is None
    assert not delivery.suspect
    assert delivery.created_at <= delivery.claimed_at


async def test_names_of_255_characters_survive(outbox: Outbox) -> None:
    queue, key, timer_id = "q" * 255, "ключ" * 63, "t" * 255
    await outbox.publish(compose("a", queue, key=key, timer_id=timer_id))

    (pending,) = await outbox.pending(queue)

    assert (pending.queue, pending.key, pending.timer_id) == (queue, key, timer_id)


async def test_a_look_without_a_lease_tells_everything(outbox: Outbox) -> None:
    due = datetime(2030, 1, 2, 3, 4, 5, 678_000, tzinfo=UTC)
    await outbox.publish(compose("a", "orders", message_id=ONE, priority=-3, timer_id="t", activate_at=due))

    (pending,) = await outbox.pending()

    assert pending.message_id == ONE
    assert pending.priority == -3
    assert pending.timer_id == "t"
    assert pending.next_attempt_at == due
    assert pending.created_at.utcoffset() == timedelta(0)
    assert (pending.attempts_count, pending.deliveries_count) == (0, 0)
    assert not pending.leased
    assert pending.failure_reason is None


async def test_a_look_is_limited_to_the_oldest_of_a_queue(outbox: Outbox) -> None:
    await outbox.publish(compose("a", "orders"), compose("x", "mails"), compose("b", "orders"), compose("c", "orders"))

    looked = await outbox.store.fetch_unprocessed("orders", 2, None)

    assert bodies(looked) == ["a", "b"]


async def test_a_look_does_not_keep_workers_away(outbox: Outbox) -> None:
    await outbox.publish(compose("a", "orders"))

    await outbox.pending()

    assert bodies(await claim(await outbox.link())) == ["a"]


async def test_a_look_says_who_is_leased(outbox: Outbox) -> None:
    await outbox.publish(compose("a", "orders"), compose("b", "orders"))
    await claim(await outbox.link(), limit=1)

    assert [message.leased for message in await outbox.pending()] == [True, False]


async def test_the_same_message_id_is_published_once(outbox: Outbox) -> None:
    (first,) = await outbox.publish(compose("a", "orders", message_id=ONE))

    again = await outbox.publish(compose("b", "mails", message_id=ONE), compose("c", "orders", message_id=TWO))

    assert first is not None
    assert again[0] is None
    assert again[1] is not None
    assert bodies(await outbox.pending()) == ["a", "c"]


async def test_the_same_message_id_in_one_batch_is_published_once(outbox: Outbox) -> None:
    ids = await outbox.publish(compose("a", "orders", message_id=ONE), compose("b", "orders", message_id=ONE))

    assert ids[0] is not None
    assert ids[1] is None
    assert bodies(await outbox.pending()) == ["a"]


async def test_the_same_message_id_in_one_transaction_is_published_once(outbox: Outbox) -> None:
    async with outbox.transaction() as session:
        (first,) = await outbox.store.insert([compose("a", "orders", message_id=ONE)], session)
        (second,) = await outbox.store.insert([compose("b", "orders", message_id=ONE)], session)

    assert first is not None
    assert second is None
    assert bodies(await outbox.pending()) == ["a"]


async def test_a_message_id_is_free_again_once_its_message_is_done(outbox: Outbox) -> None:
    link = await outbox.link()
    await outbox.publish(compose("a", "orders", message_id=ONE))
    await settle(link, (await claim(link))[0], Ack())

    (again,) = await outbox.publish(compose("b", "orders", message_id=ONE))

    assert again is not None
    assert bodies(await outbox.pending()) == ["b"]


async def test_a_live_timer_holds_its_id(outbox: Outbox) -> None:
    (first,) = await outbox.publish(compose("a", "orders", timer_id="t"))

    (second,) = await outbox.publish(compose("b", "orders", timer_id="t"))

    assert first is not None
    assert second is None
    assert bodies(await outbox.pending()) == ["a"]


async def test_a_batch_goes_on_past_a_timer_that_is_held(outbox: Outbox) -> None:
    await outbox.publish(compose("a", "orders", timer_id="t"))

    ids = await outbox.publish(compose("b", "orders", timer_id="t"), compose("c", "orders"))

    assert ids[0] is None
    assert ids[1] is not None
    assert bodies(await outbox.pending()) == ["a", "c"]


async def test_a_timer_published_twice_in_one_transaction_exists_once(outbox: Outbox) -> None:
    async with outbox.transaction() as session:
        (first,) = await outbox.store.insert([compose("a", "orders", timer_id="t")], session)
        (second,) = await outbox.store.insert([compose("b", "orders", timer_id="t")], session)

    assert first is not None
    assert second is None
    assert bodies(await outbox.pending()) == ["a"]


async def test_queues_do_not_share_timer_ids(outbox: Outbox) -> None:
    ids = await outbox.publish(compose("a", "orders", timer_id="t"), compose("b", "mails", timer_id="t"))

    assert None not in ids


@pytest.mark.parametrize("outcome", [Ack(), DeadLetter("rejected")], ids=["acked", "dead"])
async def test_a_timer_id_is_free_again_once_its_message_is_gone(outbox: Outbox, outcome: Ack | DeadLetter) -> None:
    link = await outbox.link()
    await outbox.publish(compose("a", "orders", timer_id="t"))
    await settle(link, (await claim(link))[0], outcome)

    (again,) = await outbox.publish(compose("b", "orders", timer_id="t"))

    assert again is not None
    assert bodies(await outbox.pending()) == ["b"]


async def test_extending_a_timer_moves_it_to_the_later_time(outbox: Outbox) -> None:
    near, later = datetime(2030, 1, 1, tzinfo=UTC), datetime(2030, 1, 2, tzinfo=UTC)
    (first,) = await outbox.publish(compose("a", "orders", timer_id="t", activate_at=near, message_id=ONE))

    (second,) = await outbox.publish(
        compose("b", "orders", timer_id="t", activate_at=later, timer_conflict="extend", message_id=TWO)
    )

    (pending,) = await outbox.pending()
    assert second == first
    assert pending.next_attempt_at == later
    assert pending.payload == b"b"
    assert pending.message_id == ONE


async def test_extending_a_timer_never_moves_it_to_an_earlier_time(outbox: Outbox) -> None:
    due = datetime(2030, 1, 1, tzinfo=UTC)
    (first,) = await outbox.publish(compose("a", "orders", timer_id="t", activate_at=due))

    (second,) = await outbox.publish(
        compose("b", "orders", timer_id="t", activate_at=due - timedelta(hours=1), timer_conflict="extend")
    )

    (pending,) = await outbox.pending()
    assert second == first
    assert pending.next_attempt_at == due
    assert pending.payload == b"a"


async def test_extending_keeps_key_and_priority(outbox: Outbox) -> None:
    await outbox.publish(compose("a", "orders", timer_id="t", key="k", priority=3))

    await outbox.publish(
        compose("b", "orders", timer_id="t", timer_conflict="extend", activate_in=timedelta(hours=1), priority=9)
    )

    (pending,) = await outbox.pending()
    assert (pending.payload, pending.key, pending.priority) == (b"b", "k", 3)


async def test_replacing_a_timer_takes_everything_but_its_identity(outbox: Outbox) -> None:
    due = datetime(2030, 1, 1, tzinfo=UTC)
    (first,) = await outbox.publish(compose("a", "orders", timer_id="t", activate_at=due, message_id=ONE))

    (second,) = await outbox.publish(
        compose(
            "b",
            "orders",
            timer_id="t",
            activate_at=due - timedelta(hours=1),
            timer_conflict="replace",
            message_id=TWO,
            key="k",
            priority=4,
            headers={"h": "1"},
        )
    )

    (pending,) = await outbox.pending()
    assert second == first
    assert pending.next_attempt_at == due - timedelta(hours=1)
    assert (pending.payload, pending.key, pending.priority) == (b"b", "k", 4)
    assert pending.headers["h"] == "1"
    assert pending.message_id == ONE


async def test_a_timer_can_be_replaced_under_its_own_message_id(outbox: Outbox) -> None:
    (first,) = await outbox.publish(compose("a", "orders", timer_id="t", message_id=ONE))

    (second,) = await outbox.publish(compose("b", "orders", timer_id="t", message_id=ONE, timer_conflict="replace"))

    assert second == first
    assert bodies(await outbox.pending()) == ["b"]


@pytest.mark.parametrize("conflict", ["extend", "replace"])
async def test_what_is_no_conflict_is_simply_published(outbox: Outbox, conflict: str) -> None:
    (id,) = await outbox.publish(compose("a", "orders", timer_id="t", timer_conflict=conflict))

    assert [message.id for message in await outbox.pending()] == [id]


@pytest.mark.parametrize("conflict", ["extend", "replace"])
async def test_without_a_timer_id_there_is_no_timer_conflict(outbox: Outbox, conflict: str) -> None:
    await outbox.publish(compose("a", "orders", message_id=ONE))

    (again,) = await outbox.publish(compose("b", "orders", message_id=ONE, timer_conflict=conflict))

    assert again is None
    assert bodies(await outbox.pending()) == ["a"]


@pytest.mark.parametrize("conflict", ["extend", "replace"])
async def test_several_timers_change_in_one_batch(outbox: Outbox, conflict: str) -> None:
    first = await outbox.publish(compose("a", "orders", timer_id="t"), compose("b", "orders", timer_id="u"))
    later = timedelta(hours=1)

    second = await outbox.publish(
        compose("c", "orders", timer_id="u", activate_in=later, timer_conflict=conflict),
        compose("d", "orders", timer_id="t", activate_in=later, timer_conflict=conflict),
        compose("e", "orders"),
    )

    assert second[:2] == [first[1], first[0]]
    assert bodies(await outbox.pending()) == ["d", "c", "e"]


@pytest.mark.parametrize("conflict", ["extend", "replace"])
async def test_a_changed_timer_starts_its_attempts_anew(outbox: Outbox, conflict: str) -> None:
    link = await outbox.link()
    await outbox.publish(compose("a", "orders", timer_id="t"))
    await settle(link, (await claim(link))[0], Retry(60))

    await outbox.publish(
        compose("b", "orders", timer_id="t", activate_in=timedelta(seconds=90), timer_conflict=conflict)
    )

    await outbox.age(100)
    (delivery,) = await claim(link)
    assert delivery.payload == b"b"
    assert delivery.attempts == 0
    assert delivery.first_attempt_at is None


@pytest.mark.parametrize("conflict", ["ignore", "extend", "replace"])
async def test_a_leased_timer_is_left_alone(outbox: Outbox, conflict: str) -> None:
    link = await outbox.link()
    await outbox.publish(compose("a", "orders", timer_id="t"))
    (delivery,) = await claim(link)

    (id,) = await outbox.publish(
        compose("b", "orders", timer_id="t", timer_conflict=conflict, activate_in=timedelta(hours=1))
    )

    (pending,) = await outbox.pending()
    assert id is None
    assert pending.payload == b"a"
    assert pending.next_attempt_at == delivery.due_at


@pytest.mark.parametrize("conflict", ["extend", "replace"])
async def test_a_timer_changed_after_its_lease_ended_is_safe_from_the_stale_worker(
    outbox: Outbox, conflict: str
) -> None:
    link = await outbox.link()
    await outbox.publish(compose("a", "orders", timer_id="t"))
    (stale,) = await claim(link, lease=10)
    await outbox.age(11)

    await outbox.publish(compose("b", "orders", timer_id="t", timer_conflict=conflict))

    assert await settle(link, stale, Ack()) == set()
    (delivery,) = await claim(link)
    assert delivery.payload == b"b"
    assert not delivery.suspect


async def test_a_timer_changes_when_its_transaction_commits(outbox: Outbox) -> None:
    (first,) = await outbox.publish(compose("a", "orders", timer_id="t"))

    async with outbox.transaction() as session:
        (second,) = await outbox.store.insert([compose("b", "orders", timer_id="t", timer_conflict="replace")], session)
        before_the_commit = bodies(await outbox.pending())

    assert second == first
    assert before_the_commit == ["a"]
    assert bodies(await outbox.pending()) == ["b"]


async def test_a_cancelled_timer_is_gone(outbox: Outbox) -> None:
    await outbox.publish(compose("a", "orders", timer_id="t"), compose("b", "orders"))

    assert await outbox.store.cancel_timer("orders", "t", None) is True
    assert await outbox.store.cancel_timer("orders", "t", None) is False
    assert bodies(await outbox.pending()) == ["b"]


async def test_cancelling_names_queue_and_timer(outbox: Outbox) -> None:
    await outbox.publish(compose("a", "orders", timer_id="t"))

    assert await outbox.store.cancel_timer("mails", "t", None) is False
    assert await outbox.store.cancel_timer("orders", "u", None) is False
    assert bodies(await outbox.pending()) == ["a"]


async def test_a_leased_timer_cannot_be_cancelled(outbox: Outbox) -> None:
    await outbox.publish(compose("a", "orders", timer_id="t"))
    await claim(await outbox.link(), lease=10)

    assert await outbox.store.cancel_timer("orders", "t", None) is False
    await outbox.age(11)
    assert await outbox.store.cancel_timer("orders", "t", None) is True


async def test_a_cancellation_is_part_of_its_transaction(outbox: Outbox) -> None:
    await outbox.publish(compose("a", "orders", timer_id="t"))

    with suppress(Abort):
        async with outbox.transaction() as session:
            assert await outbox.store.cancel_timer("orders", "t", session) is True
            raise Abort

    assert bodies(await outbox.pending()) == ["a"]


async def test_a_scheduled_message_is_due_on_the_databases_clock(outbox: Outbox) -> None:
    await outbox.publish(compose("a", "orders", activate_in=timedelta(hours=2)))

    (pending,) = await outbox.pending()

    assert pending.next_attempt_at - pending.created_at == pytest.approx(timedelta(hours=2), abs=timedelta(seconds=1))


async def test_an_instant_in_the_past_is_due_at_once(outbox: Outbox) -> None:
    await outbox.publish(compose("a", "orders", activate_at=datetime(2001, 2, 3, tzinfo=UTC)))

    (delivery,) = await claim(await outbox.link())

    assert delivery.due_at == datetime(2001, 2, 3, tzinfo=UTC)
