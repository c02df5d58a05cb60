"""What operators see: dead letters, and everything that goes by a number or a message id."""

from uuid import UUID

from outbox_core.envelope import compose
from outbox_core.message import DeadMessage, PendingMessage
from outbox_core.outcome import DeadLetter, DeadReason
from tests.contract.harness import Outbox, claim, claim_keyed, settle

ONE = UUID("0197a3c0-0000-7000-8000-000000000001")
TWO = UUID("0197a3c0-0000-7000-8000-000000000002")


async def bury(
    outbox: Outbox, body: str, queue: str = "orders", reason: DeadReason = "rejected", **options: object
) -> None:
    link = await outbox.link()
    await outbox.publish(compose(body, queue, **options))
    (delivery,) = [*await claim(link, queue, limit=1), *await claim_keyed(link, queue, limit=1)]
    await settle(link, delivery, DeadLetter(reason, "ValueError: no"))


async def letters(outbox: Outbox, queue: str | None = None, reason: str | None = None, limit: int = 100) -> list[str]:
    found = await outbox.store.fetch_dead_letters(queue, reason, limit, None)
    return [letter.payload.decode() for letter in found]


async def test_dead_letters_are_listed_latest_first(outbox: Outbox) -> None:
    for body in ("a", "b", "c"):
        await bury(outbox, body)

    assert await letters(outbox) == ["c", "b", "a"]
    assert await letters(outbox, limit=2) == ["c", "b"]


async def test_dead_letters_are_listed_by_queue_and_reason(outbox: Outbox) -> None:
    await bury(outbox, "a")
    await bury(outbox, "b", queue="mails")
    await bury(outbox, "c", reason="undecodable")

    assert await letters(outbox, queue="orders") == ["c", "a"]
    assert await letters(outbox, reason="rejected") == ["b", "a"]
    assert await letters(outbox, "orders", "rejected") == ["a"]
    assert await letters(outbox, "nobody") == []


async def test_a_dead_letter_has_its_whole_history(outbox: Outbox) -> None:
    await bury(outbox, "a", message_id=ONE, key="k", headers={"tenant": "acme"})

    (letter,) = await outbox.store.fetch_dead_letters(None, None, 100, None)

    assert (letter.message_id, letter.queue, letter.key, letter.payload) == (ONE, "orders", "k", b"a")
    assert (letter.priority, letter.headers["tenant"], letter.timer_id) == (0, "acme", None)
    assert (letter.attempts_count, letter.reason, letter.error) == (1, "rejected", "ValueError: no")
    assert (letter.worker, letter.parked) == ("w1", False)
    assert letter.failed_at is not None
    assert letter.failed_at.tzinfo is not None
    assert letter.created_at <= letter.failed_at


async def test_a_parked_message_is_a_dead_letter(parking_outbox: Outbox) -> None:
    await bury(parking_outbox, "a", message_id=ONE)

    (letter,) = await parking_outbox.store.fetch_dead_letters("orders", "rejected", 100, None)

    assert (letter.payload, letter.error, letter.parked, letter.worker) == (b"a", "ValueError: no", True, None)
    assert letter.failed_at == letter.last_attempt_at
    assert await parking_outbox.store.find(letter.id, None) == [letter]
    assert await parking_outbox.store.find(ONE, None) == [letter]


async def test_a_message_is_found_by_its_number_and_by_its_id(outbox: Outbox) -> None:
    (row_id, _) = await outbox.publish(compose("a", "orders", message_id=ONE), compose("b", "orders", message_id=TWO))
    assert row_id is not None

    by_number, by_id = await outbox.store.find(row_id, None), await outbox.store.find(ONE, None)

    assert by_number == by_id
    (message,) = by_number
    assert isinstance(message, PendingMessage)
    assert (message.id, message.message_id, message.payload) == (row_id, ONE, b"a")


async def test_a_dead_letter_is_found_by_its_number_and_by_its_id(outbox: Outbox) -> None:
    await bury(outbox, "a", message_id=ONE)
    (letter,) = await outbox.store.fetch_dead_letters(None, None, 1, None)

    assert await outbox.store.find(ONE, None) == [letter]
    assert letter in await outbox.store.find(letter.id, None)
    assert isinstance(letter, DeadMessage)


async def test_what_is_not_there_is_not_found(outbox: Outbox) -> None:
    assert await outbox.store.find(4_711, None) == []
    assert await outbox.store.find(ONE, None) == []
