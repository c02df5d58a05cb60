"""From what a handler did to what becomes of its message, through FastStream's policies and votes."""

import asyncio
from datetime import timedelta
from typing import Any

import pytest
from faststream import AckPolicy
from faststream.exceptions import AckMessage, NackMessage, RejectMessage, SkipMessage

from outbox_core.errors import InvalidMessage
from outbox_core.retry import ConstantRetry, NoRetry
from outbox_sqlalchemy import OutboxMessage, OutboxRouter
from tests.places import Place, running, until

SOON = ConstantRetry(delay_seconds=0.01, max_attempts=3)
LATER = ConstantRetry(delay_seconds=600)


def graves(place: Place) -> list[tuple[str, str | None, int]]:
    return [
        (row.failure_reason, row.last_exception, row.attempts_count) for row in place.rows(place.tables.dead_letters)
    ]


def left(place: Place) -> list[tuple[int, int, bool]]:
    """Attempts and deliveries of what is still in the table, and whether it is to come back within a minute."""
    return [
        (row.attempts_count, row.deliveries_count, row.next_attempt_at - row.created_at < timedelta(minutes=1))
        for row in place.rows()
        if row.acquired_token is None
    ]


# Policies


async def test_success_deletes_the_row(both: Place) -> None:
    broker = both.broker()
    handled: list[int] = []

    @broker.subscriber("orders")
    async def handle(body: int) -> None:
        handled.append(body)

    async with running(broker):
        await broker.publish(7, "orders")
        await until(lambda: (handled, both.rows()), ([7], []))

    assert graves(both) == []


@pytest.mark.parametrize("where", ["default", "subscriber", "broker", "router", "broker of a router"])
async def test_nack_on_error_retries_and_buries_in_the_end(place: Place, where: str) -> None:
    policy = AckPolicy.NACK_ON_ERROR
    broker, router = place.broker(), OutboxRouter()
    if where.startswith("broker"):
        broker = place.broker(ack_policy=policy)
    if where == "router":
        router = OutboxRouter(ack_policy=policy)
    options: dict[str, Any] = {"ack_policy": policy} if where == "subscriber" else {}
    attempts: list[int] = []

    @(router if "router" in where else broker).subscriber("orders", retry_strategy=SOON, **options)
    async def handle(body: int, message: OutboxMessage) -> None:
        attempts.append(message.attempt)
        raise ValueError(body)

    broker.include_router(router)
    async with running(broker):
        await broker.publish(7, "orders")
        await until(lambda: graves(place), [("retry_terminal", "ValueError: 7", 3)])

    assert attempts == [1, 2, 3]


@pytest.mark.parametrize("where", ["subscriber", "broker", "router", "broker of a router", "subscriber over broker"])
async def test_reject_on_error_buries_at_the_first_failure(place: Place, where: str) -> None:
    policy = AckPolicy.REJECT_ON_ERROR
    broker, router = place.broker(), OutboxRouter()
    if where.startswith("broker"):
        broker = place.broker(ack_policy=policy)
    if where == "subscriber over broker":
        broker = place.broker(ack_policy=AckPolicy.MANUAL)
    if where == "router":
        router = OutboxRouter(ack_policy=policy)
    options: dict[str, Any] = {"ack_policy": policy} if where.startswith("subscriber") else {}

    @(router if "router" in where else broker).subscriber("orders", retry_strategy=SOON, **options)
    async def handle(body: int) -> None:
        raise ValueError(body)

    broker.include_router(router)
    async with running(broker):
        await broker.publish(7, "orders")
        await until(lambda: graves(place), [("rejected", "ValueError: 7", 1)])


@pytest.mark.parametrize("where", ["broker", "router", "router over broker", "outer router"])
@pytest.mark.parametrize(
    ("policy", "rows", "buried"),
    [
        (AckPolicy.NACK_ON_ERROR, [(1, 1, False)], []),
        (AckPolicy.REJECT_ON_ERROR, [], [("rejected", "ValueError: 7", 1)]),
        (AckPolicy.ACK, [], [("rejected", "ValueError: 7", 1)]),
        (AckPolicy.MANUAL, [(1, 1, False)], []),
        (AckPolicy.ACK_FIRST, [], []),
    ],
    ids=str,
)
async def test_every_policy_holds_for_all_subscribers_below_it(
    place: Place, policy: AckPolicy, where: str, rows: list[Any], buried: list[Any]
) -> None:
    other = AckPolicy.REJECT_ON_ERROR if policy is AckPolicy.NACK_ON_ERROR else AckPolicy.NACK_ON_ERROR
    of_broker = {"broker": {"ack_policy": policy}, "router over broker": {"ack_policy": other}}.get(where, {})
    broker = place.broker(**of_broker)
    inner = OutboxRouter(**({"ack_policy": policy} if where.startswith("router") else {}))
    outer = OutboxRouter(**({"ack_policy": policy} if where == "outer router" else {}))
    handled = asyncio.Event()

    @inner.subscriber("orders", retry_strategy=LATER)
    async def handle(body: int) -> None:
        handled.set()
        if policy is not AckPolicy.MANUAL:  # which is told by what becomes of a success
            raise ValueError(body)

    outer.include_router(inner)
    broker.include_router(outer)
    async with running(broker):
        await broker.publish(7, "orders")
        await handled.wait()
        await until(lambda: (left(place), graves(place)), (rows, buried))

    assert len(place.rows()) == len(rows)


