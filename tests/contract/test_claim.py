"""Claiming: what is due, in order, within the limits, and by one worker only."""

import asyncio
from datetime import UTC, datetime, timedelta

from outbox_core.envelope import compose
from outbox_core.message import Delivery
from outbox_core.outcome import Ack, DeadLetter
from outbox_core.store import Band, Link, Want
from tests.contract.harness import Outbox, bodies, claim, settle

NOON = datetime(2020, 1, 1, 12, tzinfo=UTC)
MINUTE = timedelta(minutes=1)


async def test_an_empty_queue_gives_nothing(outbox: Outbox) -> None:
    assert await claim(await outbox.link()) == []


async def test_messages_come_in_the_order_in_which_they_are_due(outbox: Outbox) -> None:
    await outbox.publish(
        compose("third", "orders", activate_at=NOON + 2 * MINUTE),
        compose("first", "orders", activate_at=NOON),
        compose("second", "orders", activate_at=NOON + MINUTE),
    )

    assert bodies(await claim(await outbox.link())) == ["first", "second", "third"]


async def test_messages_due_at_the_same_time_come_in_the_order_of_publishing(outbox: Outbox) -> None:
    await outbox.publish(*(compose(str(number), "orders", activate_at=NOON) for number in range(20)))

    assert bodies(await claim(await outbox.link())) == [str(number) for number in range(20)]


async def test_a_want_takes_its_own_queue_only(outbox: Outbox) -> None:
    await outbox.publish(compose("a", "orders"), compose("b", "mails"))

    assert bodies(await claim(await outbox.link(), "mails")) == ["b"]


async def test_a_want_takes_its_own_priority_only(outbox: Outbox) -> None:
    link = await outbox.link()
    await outbox.publish(
        compose("low", "orders", priority=-1), compose("normal", "orders"), compose("high", "orders", priority=1)
    )

    high = await link.claim([Want(Band("orders", 1), 10)], total=10, lease=30)

    assert bodies(high) == ["high"]
    assert high[0].priority == 1


async def test_deliveries_come_by_want_and_then_by_age(outbox: Outbox) -> None:
    link = await outbox.link()
    await outbox.publish(
        compose("mail", "mails", activate_at=NOON),
        compose("urgent 2", "orders", priority=9, activate_at=NOON + 2 * MINUTE),
        compose("normal", "orders", activate_at=NOON),
        compose("urgent 1", "orders", priority=9, activate_at=NOON + MINUTE),
    )

    claimed = await link.claim(
        [Want(Band("orders", 9), 10), Want(Band("orders", 0), 10), Want(Band("mails", 0), 10)], total=10, lease=30
    )

    assert bodies(claimed) == ["urgent 1", "urgent 2", "normal", "mail"]


async def test_each_want_has_its_own_limit(outbox: Outbox) -> None:
    link = await outbox.link()
    await outbox.publish(*(compose(f"o{number}", "orders") for number in range(5)))
    await outbox.publish(*(compose(f"m{number}", "mails") for number in range(5)))

    claimed = await link.claim([Want(Band("orders"), 2), Want(Band("mails"), 3)], total=10, lease=30)

    assert bodies(claimed) == ["o0", "o1", "m0", "m1", "m2"]


async def test_all_wants_share_the_total(outbox: Outbox) -> None:
    link = await outbox.link()
    await outbox.publish(*(compose(f"o{number}", "orders") for number in range(3)))
    await outbox.publish(*(compose(f"m{number}", "mails") for number in range(3)))

    claimed = await link.claim([Want(Band("orders"), 10), Want(Band("mails"), 10)], total=4, lease=30)

    assert bodies(claimed) == ["o0", "o1", "o2", "m0"]


async def test_what_the_limits_left_is_still_there(outbox: Outbox) -> None:
    link = await outbox.link()
    await outbox.publish(*(compose(str(number), "orders") for number in range(5)))

    assert bodies(await claim(link, limit=2)) == ["0", "1"]
    assert bodies(await claim(link, limit=2)) == ["2", "3"]
    assert bodies(await claim(link, limit=2)) == ["4"]


async def test_a_future_message_is_invisible_until_it_is_due(outbox: Outbox) -> None:
    link = await outbox.link()
    await outbox.publish(compose("a", "orders", activate_in=timedelta(seconds=60)))

    assert await claim(link) == []
    await outbox.age(61)
    (delivery,) = await claim(link)
    assert delivery.payload == b"a"
    assert not delivery.suspect


