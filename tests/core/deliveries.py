"""Deliveries out of thin air, for what needs no store."""

from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from outbox_core.message import Delivery

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)


def delivery(id: int = 1, **values: Any) -> Delivery:
    """One delivery of "orders", claimed at noon for the first time."""
    return Delivery(
        **{
            "id": id,
            "message_id": UUID(int=id),
            "queue": "orders",
            "key": None,
            "payload": b"",
            "headers": {},
            "priority": 0,
            "attempts": 0,
            "deliveries": 0,
            "created": NOON.timestamp(),
            "first_attempt": None,
            "due": NOON.timestamp(),
            "claimed": NOON.timestamp(),
            "token": UUID(int=7),
            **values,
        }
    )
