"""A user's FastStream project, as type checkers see it (`test_typing.py`). Nothing here is ever run."""

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Annotated, assert_type

from faststream import AckPolicy, Depends, ExceptionMiddleware, FastStream
from faststream.exceptions import NackMessage
from faststream.message import StreamMessage
from faststream.response import Response
from prometheus_client import CollectorRegistry
from pydantic import BaseModel
from sqlalchemy import MetaData
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import Session

from outbox_core.faststream import OutboxPublisherArgs
from outbox_core.faststream.annotations import Context, ContextRepository, Logger
from outbox_core.faststream.annotations import OutboxBroker as TheBroker
from outbox_core.faststream.opentelemetry import OutboxTelemetryMiddleware
from outbox_core.faststream.prometheus import OutboxPrometheusMiddleware
from outbox_sqlalchemy import (
    ConstantRetry,
    ExponentialRetry,
    NoRetry,
    OutboxBroker,
    OutboxMessage,
    OutboxResponse,
    OutboxRoute,
    OutboxRouter,
    TestOutboxBroker,
    make_outbox_tables,
)


class Order(BaseModel):
    id: int


class Parcel(BaseModel):
    order_id: int


engine = create_async_engine("postgresql+asyncpg://localhost/shop")
sessions = async_sessionmaker(engine)
tables = make_outbox_tables(MetaData())

exceptions = ExceptionMiddleware()


@exceptions.add_handler(ValueError, publish=True)
async def on_value_error(error: ValueError) -> str:
    return str(error)


broker = OutboxBroker(
    engine,
    outbox_table=tables,
    require_transaction="error",
    ack_policy=AckPolicy.NACK_ON_ERROR,
    middlewares=[
        OutboxPrometheusMiddleware(registry=CollectorRegistry()),
        OutboxTelemetryMiddleware(),
        exceptions,
    ],
    graceful_timeout=10,
    description="Orders",
)
app = FastStream(broker)
router = OutboxRouter("eu.", ack_policy=AckPolicy.MANUAL)
letters = router.publisher("letters", headers={"from": "shop"}, key="k", priority=1, reply_to="answers", batch=True)


async def session() -> AsyncIterator[AsyncSession]:
    async with sessions() as session, session.begin():
        yield session


# Handlers


@broker.publisher("parcels")
@broker.subscriber("orders", max_workers=4, retry_strategy=ExponentialRetry(max_attempts=3), max_deliveries=None)
async def ship(order: Order, message: OutboxMessage, logger: Logger, its_broker: TheBroker) -> Parcel:
    logger.info("attempt %d of %s", message.attempt, message.message_id)
    if message.lease_lost:
        await message.nack(delay=timedelta(seconds=5))
    await its_broker.publish({"id": order.id}, "audit", standalone=True)
    return Parcel(order_id=order.id)


@broker.subscriber(["returns", "refunds"], batch=True, max_records=50, retry_strategy=NoRetry(), no_reply=True)
async def take_back(orders: list[Order], repository: ContextRepository) -> None:
    raise NackMessage(delay=3)


@router.subscriber("orders", transactional=True)
def charge(order: Order, queue: Annotated[str, Context("message.queue")]) -> Response:
    return Response(order, headers={"queue": queue})


@letters
@router.subscriber("orders/paid", propagate_inbound_headers=True)
async def thank(order: Order, session: Annotated[AsyncSession, Depends(session)]) -> OutboxResponse:
    return OutboxResponse([order], queue="mails", session=session, key="k", activate_in=timedelta(hours=1))


several = broker.subscriber("events", persistent=False, retry_strategy=ConstantRetry(delay_seconds=1))


@several(filter=lambda message: message.content_type == "application/json")
async def on_json(body: dict[str, int]) -> None: ...


@several
async def on_rest(body: bytes, message: OutboxMessage) -> None:
    await message.snooze(10)


async def parse(delivery: object) -> None: ...


listed = OutboxRoute(
    parse, "listed", publishers=[OutboxPublisherArgs("letters", batch=True)], transactional=True, title="Listed"
)
broker.include_routers(router, OutboxRouter(handlers=[listed]))


# Publishing


async def place(order: Order) -> None:
    async with sessions() as session, session.begin():
        assert_type(await broker.publish(order, "orders", session=session), int | None)
        assert_type(await broker.publish_batch(order, order, queue="orders", session=session), list[int | None])
        await broker.publish(
            order,
            queue="orders",
            session=session,
            headers={"tenant": "acme"},
            correlation_id="c",
            reply_to="answers",
            key="k",
            priority=3,
            activate_at=datetime.now(UTC) + timedelta(days=1),
            timer_id=f"order-{order.id}",
            timer_conflict="replace",
        )
        assert_type(await letters.publish([order], session=session, priority=0), int | None)


def place_synchronously(order: Order, session: Session) -> int | None:
    broker.publish_batch_sync(order, queue="orders", session=session)
    return broker.publish_sync(order, "orders", session=session)


# Handlers as functions, and in tests


async def test_ship(message: StreamMessage[object]) -> None:
    async with TestOutboxBroker(broker) as tested:
        await tested.publish(Order(id=1), "orders")
        ship.mock.assert_called_once_with({"id": 1})
        await take_back.wait_call(timeout=1)
        letters.mock.assert_not_called()
        answer = await tested.request(Order(id=1), "orders")
        assert await answer.decode() == {"order_id": 1}