async def test_a_leased_row_is_invisible_until_its_lease_ends(outbox: Outbox) -> None:
    one, two = await outbox.link(), await outbox.link()
    await outbox.publish(compose("a", "orders"))
    (first,) = await claim(one, lease=10)

    await outbox.age(9)
    assert await claim(two) == []

    await outbox.age(2)
    (second,) = await claim(two)
    assert second.id == first.id


async def test_a_row_whose_lease_ended_is_suspect_and_has_a_new_token(outbox: Outbox) -> None:
    link = await outbox.link()
    await outbox.publish(compose("a", "orders"))
    (first,) = await claim(link, lease=10)
    await outbox.age(11)

    (second,) = await claim(link)

    assert not first.suspect
    assert second.suspect
    assert second.token != first.token
    assert (second.attempts, second.deliveries) == (0, 0)


async def test_suspects_and_fresh_messages_are_told_apart_in_one_claim(outbox: Outbox) -> None:
    link = await outbox.link()
    await outbox.publish(compose("old", "orders"))
    await claim(link, lease=10)
    await outbox.age(11)
    await outbox.publish(compose("new", "orders"))

    claimed = await claim(link)

    assert [(delivery.payload, delivery.suspect) for delivery in claimed] == [(b"old", True), (b"new", False)]


async def test_a_suspect_stays_suspect_while_nobody_settles_it(outbox: Outbox) -> None:
    link = await outbox.link()
    await outbox.publish(compose("a", "orders"))
    await claim(link, lease=10)
    await outbox.age(11)
    await claim(link, lease=10)
    await outbox.age(11)

    (third,) = await claim(link)

    assert third.suspect


async def test_a_lease_is_as_long_as_was_asked_for(outbox: Outbox) -> None:
    link = await outbox.link()
    await outbox.publish(compose("a", "orders"), compose("b", "orders"))
    await claim(link, limit=1, lease=100)
    await claim(link, limit=1, lease=10)

    await outbox.age(11)

    assert bodies(await claim(link)) == ["b"]


async def test_a_dead_message_is_never_claimed(outbox: Outbox) -> None:
    link = await outbox.link()
    await outbox.publish(compose("a", "orders"))
    await settle(link, (await claim(link))[0], DeadLetter("rejected"))

    await outbox.age(1_000)

    assert await claim(link) == []


async def test_since_skips_what_was_due_before(outbox: Outbox) -> None:
    link = await outbox.link()
    await outbox.publish(
        compose("a", "orders", activate_at=NOON),
        compose("b", "orders", activate_at=NOON + MINUTE),
        compose("c", "orders", activate_at=NOON + 2 * MINUTE),
    )

    claimed = await link.claim([Want(Band("orders"), 10, since=(NOON + MINUTE).timestamp())], total=10, lease=30)

    assert bodies(claimed) == ["b", "c"]
    assert bodies(await claim(link)) == ["a"]


async def test_a_due_time_that_a_claim_told_is_a_usable_mark(outbox: Outbox) -> None:
    link = await outbox.link()
    await outbox.publish(*(compose(str(number), "orders") for number in range(4)))
    first = await claim(link, limit=2)

    rest = await link.claim([Want(Band("orders"), 10, since=first[0].due)], total=10, lease=30)

    assert bodies(rest) == ["2", "3"]


async def test_concurrent_claims_never_overlap(outbox: Outbox) -> None:
    links = [await outbox.link() for _ in range(4)]
    published = await outbox.publish(*(compose(str(number), "orders") for number in range(200)))

    async def drain(link: Link) -> list[Delivery]:
        mine: list[Delivery] = []
        while claimed := await claim(link, limit=7):
            mine += claimed
        return mine

    claimed = [delivery for mine in await asyncio.gather(*map(drain, links)) for delivery in mine]

    assert sorted(delivery.id for delivery in claimed) == published


async def test_concurrent_workers_handle_each_message_once(outbox: Outbox) -> None:
    links = [await outbox.link() for _ in range(3)]
    await outbox.publish(*(compose(str(number), "orders") for number in range(60)))
    acked: list[int] = []

    async def work(link: Link) -> None:
        while claimed := await claim(link, limit=5):
            for delivery in claimed:
                acked.extend(await settle(link, delivery, Ack()))

    await asyncio.gather(*map(work, links))

    assert len(acked) == len(set(acked)) == 60
    assert await outbox.pending() == []


