"""Five ways to publish the same message."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, TypeAlias
from uuid import UUID

from asgiref.sync import sync_to_async
from django.db.transaction import atomic
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session

from outbox_django import apublish, publish
from tests.mixed.place import Shared

Publish: TypeAlias = Callable[..., Awaitable[int | None]]

QUEUE = "orders"
BODY = {"id": 7, "item": "Tasse, 300 ml, grün", "lines": [1, None, True, 2.5]}
MESSAGE_ID = UUID("018f2f6e-0000-7000-8000-00000000c0de")
OPTIONS: dict[str, Any] = {
    "headers": {"tenant": "acme"},
    "correlation_id": "checkout-42",
    "message_id": MESSAGE_ID,
    "key": "customer-7",
    "priority": 3,
}


async def django_sync(shared: Shared, **more: Any) -> int | None:
    def in_a_view() -> int | None:
        with atomic(using=shared.alias):
            return publish(BODY, QUEUE, using=shared.alias, **OPTIONS, **more)

    return await sync_to_async(in_a_view)()


async def django_async(shared: Shared, **more: Any) -> int | None:
    return await apublish(BODY, QUEUE, using=shared.alias, standalone=True, **OPTIONS, **more)


async def sqlalchemy_sync(shared: Shared, **more: Any) -> int | None:
    def in_a_script() -> int | None:
        with Session(shared.sync_engine) as session, session.begin():
            return shared.sqlalchemy.publish_sync(BODY, QUEUE, session=session, **OPTIONS, **more)

    return await asyncio.to_thread(in_a_script)


async def sqlalchemy_async(shared: Shared, **more: Any) -> int | None:
    async with AsyncSession(shared.engine) as session, session.begin():
        return await shared.sqlalchemy.publish(BODY, QUEUE, session=session, **OPTIONS, **more)


async def faststream_publisher(shared: Shared, **more: Any) -> int | None:
    publisher = shared.sqlalchemy.publisher(QUEUE)
    async with shared.engine.begin() as connection:
        row_id: int | None = await publisher.publish(BODY, session=connection, **OPTIONS, **more)
        return row_id


PUBLISHERS: dict[str, Publish] = {
    "Django sync": django_sync,
    "Django async": django_async,
    "SQLAlchemy sync": sqlalchemy_sync,
    "SQLAlchemy async": sqlalchemy_async,
    "FastStream publisher": faststream_publisher,
}