async def test_ack_buries_a_failure_instead_of_deleting_it_unseen(both: Place) -> None:
    broker = both.broker()

    @broker.subscriber("orders", ack_policy=AckPolicy.ACK, retry_strategy=SOON)
    async def handle(body: int) -> None:
        if body == 7:
            raise ValueError(body)

    async with running(broker):
        await broker.publish(7, "orders")
        await broker.publish(8, "orders")
        await until(lambda: graves(both), [("rejected", "ValueError: 7", 1)])
        await until(both.rows, [])


async def test_manual_without_a_vote_is_a_retry(both: Place) -> None:
    broker = both.broker()
    attempts: list[int] = []

    @broker.subscriber("orders", ack_policy=AckPolicy.MANUAL, retry_strategy=SOON)
    async def handle(body: int, message: OutboxMessage) -> None:
        attempts.append(message.attempt)

    async with running(broker):
        await broker.publish(7, "orders")
        await until(lambda: graves(both), [("retry_terminal", None, 3)])

    assert attempts == [1, 2, 3]


@pytest.mark.parametrize(
    ("vote", "rows", "buried"),
    [
        ("ack", [], []),
        ("nack", [(1, 1, False)], []),
        ("reject", [], [("rejected", None, 1)]),
        ("raise AckMessage", [], []),
        ("raise NackMessage", [(1, 1, False)], []),
        ("raise RejectMessage", [], [("rejected", None, 1)]),
        ("raise ValueError", [(1, 1, False)], []),
    ],
)
async def test_manual_does_what_the_handler_votes(
    place: Place, vote: str, rows: list[tuple[int, int, bool]], buried: list[tuple[str, str | None, int]]
) -> None:
    broker = place.broker()

    @broker.subscriber("orders", ack_policy=AckPolicy.MANUAL, retry_strategy=LATER)
    async def handle(body: int, message: OutboxMessage) -> None:
        match vote.split():
            case ["raise", name]:
                raise {
                    "AckMessage": AckMessage,
                    "NackMessage": NackMessage,
                    "RejectMessage": RejectMessage,
                    "ValueError": ValueError,
                }[name]()
            case _:
                await getattr(message, vote)()

    async with running(broker):
        await broker.publish(7, "orders")
        await until(lambda: (left(place), graves(place)), (rows, buried))
        if not rows:
            await until(place.rows, [])


async def test_ack_first_completes_before_the_handler_runs(both: Place) -> None:
    broker = both.broker()
    seen: list[int] = []

    @broker.subscriber("orders", ack_policy=AckPolicy.ACK_FIRST)
    async def handle(body: int) -> None:
        seen.append(len(both.rows()))
        raise ValueError(body)

    async with running(broker):
        await broker.publish(7, "orders")
        await until(lambda: seen, [0])

    assert both.rows() == []
    assert graves(both) == []


async def test_ack_first_is_at_most_once_when_the_handler_is_cut(place: Place) -> None:
    broker = place.broker(graceful_timeout=0.01)
    started = asyncio.Event()

    @broker.subscriber("orders", ack_policy=AckPolicy.ACK_FIRST)
    async def handle(body: int) -> None:
        started.set()
        await asyncio.Event().wait()

    async with running(broker):
        await broker.publish(7, "orders")
        await started.wait()

    assert place.rows() == []


@pytest.mark.parametrize(
    "policy", [AckPolicy.NACK_ON_ERROR, AckPolicy.REJECT_ON_ERROR, AckPolicy.ACK, AckPolicy.MANUAL], ids=str
)
async def test_a_handler_that_is_cut_by_a_stop_has_not_failed_whatever_its_policy(
    both: Place, policy: AckPolicy
) -> None:
    broker = both.broker(graceful_timeout=0.01)
    started = asyncio.Event()

    @broker.subscriber("orders", ack_policy=policy)
    async def handle(body: int) -> None:
        started.set()
        await asyncio.Event().wait()

    async with running(broker):
        await broker.publish(7, "orders")
        await started.wait()

    assert [(row.attempts_count, row.acquired_token) for row in both.rows()] == [(0, None)]
    assert graves(both) == []


