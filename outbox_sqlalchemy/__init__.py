"""The outbox for SQLAlchemy: tables on your metadata, publishing on your session, a worker on your engine."""

from outbox_core.faststream import (
    OutboxPublisher,
    OutboxResponse,
    OutboxRoute,
    OutboxRouter,
    TestOutboxBroker,
)
from outbox_core.faststream.annotations import OutboxMessage
from outbox_core.retry import ConstantRetry, ExponentialRetry, LinearRetry, NoRetry
from outbox_sqlalchemy.broker import OutboxBroker
from outbox_sqlalchemy.inbox import Inbox
from outbox_sqlalchemy.store import SqlAlchemyStore
from outbox_sqlalchemy.tables import (
    OutboxTables,
    make_dlq_table,
    make_inbox_table,
    make_outbox_table,
    make_outbox_tables,
)

__all__ = [
    "ConstantRetry",
    "ExponentialRetry",
    "Inbox",
    "LinearRetry",
    "NoRetry",
    "OutboxBroker",
    "OutboxMessage",
    "OutboxPublisher",
    "OutboxResponse",
    "OutboxRoute",
    "OutboxRouter",
    "OutboxTables",
    "SqlAlchemyStore",
    "TestOutboxBroker",
    "make_dlq_table",
    "make_inbox_table",
    "make_outbox_table",
    "make_outbox_tables",
]
