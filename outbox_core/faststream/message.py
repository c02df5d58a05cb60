"""What a FastStream handler, or who pulls, sees of a delivery, and how votes are recorded.

In a handler, acking writes nothing by itself: the vote stays with the delivery until the engine settles it, so it cannot fail
half-way. A message that was pulled has no handler whose end the engine could wait for, so its vote is written at once.
"""

import json
from collections.abc import Awaitable, Callable, Sequence
from datetime import timedelta
from typing import Any

from faststream.message import AckStatus, StreamMessage, decode_message

from outbox_core.envelope import CONTENT_TYPE, CORRELATION_ID, JSON_TYPE, REPLY_TO, check_delay
from outbox_core.errors import Undecodable
from outbox_core.faststream._compat import json_loads
from outbox_core.json_reader import read_json
from outbox_core.message import Delivery, UnreadableHeaders
from outbox_core.outcome import Ack, Nack, Reject, Snooze, Vote


class OutboxMessage(StreamMessage[Any]):
    """One delivery, or a batch of them, as FastStream's message. The first vote stands.

    `settle`: of a message that was pulled; writes its vote.
    """

    settle: Callable[[Delivery], Awaitable[None]] | None = None

    @property
    def deliveries_in_hand(self) -> tuple[Delivery, ...]:
        """The deliveries behind this message: one, or those of the batch."""
        raw = self.raw_message
        return tuple(raw) if isinstance(raw, Sequence) else (raw,)

    @property
    def _first(self) -> Delivery:
        return self.deliveries_in_hand[0]

    @property
    def queue(self) -> str:
        return self._first.queue

    @property
    def key(self) -> str | None:
        return self._first.key

    @property
    def priority(self) -> int:
        return self._first.priority

    @property
    def attempt(self) -> int:
        """1 for the first handler run; one more after each that failed."""
        return self._first.attempts + 1

    @property
    def deliveries(self) -> int:
        """How often a handler was started for this message, this time included (AMQP's delivery-count plus one)."""
        return self._first.deliveries + 1

    @property
    def session(self) -> Any:
        """The transaction that a `transactional=True` handler runs in: what `session=` is elsewhere, and None without it."""
        return self._first.session

    @property
    def lease_lost(self) -> bool:
        """Whether another worker may have the message by now; what is voted here has no effect any more."""
        return any(delivery.lease_lost for delivery in self.deliveries_in_hand)

    async def ack(self) -> None:
        """Vote that it is done."""
        await self._vote(Ack(), AckStatus.ACKED)

    async def nack(self, delay: float | timedelta | None = None) -> None:
        """Vote for another try, after *delay* seconds or when the retry strategy says; counts as a failed attempt."""
        seconds = None if delay is None else check_delay("delay", delay)
        await self._vote(Nack(seconds), AckStatus.NACKED)

    async def reject(self) -> None:
        """Vote against any further try: it becomes a dead letter."""
        await self._vote(Reject(), AckStatus.REJECTED)

    async def snooze(self, delay: float | timedelta) -> None:
        """Vote to see it again in *delay* seconds; no attempt is counted."""
        await self._vote(Snooze(check_delay("delay", delay)), AckStatus.NACKED)

    async def _vote(self, vote: Vote, status: AckStatus) -> None:
        for delivery in self.deliveries_in_hand:
            delivery.cast(vote)
        if self.committed is None:
            self.committed = status
        if self.settle is not None:
            for delivery in self.deliveries_in_hand:
                await self.settle(delivery)


async def parse_message(delivery: Delivery) -> OutboxMessage:
    """A message of one delivery; the body stays bytes until it is decoded. `Undecodable` without headers to tell its type."""
    headers = delivery.headers
    if isinstance(headers, UnreadableHeaders):
        raise Undecodable("the headers are no JSON object", {delivery.message_id})
    message_id = str(delivery.message_id)
    return OutboxMessage(
        raw_message=delivery,
        body=delivery.payload,
        headers=dict(headers),
        reply_to=headers.get(REPLY_TO, ""),
        content_type=headers.get(CONTENT_TYPE),
        correlation_id=headers.get(CORRELATION_ID) or message_id,
        message_id=message_id,
    )


async def decode_body(message: StreamMessage[Any]) -> Any:
    """The body as its content type says; `Undecodable` if it is not, which no retry can change."""
    if message.content_type == JSON_TYPE:  # what nearly every message is, without upstream's look-ups
        return _decode_json(message.body)
    try:
        return decode_message(message)
    except (AttributeError, TypeError, ValueError, RecursionError) as error:  # of a content type that is no text, too
        raise Undecodable(f"the body is not {message.content_type}: {error}") from error


def _decode_json(payload: bytes) -> Any:
    try:
        return _read_json(payload)
    except (TypeError, ValueError, RecursionError) as error:
        raise Undecodable(f"the body is not {JSON_TYPE}: {error}") from error


_read_json = read_json if json_loads is json.loads else json_loads  # orjson's, where it is installed


async def parse_batch(deliveries: Sequence[Delivery]) -> OutboxMessage:
    """A message of many deliveries: a list of bodies, one correlation id, the headers of each."""
    unreadable = {one.message_id for one in deliveries if isinstance(one.headers, UnreadableHeaders)}
    if unreadable:
        raise Undecodable("the headers are no JSON object", unreadable)
    first = await parse_message(deliveries[0])
    return OutboxMessage(
        raw_message=tuple(deliveries),
        body=[delivery.payload for delivery in deliveries],
        headers=first.headers,
        batch_headers=[dict(delivery.headers) for delivery in deliveries],
        content_type=first.content_type,
        correlation_id=first.correlation_id,
        message_id=first.message_id,
    )


async def decode_batch(message: StreamMessage[Any]) -> list[Any]:
    """Each body as its own content type says; `Undecodable` names those that are not, so that the others may live."""
    bodies, faults = [], {}
    for delivery in message.raw_message:
        try:
            is_json = delivery.headers.get(CONTENT_TYPE) == JSON_TYPE
            bodies.append(
                _decode_json(delivery.payload) if is_json else await decode_body(await parse_message(delivery))
            )
        except Undecodable as error:
            faults[delivery.message_id] = str(error)
    if faults:
        raise Undecodable("; ".join(faults.values()), frozenset(faults))
    return bodies