# Votes raised


async def test_a_raised_ack_deletes_the_row(both: Place) -> None:
    broker = both.broker()
    handled = asyncio.Event()

    @broker.subscriber("orders", retry_strategy=LATER)
    async def handle(body: int) -> None:
        handled.set()
        raise AckMessage

    async with running(broker):
        await broker.publish(7, "orders")
        await handled.wait()
        await until(both.rows, [])

    assert graves(both) == []


@pytest.mark.parametrize(
    ("delay", "soon"), [(0, True), (0.01, True), (timedelta(seconds=0.01), True), (3_600, False), (None, False)]
)
@pytest.mark.parametrize("how", ["raised", "called"])
async def test_the_delay_of_a_nack_is_honoured(place: Place, delay: Any, soon: bool, how: str) -> None:
    broker = place.broker()
    attempts: list[int] = []

    @broker.subscriber("orders", retry_strategy=LATER)
    async def handle(body: int, message: OutboxMessage) -> None:
        attempts.append(message.attempt)
        if message.attempt == 2:
            return
        if how == "raised":
            raise NackMessage(delay=delay)
        await message.nack(delay)

    async with running(broker):
        await broker.publish(7, "orders")
        if soon:
            await until(lambda: (attempts, place.rows()), ([1, 2], []))
        else:
            await until(lambda: left(place), [(1, 1, False)])

    assert attempts == ([1, 2] if soon else [1])
    assert graves(place) == []


async def test_nacks_end_among_the_dead_letters_too(place: Place) -> None:
    broker = place.broker()

    @broker.subscriber("orders", retry_strategy=SOON)
    async def handle(body: int) -> None:
        raise NackMessage(delay=0)

    async with running(broker):
        await broker.publish(7, "orders")
        await until(lambda: graves(place), [("retry_terminal", None, 3)])


@pytest.mark.parametrize("how", ["raised", "called"])
async def test_a_rejected_message_is_buried(both: Place, how: str) -> None:
    broker = both.broker()

    @broker.subscriber("orders", retry_strategy=LATER)
    async def handle(body: int, message: OutboxMessage) -> None:
        if how == "raised":
            raise RejectMessage
        await message.reject()

    async with running(broker):
        await broker.publish(7, "orders")
        await until(lambda: graves(both), [("rejected", None, 1)])

    assert both.rows() == []


async def test_a_skipped_message_is_done(place: Place) -> None:
    broker = place.broker()
    handled = asyncio.Event()

    @broker.subscriber("orders", retry_strategy=LATER)
    async def handle(body: int) -> None:
        handled.set()
        raise SkipMessage

    async with running(broker):
        await broker.publish(7, "orders")
        await handled.wait()
        await until(place.rows, [])

    assert graves(place) == []


@pytest.mark.parametrize(
    "raised",
    [NackMessage(delay=-1), NackMessage(delay="soon"), NackMessage(delay=float("nan")), NackMessage(requeue=True)],
    ids=["negative", "text", "nan", "another broker's option"],
)
async def test_a_vote_with_a_bad_option_never_loses_the_message(place: Place, raised: NackMessage) -> None:
    broker = place.broker()

    @broker.subscriber("orders", retry_strategy=LATER)
    async def handle(body: int) -> None:
        raise raised

    async with running(broker):
        await broker.publish(7, "orders")
        await until(lambda: left(place), [(1, 1, False)])


async def test_a_rejection_with_another_brokers_option_is_a_rejection(place: Place) -> None:
    broker = place.broker()

    @broker.subscriber("orders", retry_strategy=LATER)
    async def handle(body: int) -> None:
        raise RejectMessage(requeue=False)

    async with running(broker):
        await broker.publish(7, "orders")
        await until(lambda: graves(place), [("rejected", None, 1)])


# Votes cast


async def test_the_first_vote_stands(both: Place) -> None:
    broker = both.broker()

    @broker.subscriber("orders", retry_strategy=LATER)
    async def handle(body: int, message: OutboxMessage) -> None:
        await message.reject()
        await message.ack()
        await message.nack()

    async with running(broker):
        await broker.publish(7, "orders")
        await until(lambda: graves(both), [("rejected", None, 1)])

    assert both.rows() == []


async def test_an_early_ack_is_not_undone_by_a_later_success(place: Place) -> None:
    broker = place.broker()
    handled = asyncio.Event()

    @broker.subscriber("orders", retry_strategy=LATER)
    async def handle(body: int, message: OutboxMessage) -> None:
        await message.ack()
        handled.set()

    async with running(broker):
        await broker.publish(7, "orders")
        await handled.wait()
        await until(place.rows, [])


