"""Seed 003, faststream-outbox's page on FastAPI, line by line."""

import asyncio
import re
from collections.abc import AsyncIterator, Callable
from inspect import signature
from pathlib import Path
from typing import Annotated, Any, TypeAlias

import pytest
from fastapi import Depends, FastAPI, Request
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker

from outbox_core.errors import UnknownOption
from outbox_core.events import Event, Handled
from outbox_core.faststream import OutboxMessage as Message
from outbox_core.outcome import Ack
from outbox_fastapi import OutboxBroker, OutboxMessage, OutboxResponse, OutboxRouter
from outbox_sqlalchemy import NoRetry
from outbox_sqlalchemy import OutboxBroker as Broker
from tests.fastapi.alone import Order, quickstart
from tests.fastapi.serving import serving
from tests.places import Place, until

ROOT = Path(__file__).parents[2]

GetSession: TypeAlias = Callable[[], AsyncIterator[AsyncSession]]

# Depends(scope=) came with FastAPI 0.121.
SCOPES: list[dict[str, Any]] = [{}, *([{"scope": "function"}] if "scope" in signature(Depends).parameters else [])]


@pytest.fixture
def shop(both: Place) -> Place:
    """An outbox, and an empty table of orders beside it."""
    Order.metadata.drop_all(both.sync_engine)
    Order.metadata.create_all(both.sync_engine)
    return both


@pytest.fixture
def get_session(shop: Place) -> GetSession:
    """The seed's dependency."""
    session_factory = async_sessionmaker(shop.engine, expire_on_commit=False)

    async def get_session() -> AsyncIterator[AsyncSession]:
        async with session_factory() as s, s.begin():
            yield s

    return get_session


def application(router: OutboxRouter) -> FastAPI:
    app = FastAPI()
    app.include_router(router)
    return app


def orders(place: Place) -> list[int]:
    """Those that are committed."""
    with place.sync_engine.connect() as connection:
        return list(connection.scalars(select(Order.id).order_by(Order.id)))


def test_003_1_the_extra_and_a_driver_are_all_that_the_quickstart_needs() -> None:
    (job,) = re.findall(r"^extras\(\) \{\n(.*?)^\}", (ROOT / ".ci" / "run").read_text(), re.MULTILINE | re.DOTALL)
    _, _, fastapi = job.partition("only fastapi '[fastapi]'")
    (installed,) = re.findall(r"install --quiet (.*?) #.*\n +\S+ -I tests/fastapi/alone\.py$", fastapi, re.MULTILINE)
    assert installed == '"$wheel[sqlite]"'


async def test_003_2_the_quickstart_runs(shop: Place) -> None:
    names = quickstart(shop.async_url.render_as_string(hide_password=False))
    events: list[Event] = []
    names["router"].broker.watch(events.append)

    async with serving(names["app"]):
        async with names["session_factory"].begin() as session:
            await names["router"].broker.publish({"order_id": 7}, queue="orders", session=session)
        await until(shop.rows, [])

    (handled,) = (event for event in events if isinstance(event, Handled))
    assert (handled.delivery.payload, handled.outcome) == (b'{"order_id":7}', Ack())
    await names["engine"].dispose()


async def test_003_3_each_delivery_has_a_session_of_its_own(shop: Place, get_session: GetSession) -> None:
    router = OutboxRouter(shop.engine, outbox_table=shop.tables)
    got: list[AsyncSession] = []

    @router.subscriber("orders", retry_strategy=NoRetry())
    async def handle(body: dict[str, int], session: AsyncSession = Depends(get_session)) -> None:
        got.append(session)
        session.add(Order(id=body["id"]))
        await session.flush()
        if body["id"] == 2:
            raise LookupError("no such article")

    async with serving(application(router)):
        await router.broker.publish_batch({"id": 1}, {"id": 2}, {"id": 3}, queue="orders")
        await until(shop.rows, [])

    assert orders(shop) == [1, 3]
    assert len(got) == len(set(map(id, got))) == 3
    (grave,) = shop.rows(shop.tables.dead_letters)
    assert grave.last_exception.startswith("LookupError: no such article")


async def test_003_4_the_route_of_the_quickstart_publishes_with_its_order(shop: Place) -> None:
    names = quickstart(shop.async_url.render_as_string(hide_password=False))
    events: list[Event] = []
    names["router"].broker.watch(events.append)

    async with serving(names["app"]) as client:
        answer = await client.post("/orders", json={"id": 7})
        await until(lambda: (orders(shop), shop.rows()), ([7], []))  # newer FastAPIs commit after they have answered
        await client.post("/orders", json={"id": 7})  # there is such an order, which the commit finds out

    assert (answer.status_code, answer.json()) == (200, {"ok": True})
    assert (orders(shop), shop.rows()) == ([7], [])
    assert [event.delivery.payload for event in events if isinstance(event, Handled)] == [b'{"order_id":7}']
    await names["engine"].dispose()


