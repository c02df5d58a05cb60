"""Claims of messages with a key: of each key one claim at a time, and the first messages first."""

from datetime import timedelta

from outbox_core.envelope import compose
from outbox_core.outcome import Ack, DeadLetter, Release, Retry
from outbox_core.store import KeyWant, Link
from tests.contract.harness import Outbox, bodies, claim, claim_keyed, settle

HALT = DeadLetter("rejected", "no", halts=True)


async def publish(outbox: Outbox, *names: str, queue: str = "orders") -> None:
    """Each name is a key and a body: `a1` has the key `a`."""
    for name in names:
        await outbox.publish(compose(name, queue, key=name[:-1]))


async def halted(outbox: Outbox, link: Link, *names: str) -> None:
    """The first of *names* is dead and halts its key."""
    await publish(outbox, *names)
    (first,) = await claim_keyed(link, limit=1, run=1)
    await settle(link, first, HALT)


async def test_a_key_is_claimed_in_the_order_of_its_ids(outbox: Outbox) -> None:
    await publish(outbox, "a1", "a2", "a3")

    assert bodies(await claim_keyed(await outbox.link())) == ["a1", "a2", "a3"]


async def test_a_key_with_a_leased_message_is_left_alone(outbox: Outbox) -> None:
    one, two = await outbox.link(), await outbox.link()
    await publish(outbox, "a1", "a2", "b1")
    await claim_keyed(one, limit=1, run=1)

    assert bodies(await claim_keyed(two)) == ["b1"]


async def test_what_was_published_late_waits_for_what_is_leased(waking_outbox: Outbox) -> None:
    """Its id is lower, since its transaction took it before, and committed later."""
    outbox, link = waking_outbox, await waking_outbox.link()
    async with outbox.transaction() as late:
        await outbox.store.insert([compose("a1", "orders", key="a")], late)
        await publish(outbox, "a2")
        (first,) = await claim_keyed(link)

    assert first.payload == b"a2"
    assert await claim_keyed(link) == []
    await settle(link, first, Ack())
    assert bodies(await claim_keyed(link)) == ["a1"]


async def test_what_was_published_late_waits_for_all_that_one_claim_has_of_its_key(waking_outbox: Outbox) -> None:
    outbox, link, other = waking_outbox, await waking_outbox.link(), await waking_outbox.link()
    async with outbox.transaction() as late:
        await outbox.store.insert([compose("a1", "orders", key="a")], late)
        await publish(outbox, "a2", "a3", "a4")
        claimed = await claim_keyed(link)

    assert bodies(claimed) == ["a2", "a3", "a4"]
    for delivery in claimed:
        assert await claim_keyed(other) == []
        await settle(link, delivery, Ack())
    assert bodies(await claim_keyed(other)) == ["a1"]


async def test_more_messages_of_fewer_keys_are_claimed_where_that_is_asked_for(outbox: Outbox) -> None:
    link = await outbox.link()
    await publish(outbox, "a1", "b1", "c1", "a2", "b2", "c2", "a3", "b3", "c3")

    claim = await link.claim_keyed(KeyWant("orders", 6, 10, keys=2), lease=30)
    rest = await link.claim_keyed(KeyWant("orders", 6, 10, claim.after, keys=2), lease=30)

    assert len(claim.deliveries) <= 6
    assert len({delivery.key for delivery in claim.deliveries}) >= 2
    for key in "abc":
        of_key = [body for body in bodies(claim.deliveries) + bodies(rest.deliveries) if body[0] == key]
        assert of_key == [f"{key}{number}" for number in range(1, len(of_key) + 1)]
    assert {delivery.key for delivery in [*claim.deliveries, *rest.deliveries]} == {"a", "b", "c"}


async def test_keys_are_of_a_queue(outbox: Outbox) -> None:
    one, two = await outbox.link(), await outbox.link()
    await publish(outbox, "a1")
    await publish(outbox, "a2", queue="mails")
    await claim_keyed(one, "orders")

    assert bodies(await claim_keyed(two, "mails")) == ["a2"]


async def test_at_most_a_run_of_each_key_is_claimed(outbox: Outbox) -> None:
    await publish(outbox, "a1", "a2", "a3", "b1", "b2", "b3")

    assert bodies(await claim_keyed(await outbox.link(), run=2)) == ["a1", "a2", "b1", "b2"]


async def test_the_limit_is_shared_by_the_keys(outbox: Outbox) -> None:
    await publish(outbox, "a1", "a2", "a3", "b1", "b2", "b3")

    claimed = await claim_keyed(await outbox.link(), limit=4)

    assert len(claimed) <= 4
    assert bodies(claimed)[:1] == ["a1"]


