"""Three ways to consume it, each with a record of what its handler saw."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from outbox_core.faststream import OutboxBroker
from outbox_core.faststream.annotations import OutboxMessage
from outbox_core.retry import ConstantRetry
from tests.mixed.place import Shared, until
from tests.mixed.publishers import QUEUE

ATTEMPTS = 2


class Broken(Exception):
    """What a handler raises that was told to fail."""


@dataclass(frozen=True)
class Seen:
    """A message as a handler sees it."""

    body: Any
    headers: dict[str, str]
    queue: str
    correlation_id: str
    message_id: str
    key: str | None
    priority: int
    attempt: int


@dataclass
class Consumer:
    """A broker of one framework with one handler, whose first runs fail if told so; and the other framework's broker."""

    broker: OutboxBroker
    other: OutboxBroker
    subscribe: Callable[..., None]
    failures: int = 0
    seen: list[Seen] = field(default_factory=list)

    def handle(self, body: Any, message: Any) -> None:
        self.seen.append(
            Seen(
                body,
                dict(message.headers),
                message.queue,
                message.correlation_id,
                message.message_id,
                message.key,
                message.priority,
                message.attempt,
            )
        )
        if len(self.seen) <= self.failures:
            raise Broken("the label printer is on fire")

    @asynccontextmanager
    async def running(self, *queues: str, max_fetch_interval: float = 0.1) -> AsyncIterator["Consumer"]:
        """Consume meanwhile; what a handler did is settled at the end."""
        self.subscribe(
            self,
            queues or (QUEUE,),
            max_fetch_interval=max_fetch_interval,
            retry_strategy=ConstantRetry(delay_seconds=0.05, max_attempts=ATTEMPTS),
        )
        async with self.broker:
            await self.broker.start()
            yield self

    async def until_seen(self, count: int) -> None:
        await until(lambda: len(self.seen), count)


def subscribe_sync(consumer: Consumer, queues: tuple[str, ...], **options: Any) -> None:
    @consumer.broker.subscriber(queues, **options)
    def handle(body: dict[str, Any], message: OutboxMessage) -> None:
        consumer.handle(body, message)


def subscribe_async(consumer: Consumer, queues: tuple[str, ...], **options: Any) -> None:
    @consumer.broker.subscriber(queues, **options)
    async def handle(body: dict[str, Any], message: OutboxMessage) -> None:
        consumer.handle(body, message)


def django_sync(shared: Shared) -> Consumer:
    return Consumer(shared.django_broker(), shared.sqlalchemy, subscribe_sync)


def django_async(shared: Shared) -> Consumer:
    return Consumer(shared.django_broker(), shared.sqlalchemy, subscribe_async)


def sqlalchemy(shared: Shared) -> Consumer:
    return Consumer(shared.sqlalchemy_broker(), shared.django, subscribe_async)


CONSUMERS: dict[str, Callable[[Shared], Consumer]] = {
    "Django sync handler": django_sync,
    "Django async handler": django_async,
    "SQLAlchemy": sqlalchemy,
}
