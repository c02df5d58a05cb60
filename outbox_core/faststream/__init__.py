"""The outbox as a FastStream broker, for every adapter: the same decorators, middlewares and tests, whichever ORM."""

from outbox_core.faststream.broker import OutboxBroker
from outbox_core.faststream.message import OutboxMessage
from outbox_core.faststream.publisher import OutboxPublisher
from outbox_core.faststream.response import OutboxPublishCommand, OutboxResponse
from outbox_core.faststream.router import OutboxPublisherArgs, OutboxRoute, OutboxRouter
from outbox_core.faststream.subscriber import OutboxSubscriber
from outbox_core.faststream.testing import TestOutboxBroker

__all__ = [
    "OutboxBroker",
    "OutboxMessage",
    "OutboxPublishCommand",
    "OutboxPublisher",
    "OutboxPublisherArgs",
    "OutboxResponse",
    "OutboxRoute",
    "OutboxRouter",
    "OutboxSubscriber",
    "TestOutboxBroker",
]