async def test_003_5_mounting_the_router_starts_and_stops_its_broker(shop: Place) -> None:
    router = OutboxRouter(shop.engine, outbox_table=shop.tables)
    got: asyncio.Queue[int] = asyncio.Queue()

    @router.subscriber("orders")
    async def handle(body: int) -> None:
        got.put_nowait(body)

    app = FastAPI()
    app.include_router(router)

    async with serving(app):
        await router.broker.publish(1, "orders")
        assert await got.get() == 1
        assert await router.broker.ping(timeout=5.0)
    assert not router.broker.running
    assert not await router.broker.ping(timeout=5.0)

    await router.broker.publish(2, "orders")
    async with serving(app):
        assert await got.get() == 2


@pytest.mark.parametrize("scope", SCOPES, ids=str)
async def test_003_6_a_response_on_the_session_is_committed_with_it(
    shop: Place, get_session: GetSession, scope: dict[str, Any]
) -> None:
    router = OutboxRouter(shop.engine, outbox_table=shop.tables)

    @router.subscriber("orders")
    async def handle(body: int, session: AsyncSession = Depends(get_session, **scope)) -> OutboxResponse:
        session.add(Order(id=body))
        return OutboxResponse({"order_id": body}, queue="invoices", session=session)

    async with serving(application(router)):
        await router.broker.publish(7, "orders")
        await until(lambda: [row.queue for row in shop.rows()], ["invoices"])

    assert orders(shop) == [7]
    assert [row.payload for row in shop.rows()] == [b'{"order_id":7}']


@pytest.mark.parametrize("scope", SCOPES, ids=str)
async def test_003_6_a_response_on_a_session_that_cannot_commit_is_not_published(
    shop: Place, get_session: GetSession, scope: dict[str, Any]
) -> None:
    router = OutboxRouter(shop.engine, outbox_table=shop.tables)

    @router.subscriber("orders", retry_strategy=NoRetry())
    async def handle(body: int, session: AsyncSession = Depends(get_session, **scope)) -> OutboxResponse:
        session.add(Order(id=body))
        return OutboxResponse({"order_id": body}, queue="invoices", session=session)

    async with serving(application(router)):
        await router.broker.publish(7, "orders")
        await until(lambda: orders(shop), [7])
        await router.broker.publish(7, "orders")  # there is such an order, which the commit finds out
        await until(lambda: len(shop.rows(shop.tables.dead_letters)), 1)

    assert [row.queue for row in shop.rows()] == ["invoices"]
    (grave,) = shop.rows(shop.tables.dead_letters)
    assert grave.last_exception.startswith("IntegrityError: ")


async def test_003_7_the_annotated_shortcuts_mix_with_dependencies(shop: Place, get_session: GetSession) -> None:
    router = OutboxRouter(shop.engine, outbox_table=shop.tables)
    got: asyncio.Queue[tuple[object, ...]] = asyncio.Queue()

    async def subject(msg: OutboxMessage) -> str:
        return f"{msg.queue} {msg.attempt}"

    @router.subscriber("orders")
    async def handle(
        msg: OutboxMessage,
        broker: OutboxBroker,
        session: AsyncSession = Depends(get_session),
        *,
        subject: Annotated[str, Depends(subject)],
    ) -> None:
        await broker.publish(await msg.decode(), "invoices", session=session)
        got.put_nowait((type(msg), type(broker), type(session), subject))

    async with serving(application(router)):
        await router.broker.publish({"id": 7}, "orders")
        assert await got.get() == (Message, Broker, AsyncSession, "orders 1")
        await until(lambda: [(row.queue, row.payload) for row in shop.rows()], [("invoices", b'{"id":7}')])


def test_003_8_how_arguments_are_found_is_not_an_option(shop: Place) -> None:
    with pytest.raises(UnknownOption, match="OutboxRouter has no option 'apply_types'"):
        OutboxRouter(shop.engine, apply_types=False)  # type: ignore[call-arg]  # what is refused


async def test_003_8_the_dependencies_of_the_router_are_fastapis(shop: Place) -> None:
    asked: list[str] = []

    async def note(request: Request) -> None:
        asked.append(request.headers.get("tenant", "nobody"))

    router = OutboxRouter(shop.engine, outbox_table=shop.tables, dependencies=[Depends(note)])

    @router.subscriber("orders")
    async def handle(body: int) -> None:
        asked.append("handler")

    @router.get("/orders")
    async def list_orders() -> list[int]:
        asked.append("route")
        return []

    async with serving(application(router)) as client:
        await client.get("/orders", headers={"tenant": "eu"})
        await router.broker.publish(7, "orders", headers={"tenant": "us"})
        await until(shop.rows, [])

    assert asked == ["eu", "route", "us", "handler"]


async def test_003_9_the_engine_stays_the_callers(shop: Place, get_session: GetSession) -> None:
    router = OutboxRouter(shop.engine, outbox_table=shop.tables)

    @router.subscriber("orders")
    async def handle(body: int, session: AsyncSession = Depends(get_session)) -> None:
        await session.get(Order, body)

    pool = shop.engine.pool
    async with serving(application(router)):
        await router.broker.publish(7, "orders")
        await until(shop.rows, [])
        pooled = pool.checkedin()

    assert shop.engine.pool is pool
    assert pool.checkedin() == pooled > 0  # the connections that it had are open, and given back
    async with shop.engine.connect() as connection:
        assert await connection.scalar(select(1)) == 1
