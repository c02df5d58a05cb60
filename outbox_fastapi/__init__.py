"""The outbox for FastAPI: one router for routes and handlers, which share their dependencies and their transactions."""

from outbox_core.faststream import OutboxResponse, TestOutboxBroker
from outbox_fastapi.annotations import Context, ContextRepository, Logger, OutboxBroker, OutboxMessage
from outbox_fastapi.router import OutboxRouter

__all__ = [
    "Context",
    "ContextRepository",
    "Logger",
    "OutboxBroker",
    "OutboxMessage",
    "OutboxResponse",
    "OutboxRouter",
    "TestOutboxBroker",
]
