"""The outbox for Django: publish and receive inside `transaction.atomic()`, handle with `manage.py outbox_worker`.

What only a worker needs is imported when it is first asked for, so that a web process that publishes imports no FastStream.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from outbox_core.retry import ConstantRetry, ExponentialRetry, LinearRetry, NoRetry

if TYPE_CHECKING:
    from outbox_core.faststream import OutboxPublisher, OutboxResponse, OutboxRoute, OutboxRouter
    from outbox_core.faststream.annotations import OutboxMessage
    from outbox_django.faststream import OutboxBroker, TestOutboxBroker
    from outbox_django.inbox import areceive, receive
    from outbox_django.publishing import apublish, apublish_batch, publish, publish_batch

    broker: OutboxBroker

__all__ = [
    "ConstantRetry",
    "ExponentialRetry",
    "LinearRetry",
    "NoRetry",
    "OutboxBroker",
    "OutboxMessage",
    "OutboxPublisher",
    "OutboxResponse",
    "OutboxRoute",
    "OutboxRouter",
    "TestOutboxBroker",
    "apublish",
    "apublish_batch",
    "areceive",
    "broker",
    "publish",
    "publish_batch",
    "receive",
]

_HOMES = {
    **dict.fromkeys(("publish", "publish_batch", "apublish", "apublish_batch"), "outbox_django.publishing"),
    **dict.fromkeys(("receive", "areceive"), "outbox_django.inbox"),
    **dict.fromkeys(("OutboxPublisher", "OutboxResponse", "OutboxRoute", "OutboxRouter"), "outbox_core.faststream"),
    "OutboxMessage": "outbox_core.faststream.annotations",
    **dict.fromkeys(("OutboxBroker", "TestOutboxBroker"), "outbox_django.faststream"),
}


def __getattr__(name: str) -> Any:
    if name == "broker":
        from outbox_django.handlers import get_broker

        return get_broker()
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