async def test_a_failure_after_an_ack_is_buried_instead_of_deleted_unseen(place: Place) -> None:
    broker = place.broker()

    @broker.subscriber("orders", retry_strategy=LATER)
    async def handle(body: int, message: OutboxMessage) -> None:
        await message.ack()
        raise ValueError(body)

    async with running(broker):
        await broker.publish(7, "orders")
        await until(lambda: graves(place), [("rejected", "ValueError: 7", 1)])


async def test_a_message_may_snooze_more_often_than_it_may_be_delivered(both: Place) -> None:
    broker = both.broker()
    seen: list[tuple[int, int]] = []

    @broker.subscriber("orders", retry_strategy=NoRetry(), max_deliveries=1)
    async def handle(body: int, message: OutboxMessage) -> None:
        seen.append((message.attempt, message.deliveries))
        if len(seen) < 3:
            await message.snooze(0.01)

    async with running(broker):
        await broker.publish(7, "orders")
        await until(lambda: (seen, both.rows()), ([(1, 1), (1, 1), (1, 1)], []))

    assert graves(both) == []


async def test_a_long_snooze_waits(place: Place) -> None:
    broker = place.broker()

    @broker.subscriber("orders")
    async def handle(body: int, message: OutboxMessage) -> None:
        await message.snooze(timedelta(hours=1))

    async with running(broker):
        await broker.publish(7, "orders")
        await until(lambda: left(place), [(0, 0, False)])


@pytest.mark.parametrize("delay", [-1, float("inf"), float("nan")])
async def test_a_bad_delay_is_told_to_the_handler(place: Place, delay: float) -> None:
    broker = place.broker()
    errors: list[str] = []

    @broker.subscriber("orders", retry_strategy=LATER)
    async def handle(body: int, message: OutboxMessage) -> None:
        for vote in (message.nack, message.snooze):
            with pytest.raises(InvalidMessage) as caught:
                await vote(delay)
            errors.append(str(caught.value))
        raise ValueError(body)

    async with running(broker):
        await broker.publish(7, "orders")
        await until(lambda: left(place), [(1, 1, False)])

    assert errors == [f"delay must be between 0 and 3660 days of seconds, got {delay!r}"] * 2


# Timeouts


@pytest.mark.parametrize(
    ("policy", "buried"),
    [
        (AckPolicy.NACK_ON_ERROR, ("retry_terminal", "TimeoutError: ", 3)),
        (AckPolicy.REJECT_ON_ERROR, ("rejected", "TimeoutError: ", 1)),
        (AckPolicy.ACK, ("rejected", "TimeoutError: ", 1)),
        (AckPolicy.MANUAL, ("retry_terminal", "TimeoutError: ", 3)),
    ],
)
async def test_a_handler_that_outlasts_its_timeout_has_failed_as_its_policy_says(
    place: Place, policy: AckPolicy, buried: tuple[str, str, int]
) -> None:
    broker = place.broker()

    @broker.subscriber("orders", handler_timeout=0.02, ack_policy=policy, retry_strategy=SOON)
    async def handle(body: int) -> None:
        await asyncio.Event().wait()

    async with running(broker):
        await broker.publish(7, "orders")
        await until(lambda: graves(place), [buried])


async def test_a_handler_that_awaits_something_cancelled_has_failed(place: Place) -> None:
    broker = place.broker()

    @broker.subscriber("orders", ack_policy=AckPolicy.REJECT_ON_ERROR)
    async def handle(body: int) -> None:
        task = asyncio.create_task(asyncio.sleep(10))
        task.cancel()
        await task

    async with running(broker):
        await broker.publish(7, "orders")
        await until(
            lambda: graves(place), [("rejected", "RuntimeError: something that the handler awaited was cancelled", 1)]
        )


# Batches


@pytest.mark.parametrize(("vote", "buried"), [("ack", []), ("reject", [("rejected", None, 1), ("rejected", None, 1)])])
async def test_a_vote_on_a_batch_holds_for_each_message(
    both: Place, vote: str, buried: list[tuple[str, str | None, int]]
) -> None:
    broker = both.broker()
    handled = asyncio.Event()

    @broker.subscriber("orders", batch=True)
    async def handle(bodies: list[int], message: OutboxMessage) -> None:
        await getattr(message, vote)()
        handled.set()

    await broker.publish_batch(1, 2, queue="orders")
    async with running(broker):
        await handled.wait()
        await until(both.rows, [])

    assert graves(both) == buried


async def test_a_raised_vote_holds_for_the_whole_batch(place: Place) -> None:
    broker = place.broker()

    @broker.subscriber("orders", batch=True)
    async def handle(bodies: list[int]) -> None:
        raise RejectMessage

    await broker.publish_batch(1, 2, queue="orders")
    async with running(broker):
        await until(lambda: len(graves(place)), 2)
