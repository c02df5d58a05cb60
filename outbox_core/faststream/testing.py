"""`TestOutboxBroker`: the broker in memory, for tests of handlers.

A publish runs the real checks and the real encoder, then the handler at once, and raises what it raises. There is no
table, no lease and no retry here; for those, give the engine an `outbox_core.memory.MemoryStore` or a real database.
"""

import asyncio
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from itertools import count
from typing import Any, cast
from uuid import uuid4

from faststream.exceptions import SubscriberNotFound

from outbox_core.faststream._compat import TestBroker, change_producer
from outbox_core.faststream.broker import OutboxBroker
from outbox_core.faststream.producer import OutboxProducer
from outbox_core.faststream.publisher import OutboxPublisher
from outbox_core.faststream.response import OutboxPublishCommand
from outbox_core.faststream.subscriber import OutboxSubscriber
from outbox_core.message import Delivery, NewMessage


class TestOutboxBroker(TestBroker[OutboxBroker, Any], broker=OutboxBroker):
    """Redirects publishes to the broker's own handlers; `with_real=True` keeps the database and adds the mocks."""

    @staticmethod
    async def _fake_connect(broker: OutboxBroker, *args: Any, **kwargs: Any) -> None:
        return None

    @contextmanager
    def _patch_producer(self, broker: OutboxBroker) -> Iterator[None]:
        config = broker.config.broker_config
        real = config.sync_producer
        config.sync_producer = cast("Any", _FakeSyncProducer(broker, self.brokers))
        try:
            with change_producer(config, FakeProducer(broker, self.brokers)):
                yield
        finally:
            config.sync_producer = real

    def create_publisher_fake_subscriber(
        self, broker: OutboxBroker, publisher: OutboxPublisher
    ) -> tuple[OutboxSubscriber, bool]:
        for subscriber in _subscribers(self.brokers):
            if publisher.queue in subscriber.queues:
                return subscriber, True
        return broker.subscriber(publisher.queue, persistent=False), False


class FakeProducer(OutboxProducer):
    """Delivers to the subscriber of the queue instead of inserting a row."""

    _ids = count(1)

    def __init__(self, broker: OutboxBroker, brokers: Sequence[OutboxBroker]) -> None:
        super().__init__(broker.config.broker_config)
        self._brokers = brokers

    async def publish(self, cmd: OutboxPublishCommand) -> int:
        return (await self.publish_batch(cmd))[0]

    async def publish_batch(self, cmd: OutboxPublishCommand) -> list[int]:  # type: ignore[override]  # never None here
        deliveries = [_delivery(message, next(self._ids)) for message in await self.compose(cmd)]
        subscriber = self._subscriber(cmd.destination)
        if subscriber is not None and subscriber.options.batch:
            await subscriber.process_message(deliveries)
        elif subscriber is not None:
            for delivery in deliveries:
                await subscriber.process_message(delivery)
        return [delivery.id for delivery in deliveries]

    async def request(self, cmd: OutboxPublishCommand) -> Any:
        subscriber = self._subscriber(cmd.destination)
        if subscriber is None:
            raise SubscriberNotFound(f"no subscriber of {cmd.destination!r}")
        delivery = _delivery((await self.compose(cmd))[0], next(self._ids))
        raw = [delivery] if subscriber.options.batch else delivery
        async with asyncio.timeout(cmd.timeout):
            response = await subscriber.process_message(raw)
        answer = OutboxPublishCommand(
            response.body, queue=cmd.destination, headers=response.headers, correlation_id=response.correlation_id
        )
        return _delivery((await self.compose(answer))[0], next(self._ids))

    def _subscriber(self, queue: str) -> OutboxSubscriber | None:
        return next((one for one in _subscribers(self._brokers) if queue in one.queues), None)


class _FakeSyncProducer(FakeProducer):
    async def publish_batch(self, cmd: OutboxPublishCommand) -> list[int]:  # type: ignore[override]  # as above
        return [_delivery(message, next(self._ids)).id for message in await self.compose(cmd)]


def _subscribers(brokers: Sequence[OutboxBroker]) -> Iterator[OutboxSubscriber]:
    for broker in brokers:
        yield from cast("list[OutboxSubscriber]", broker.subscribers)


def _delivery(message: NewMessage, id: int) -> Delivery:
    now = datetime.now(UTC)
    return Delivery(
        id=id,
        message_id=message.message_id,
        queue=message.queue,
        key=message.key,
        payload=message.payload,
        headers=json.loads(message.headers),
        priority=message.priority,
        attempts=0,
        deliveries=0,
        created_at=now,
        first_attempt_at=None,
        due_at=now,
        claimed_at=now,
        token=uuid4(),
    )
