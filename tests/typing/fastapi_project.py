"""A user's FastAPI project, as type checkers see it (`test_typing.py`). Nothing here is ever run."""

import logging
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Annotated, Any, assert_type

from fastapi import APIRouter, BackgroundTasks, Body, Depends, FastAPI, Header, Path, Request
from faststream import AckPolicy
from faststream.exceptions import NackMessage
from faststream.specification import AsyncAPI
from pydantic import BaseModel
from sqlalchemy import MetaData
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import Session, sessionmaker

from outbox_fastapi import (
    Context,
    ContextRepository,
    Logger,
    OutboxBroker,
    OutboxMessage,
    OutboxResponse,
    OutboxRouter,
    TestOutboxBroker,
)
from outbox_sqlalchemy import ConstantRetry, ExponentialRetry, NoRetry, make_outbox_tables
from outbox_sqlalchemy import OutboxRouter as BrokerRouter


class Order(BaseModel):
    id: int
    note: str | None = None


class Parcel(BaseModel):
    order_id: int


engine = create_async_engine("postgresql+asyncpg://localhost/shop")
sessions = async_sessionmaker(engine)
tables = make_outbox_tables(MetaData())


async def get_session() -> AsyncIterator[AsyncSession]:
    async with sessions() as session, session.begin():
        yield session


SessionDep = Annotated[AsyncSession, Depends(get_session)]


async def tenant(request: Request, tenant: Annotated[str, Header()] = "nobody") -> str:
    return f"{tenant} of {request.app.title}"


# Routers


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncGenerator[dict[str, str], None]:
    yield {"greeting": app.title}


router = OutboxRouter(
    engine,
    outbox_table=tables,
    prefix="/shop",
    tags=["shop"],
    dependencies=[Depends(tenant)],
    lifespan=lifespan,
    ack_policy=AckPolicy.NACK_ON_ERROR,
    require_transaction="warn",
    max_workers=4,
    graceful_timeout=10,
    logger=logging.getLogger("shop"),
    schema_url="/messages",
    try_it_out=True,
    specification=AsyncAPI(title="Shop"),
    setup_state=False,
)
nested = OutboxRouter(prefix="/nested")
mails = router.publisher("mails", headers={"from": "shop"}, key="k", priority=1, schema=Parcel)


# Handlers


@router.publisher("parcels")
@router.subscriber("orders", max_workers=4, retry_strategy=ExponentialRetry(max_attempts=3), response_model=Parcel)
async def ship(
    order: Order,
    message: OutboxMessage,
    broker: OutboxBroker,
    logger: Logger,
    repository: ContextRepository,
    queue: Annotated[str, Context("message.queue")],
    tenant: Annotated[str, Depends(tenant)],
    tasks: BackgroundTasks,
    request: Request,
    session: AsyncSession = Depends(get_session),
) -> Parcel:
    logger.info("attempt %d of %s", message.attempt, message.message_id)
    if message.lease_lost:
        await message.nack(delay=timedelta(seconds=5))
    await broker.publish({"id": order.id}, "audit", session=session)
    tasks.add_task(logger.info, "shipped %s for %s", queue, request.headers.get("tenant", tenant))
    repository.set_global("last", order.id)
    return Parcel(order_id=order.id)


@mails
@router.subscriber("orders/paid", transactional=True, dependencies=[Depends(tenant)])
async def charge(
    id: Annotated[int, Path()], note: Annotated[str, Body()], session: SessionDep, tenant: Annotated[str, Header()]
) -> OutboxResponse:
    await session.get(Parcel, id)
    return OutboxResponse(Parcel(order_id=id), queue="invoices", session=session, key=tenant, headers={"note": note})


@router.subscriber(["returns", "refunds"], batch=True, max_records=50, retry_strategy=NoRetry(), no_reply=True)
async def take_back(orders: list[Order]) -> None:
    raise NackMessage(delay=3)


several = nested.subscriber("events", retry_strategy=ConstantRetry(delay_seconds=1))


@several(filter=lambda message: message.content_type == "application/json")
async def on_json(body: dict[str, int]) -> None: ...


@several
def on_rest(body: bytes) -> None: ...


# Routes


@router.post("/orders")
async def place(order: Order, broker: OutboxBroker, session: SessionDep, logger: Logger) -> dict[str, bool]:
    row_id = await broker.publish(order, queue="orders", session=session, activate_in=timedelta(hours=1))
    assert_type(row_id, int | None)
    logger.info("placed %s", row_id)
    assert_type(await mails.publish(Parcel(order_id=order.id), session=session), int | None)
    return {"ok": True}


@router.get("/health", response_model=None)
async def health(request: Request) -> bool:
    return await router.broker.ping(timeout=5.0)


@nested.post("/sync")
def place_synchronously(order: Order) -> int | None:
    with sessionmaker[Session]().begin() as session:
        return nested.broker.publish_sync(order, "orders", session=session)


# Life


@router.after_startup
async def greet(app: FastAPI) -> dict[str, Any]:
    await router.broker.publish("hello", "greetings", standalone=True)
    return {"started": app.title}


@router.after_startup
def count(app: FastAPI) -> None: ...


@router.on_broker_shutdown
async def farewell(app: FastAPI) -> None: ...


router.include_router(nested, tags=["nested"])
router.include_router(APIRouter(prefix="/plain"))
router.include_router(BrokerRouter("eu."))
app = FastAPI(lifespan=router.lifespan_context)
app.include_router(router)


# In tests


async def test_ship() -> None:
    async with TestOutboxBroker(router.broker) as broker:
        await broker.publish(Order(id=1), "orders")
        ship.mock.assert_called_once_with({"id": 1})
        mails.mock.assert_not_called()
        await take_back.wait_call(timeout=1)