async def test_a_claim_goes_on_after_the_last_key(outbox: Outbox) -> None:
    link = await outbox.link()
    await publish(outbox, "a1", "b1", "c1")

    first = await link.claim_keyed(KeyWant("orders", 2, 10), lease=30)
    second = await link.claim_keyed(KeyWant("orders", 2, 10, after=first.after), lease=30)

    assert bodies(first.deliveries) == ["a1", "b1"]
    assert first.after == "b"
    assert bodies(second.deliveries) == ["c1"]
    assert second.after is None


async def test_messages_without_a_key_and_with_one_are_claimed_apart(outbox: Outbox) -> None:
    link = await outbox.link()
    await publish(outbox, "a1")
    await outbox.publish(compose("free", "orders"))

    assert bodies(await claim(link)) == ["free"]
    assert bodies(await claim_keyed(link)) == ["a1"]


async def test_a_survey_names_the_queues_that_have_keys(outbox: Outbox) -> None:
    link = await outbox.link()
    await publish(outbox, "a1")
    await outbox.publish(compose("free", "mails"))

    survey = await link.survey(["orders", "mails"])

    assert survey.keyed == {"orders"}
    assert [band.queue for band in survey.bands] == ["mails"]


async def test_the_queues_with_keys_are_among_the_queues(outbox: Outbox) -> None:
    await publish(outbox, "a1", queue="keyed")
    await publish(outbox, "b1", queue="both")
    await outbox.publish(compose("free", "both"), compose("free", "unkeyed"))

    assert await outbox.store.queues() == ["both", "keyed", "unkeyed"]


async def test_an_ack_lets_the_key_go_on(outbox: Outbox) -> None:
    link = await outbox.link()
    await publish(outbox, "a1", "a2")
    (first,) = await claim_keyed(link, run=1)

    await settle(link, first, Ack())

    assert bodies(await claim_keyed(link)) == ["a2"]


async def test_a_message_that_is_to_be_retried_keeps_its_key_waiting(outbox: Outbox) -> None:
    link = await outbox.link()
    await publish(outbox, "a1", "a2", "b1")
    first, second, _ = await claim_keyed(link)

    await settle(link, first, Retry(60))
    await settle(link, second, Release())

    claimed = await link.claim_keyed(KeyWant("orders", 10, 10), lease=30)
    assert claimed.deliveries == []
    assert claimed.due_in is not None
    assert 50 < claimed.due_in <= 60


async def test_a_retried_message_comes_before_those_behind_it(outbox: Outbox) -> None:
    link = await outbox.link()
    await publish(outbox, "a1", "a2")
    first, second = await claim_keyed(link)
    await settle(link, first, Retry(10))
    await settle(link, second, Release())

    await outbox.age(11)

    assert bodies(await claim_keyed(link)) == ["a1", "a2"]


async def test_a_message_in_the_middle_that_is_not_due_ends_the_run(outbox: Outbox) -> None:
    link = await outbox.link()
    await publish(outbox, "a1", "a2", "a3")
    one, two, three = await claim_keyed(link)
    await settle(link, two, Retry(60))
    await settle(link, one, Release())
    await settle(link, three, Release())

    assert bodies(await claim_keyed(link)) == ["a1"]


async def test_a_scheduled_message_keeps_what_follows_it_waiting(outbox: Outbox) -> None:
    link = await outbox.link()
    await outbox.publish(compose("a1", "orders", key="a", activate_in=timedelta(hours=1)))
    await publish(outbox, "a2")

    assert await claim_keyed(link) == []
    await outbox.age(3_601)
    assert bodies(await claim_keyed(link)) == ["a1", "a2"]


async def test_a_dead_message_lets_its_key_go_on(outbox: Outbox) -> None:
    link = await outbox.link()
    await publish(outbox, "a1", "a2")
    (first,) = await claim_keyed(link, run=1)

    await settle(link, first, DeadLetter("rejected"))

    assert bodies(await claim_keyed(link)) == ["a2"]


async def test_what_a_dead_worker_had_of_a_key_comes_again_in_order(outbox: Outbox) -> None:
    link = await outbox.link()
    await publish(outbox, "a1", "a2", "a3")
    await claim_keyed(link, limit=2, run=2, lease=5)
    assert await claim_keyed(link) == []

    await outbox.age(6)

    again = await claim_keyed(link)
    assert bodies(again) == ["a1", "a2", "a3"]
    assert [delivery.suspect for delivery in again] == [True, True, False]


