"""Large messages: how much of them a worker holds that no handler has begun, and that this keeps no slot from its work."""

import asyncio
from collections.abc import Sequence

import pytest

from outbox_core.envelope import compose
from outbox_core.events import Claimed, Event
from outbox_core.message import Delivery
from outbox_core.store import CLAIM_BYTES
from tests.contract.conftest import Work
from tests.contract.harness import Outbox, batch_consumer, consumer, pulled, puller, until

MEGABYTE = 1_000_000
LARGE = b"x" * MEGABYTE  # as large as it may be by default

some_outboxes = pytest.mark.parametrize("outbox", ["memory", "sqlite", "asyncpg"], indirect=True)


class Held:
    """How many messages were claimed and have not begun, and the most of them that there were."""

    def __init__(self) -> None:
        self.now = self.most = self.begun = 0

    def observe(self, event: Event) -> None:
        if isinstance(event, Claimed):
            self.now += event.count
            self.most = max(self.most, self.now)

    def begin(self, count: int = 1) -> None:
        self.now -= count
        self.begun += count


@some_outboxes
@pytest.mark.parametrize(
    ("keys", "prefetch"), [((None,), None), ((None,), 1_000), (("a",), 1_000), (tuple("abcdefgh"), None)]
)
async def test_a_worker_holds_no_more_large_messages_in_advance_than_one_claim_may_have(
    outbox: Outbox, work: Work, keys: Sequence[str | None], prefetch: int | None
) -> None:
    held = Held()

    async def handle(delivery: Delivery) -> None:
        held.begin()

    for number in range(50):
        await outbox.publish(compose(LARGE, "orders", key=keys[number % len(keys)]))
    await work(consumer(handle, max_workers=4, prefetch=prefetch), observers=[held.observe])

    await until(lambda: held.begun == 50, within=30)
    slots = 4  # may have one each and not have begun with it
    assert CLAIM_BYTES // 2 < held.most * MEGABYTE <= CLAIM_BYTES + MEGABYTE + slots * MEGABYTE


@some_outboxes
async def test_a_batch_has_no_more_than_that(outbox: Outbox, work: Work) -> None:
    batches: list[int] = []

    async def handle(deliveries: Sequence[Delivery]) -> None:
        batches.append(len(deliveries))

    for _ in range(40):
        await outbox.publish(compose(LARGE, "orders"))
    await work(batch_consumer(handle, max_records=1_000))

    await until(lambda: sum(batches) == 40, within=30)
    assert max(batches) * MEGABYTE <= CLAIM_BYTES + MEGABYTE


@some_outboxes
@pytest.mark.parametrize("workers", [22, 40])
async def test_every_slot_has_a_large_message_at_the_same_time(
    outbox: Outbox, work: Work, workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without waiting for the look that comes in any case."""
    monkeypatch.setattr("outbox_core.claimer.SURVEY_EVERY", 60.0)
    together = asyncio.Barrier(workers)
    handled: list[int] = []

    async def handle(delivery: Delivery) -> None:
        await together.wait()
        handled.append(delivery.id)

    for _ in range(2 * workers):
        await outbox.publish(compose(LARGE, "orders"))
    await work(consumer(handle, max_workers=workers))

    await until(lambda: len(handled) == 2 * workers, within=20)


@some_outboxes
async def test_everybody_who_pulls_has_a_large_message(
    outbox: Outbox, work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("outbox_core.claimer.SURVEY_EVERY", 60.0)
    its = puller()
    await work(its)
    pulls = [asyncio.create_task(pulled(its)) for _ in range(22)]

    for _ in range(22):
        await outbox.publish(compose(LARGE, "orders"))

    async with asyncio.timeout(10):
        assert len({delivery.id for delivery in await asyncio.gather(*pulls)}) == 22


@some_outboxes
async def test_a_backlog_of_large_and_small_messages_is_drained_in_order(outbox: Outbox, work: Work) -> None:
    handled: dict[str | None, list[int]] = {None: [], "a": [], "b": []}

    async def handle(delivery: Delivery) -> None:
        handled[delivery.key].append(delivery.id)

    published: dict[str | None, list[int | None]] = {None: [], "a": [], "b": []}
    for number in range(300):
        key = (None, "a", "b")[number % 3]
        body = LARGE if number % 10 == 0 else b"small"
        published[key] += await outbox.publish(compose(body, "orders", key=key, priority=number % 2))
    await work(consumer(handle, max_workers=1))

    await until(lambda: sum(map(len, handled.values())) == 300, within=30)
    assert (handled["a"], handled["b"]) == (published["a"], published["b"])
    assert sorted(handled[None]) == published[None]
    await until(lambda: nothing_is_left(outbox))


async def nothing_is_left(outbox: Outbox) -> bool:
    return await outbox.pending() == []