async def test_a_claim_ends_where_its_payloads_reach_the_bytes(outbox: Outbox) -> None:
    link = await outbox.link()
    await outbox.publish(*(compose(body, "orders") for body in ("aaaa", "bbbb", "cccc", "d", "e")))

    claimed = await link.claim([Want(Band("orders"), 10)], total=10, lease=30, most_bytes=9)

    assert bodies(claimed) == ["aaaa", "bbbb", "cccc"]
    assert bodies(await claim(link)) == ["d", "e"]


async def test_payloads_that_have_just_reached_the_bytes_are_enough(outbox: Outbox) -> None:
    link = await outbox.link()
    await outbox.publish(*(compose(body, "orders") for body in ("aaaa", "bbbb", "cccc")))

    claimed = await link.claim([Want(Band("orders"), 10)], total=10, lease=30, most_bytes=8)

    assert bodies(claimed) == ["aaaa", "bbbb"]


async def test_a_message_that_has_more_than_the_bytes_is_claimed_alone(outbox: Outbox) -> None:
    link = await outbox.link()
    await outbox.publish(*(compose(body, "orders") for body in ("a" * 50_000, "b" * 50_000)))

    one = await link.claim([Want(Band("orders"), 10)], total=10, lease=30, most_bytes=1_000)
    other = await link.claim([Want(Band("orders"), 10)], total=10, lease=30, most_bytes=1_000)

    assert [body[0] for body in bodies(one) + bodies(other)] == ["a", "b"]


async def test_messages_without_a_body_are_claimed_behind_one_another(outbox: Outbox) -> None:
    link = await outbox.link()
    await outbox.publish(*(compose(b"", "orders") for _ in range(3)))

    assert len(await link.claim([Want(Band("orders"), 10)], total=10, lease=30, most_bytes=1)) == 3


async def test_all_wants_share_the_bytes_in_their_order(outbox: Outbox) -> None:
    link = await outbox.link()
    wants = [Want(Band("orders", 9), 10), Want(Band("orders", 0), 10), Want(Band("mails", 0), 10)]
    await outbox.publish(compose("mail", "mails"), compose("o1", "orders"), compose("o2", "orders"))
    await outbox.publish(compose("urgent", "orders", priority=9))

    first = await link.claim(wants, total=10, lease=30, most_bytes=7)
    second = await link.claim(wants, total=10, lease=30, most_bytes=7)

    assert bodies(first) == ["urgent", "o1"]
    assert bodies(second) == ["o2", "mail"]


async def test_the_limits_hold_where_there_are_bytes_left(outbox: Outbox) -> None:
    link = await outbox.link()
    await outbox.publish(*(compose(f"o{number}", "orders") for number in range(3)))
    await outbox.publish(*(compose(f"m{number}", "mails") for number in range(3)))

    claimed = await link.claim([Want(Band("orders"), 2), Want(Band("mails"), 2)], total=3, lease=30, most_bytes=100)

    assert bodies(claimed) == ["o0", "o1", "m0"]


async def test_what_is_over_the_bytes_stays_as_it_was(outbox: Outbox) -> None:
    link, other = await outbox.link(), await outbox.link()
    await outbox.publish(compose("first", "orders"), compose("second", "orders"))
    await link.claim([Want(Band("orders"), 10)], total=10, lease=30, most_bytes=1)

    (second,) = await claim(other)

    assert bodies([second]) == ["second"]
    assert not second.suspect
    assert second.deliveries == second.attempts == 0


async def test_claims_of_few_bytes_lose_nothing_and_overlap_nowhere(outbox: Outbox) -> None:
    links = [await outbox.link() for _ in range(3)]
    published = await outbox.publish(*(compose("x" * (number % 7), "orders") for number in range(100)))
    claimed: list[int] = []

    async def drain(link: Link) -> None:
        while len(claimed) < 100:
            deliveries = await link.claim([Want(Band("orders"), 20)], total=20, lease=30, most_bytes=15)
            claimed.extend(delivery.id for delivery in deliveries)

    async with asyncio.timeout(30):
        await asyncio.gather(*map(drain, links))

    assert sorted(claimed) == published