async def test_a_released_suspect_is_one_again_and_holds_nothing(outbox: Outbox) -> None:
    link = await outbox.link()
    await publish(outbox, "a1")
    await claim_keyed(link, lease=5)
    await outbox.age(6)
    (suspect,) = await claim_keyed(link)

    await settle(link, suspect, Release())

    (again,) = await claim_keyed(link)
    assert again.suspect


async def test_a_stale_settlement_changes_nothing_of_a_key(outbox: Outbox) -> None:
    link = await outbox.link()
    await publish(outbox, "a1", "a2")
    stale = await claim_keyed(link, lease=5)
    await outbox.age(6)
    await claim_keyed(link)

    assert await settle(link, stale[0], Ack()) == set()
    assert await settle(link, stale[1], HALT) == set()
    assert await claim_keyed(link) == []


# Keys that are halted


async def test_a_dead_message_may_halt_its_key_and_no_other(outbox: Outbox) -> None:
    link = await outbox.link()
    await halted(outbox, link, "a1", "a2", "b1")

    assert bodies(await claim_keyed(link)) == ["b1"]
    assert (await outbox.store.stats())["orders"].dead == 1
    assert (await outbox.store.stats())["orders"].blocked_keys == 1


async def test_a_redrive_of_a_halted_key_begins_with_the_message_that_halted_it(outbox: Outbox) -> None:
    link = await outbox.link()
    await halted(outbox, link, "a1", "a2")

    assert await outbox.redrive(queue="orders", key="a", dry_run=True) == 1
    assert await outbox.redrive(queue="orders", key="a") == 1

    again = await claim_keyed(link)
    assert bodies(again) == ["a1", "a2"]
    assert (again[0].attempts, again[0].deliveries, again[0].suspect) == (0, 0, False)
    assert (await outbox.store.stats())["orders"].dead == 0


async def test_a_redrive_of_another_key_leaves_it_halted(outbox: Outbox) -> None:
    link = await outbox.link()
    await halted(outbox, link, "a1", "a2")

    assert await outbox.redrive(queue="orders", key="b") == 0
    assert await outbox.redrive(queue="mails") == 0
    assert await outbox.redrive(reason="max_deliveries") == 0
    assert await claim_keyed(link) == []


async def test_a_redrive_counts_halting_messages_and_dead_letters_together(outbox: Outbox) -> None:
    link = await outbox.link()
    await halted(outbox, link, "a1", "a2")
    await publish(outbox, "b1", "c1")
    for delivery in await claim_keyed(link):
        await settle(link, delivery, DeadLetter("rejected"))

    assert await outbox.redrive(dry_run=True) == 3
    assert await outbox.redrive(limit=2, dry_run=True) == 2
    assert await outbox.redrive(limit=2) == 2
    assert await outbox.redrive() == 1
    assert sorted(bodies(await claim_keyed(link))) == ["a1", "a2", "b1", "c1"]


async def test_a_released_key_goes_on_without_the_dead_message(outbox: Outbox) -> None:
    link = await outbox.link()
    await halted(outbox, link, "a1", "a2")

    assert await outbox.store.release_key("orders", "a", None)

    assert bodies(await claim_keyed(link)) == ["a2"]
    (letter,) = await outbox.dead_letters()
    assert (letter.payload, letter.reason, letter.error, letter.attempts) == (b"a1", "rejected", "no", 1)
    assert not await outbox.store.release_key("orders", "a", None)


async def test_releasing_a_key_that_is_not_halted_changes_nothing(outbox: Outbox) -> None:
    link = await outbox.link()
    await publish(outbox, "a1")
    await claim_keyed(link)

    assert not await outbox.store.release_key("orders", "a", None)
    assert await outbox.dead_letters() == []


async def test_a_release_takes_part_in_the_callers_transaction(outbox: Outbox) -> None:
    link = await outbox.link()
    await halted(outbox, link, "a1", "a2")

    try:
        async with outbox.transaction() as session:
            await outbox.store.release_key("orders", "a", session)
            raise LookupError
    except LookupError:
        pass

    assert await claim_keyed(link) == []


async def test_where_there_is_no_other_table_a_halted_key_can_be_redriven_and_released(parking_outbox: Outbox) -> None:
    outbox, link = parking_outbox, await parking_outbox.link()
    await halted(outbox, link, "a1", "a2")

    assert await claim_keyed(link) == []
    assert await outbox.redrive(key="a") == 1
    again, _ = await claim_keyed(link)
    assert bodies([again]) == ["a1"]
    await settle(link, again, HALT)
    assert await outbox.store.release_key("orders", "a", None)
    assert (await outbox.store.stats())["orders"].dead == 1


async def test_where_there_is_no_other_table_a_dead_message_lets_its_key_go_on(parking_outbox: Outbox) -> None:
    link = await parking_outbox.link()
    await publish(parking_outbox, "a1", "a2")
    (first,) = await claim_keyed(link, run=1)

    await settle(link, first, DeadLetter("rejected"))

    assert bodies(await claim_keyed(link)) == ["a2"]
    assert (await parking_outbox.store.stats())["orders"].blocked_keys == 0


async def test_blocked_keys_are_counted(outbox: Outbox) -> None:
    link = await outbox.link()
    await publish(outbox, "a1", "a2", "b1", "c1", "c2")
    for delivery in await claim_keyed(link, run=1):
        await settle(link, delivery, Retry(60))

    assert (await outbox.store.stats())["orders"].blocked_keys == 2


async def test_a_halted_key_is_blocked_whether_others_wait_or_not(outbox: Outbox) -> None:
    link = await outbox.link()
    await halted(outbox, link, "a1")
    alone = (await outbox.store.stats())["orders"].blocked_keys

    await publish(outbox, "a2")

    assert (alone, (await outbox.store.stats())["orders"].blocked_keys) == (1, 1)


async def test_a_run_ends_where_its_payloads_reach_the_bytes(outbox: Outbox) -> None:
    link, other = await outbox.link(), await outbox.link()
    await publish(outbox, "a1", "a2", "a3", "a4")

    claim = await link.claim_keyed(KeyWant("orders", 10, 10, most_bytes=4), lease=30)

    assert bodies(claim.deliveries) == ["a1", "a2"]
    assert claim.after is None
    for delivery in claim.deliveries:
        assert await claim_keyed(other) == []
        await settle(link, delivery, Ack())
    assert bodies(await claim_keyed(other)) == ["a3", "a4"]


async def test_the_keys_behind_the_bytes_are_those_with_which_the_next_claim_goes_on(outbox: Outbox) -> None:
    link = await outbox.link()
    await publish(outbox, "a1", "b1", "c1", "d1", "a2", "b2", "c2", "d2")

    first = await link.claim_keyed(KeyWant("orders", 10, 10, most_bytes=5), lease=30)
    second = await link.claim_keyed(KeyWant("orders", 10, 10, first.after, most_bytes=100), lease=30)

    assert bodies(first.deliveries) == ["a1", "a2", "b1"]
    assert first.after == "b"
    assert bodies(second.deliveries) == ["c1", "c2", "d1", "d2"]
    assert second.after is None


async def test_a_message_with_a_key_that_has_more_than_the_bytes_is_claimed_alone(outbox: Outbox) -> None:
    link = await outbox.link()
    await outbox.publish(*(compose(key * 50_000, "orders", key=key) for key in "aabb"))

    first = await link.claim_keyed(KeyWant("orders", 10, 10, most_bytes=1_000), lease=30)
    second = await link.claim_keyed(KeyWant("orders", 10, 10, first.after, most_bytes=1_000), lease=30)

    assert [delivery.key for delivery in first.deliveries] == ["a"]
    assert [delivery.key for delivery in second.deliveries] == ["b"]


async def test_a_key_that_cannot_be_claimed_has_no_part_in_the_bytes(outbox: Outbox) -> None:
    link, other = await outbox.link(), await outbox.link()
    await publish(outbox, "a1")
    await claim_keyed(other)
    await publish(outbox, "a2", "b1", "c1")

    claim = await link.claim_keyed(KeyWant("orders", 10, 10, most_bytes=3), lease=30)

    assert bodies(claim.deliveries) == ["b1", "c1"]


async def test_what_was_published_late_waits_for_a_run_that_was_cut(waking_outbox: Outbox) -> None:
    outbox, link, other = waking_outbox, await waking_outbox.link(), await waking_outbox.link()
    async with outbox.transaction() as late:
        await outbox.store.insert([compose("a1", "orders", key="a")], late)
        await publish(outbox, "a2", "a3", "a4")
        claim = await link.claim_keyed(KeyWant("orders", 10, 10, most_bytes=3), lease=30)

    assert bodies(claim.deliveries) == ["a2", "a3"]
    for delivery in claim.deliveries:
        assert await claim_keyed(other) == []
        await settle(link, delivery, Ack())
    assert bodies(await claim_keyed(other)) == ["a1", "a4"]
