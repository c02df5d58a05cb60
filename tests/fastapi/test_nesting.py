"""Routers within routers: one connection, everybody's handlers."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated

from fastapi import APIRouter, Depends, FastAPI, Header, Request

import outbox_sqlalchemy
from outbox_fastapi import OutboxBroker, OutboxRouter, TestOutboxBroker
from tests.fastapi.serving import serving
from tests.places import Place


async def test_nested_routers_share_the_connection_of_the_outermost(both: Place) -> None:
    handled = asyncio.Queue[str]()
    root = OutboxRouter(both.engine, outbox_table=both.tables, logger=None)
    child, grandchild = OutboxRouter(prefix="/child"), OutboxRouter(prefix="/grandchild")

    @root.subscriber("root")
    async def on_root(body: str) -> None:
        handled.put_nowait(f"root {body}")

    @child.subscriber("child")
    @child.publisher("grandchild")
    async def on_child(body: str) -> str:
        handled.put_nowait(f"child {body}")
        return "from the child"

    @grandchild.get("/")
    async def index(broker: OutboxBroker) -> bool:
        await broker.publish("a route's", "root")
        return broker is root.broker

    child.include_router(grandchild)
    root.include_router(child)

    @grandchild.subscriber("grandchild")  # after it was included
    async def on_grandchild(body: str) -> None:
        handled.put_nowait(f"grandchild {body}")

    assert child.broker is root.broker
    assert grandchild.broker is root.broker
    app = FastAPI()
    app.include_router(root)
    async with serving(app) as client:
        await grandchild.broker.publish("one", "child")
        assert [await handled.get(), await handled.get()] == ["child one", "grandchild from the child"]
        assert (await client.get("/child/grandchild/")).json() is True
        assert await handled.get() == "root a route's"


async def test_hooks_and_lifespans_of_nested_routers_run_once(place: Place) -> None:
    order: list[str] = []

    def lifespan(name: str) -> object:
        @asynccontextmanager
        async def around(app: FastAPI) -> AsyncIterator[dict[str, bool]]:
            order.append(f"enter {name}")
            yield {name: True}
            order.append(f"exit {name}")

        return around

    root = OutboxRouter(place.engine, outbox_table=place.tables, logger=None, lifespan=lifespan("root"))  # type: ignore[arg-type]  # made above
    child = OutboxRouter(lifespan=lifespan("child"))  # type: ignore[arg-type]  # as above
    for router, name in ((root, "root"), (child, "child")):
        router.after_startup(lambda app, name=name: order.append(f"started {name}"))
        router.on_broker_shutdown(lambda app, name=name: order.append(f"stopping {name}"))

    @child.get("/")
    async def index(request: Request) -> list[bool]:
        return [request.state.root, request.state.child]

    root.include_router(child)

    app = FastAPI(lifespan=root.lifespan_context)
    app.include_router(root)
    async with serving(app) as client:
        assert (await client.get("/")).json() == [True, True]
    assert order == [
        *("enter root", "enter child", "started root", "started child"),
        *("stopping root", "stopping child", "exit child", "exit root"),
    ]


async def test_dependencies_of_routers_around_come_first_each_once() -> None:
    order: list[str] = []

    def note(name: str) -> Depends:  # type: ignore[valid-type]  # a marker
        async def dependency() -> None:
            order.append(name)

        return Depends(dependency)

    root = OutboxRouter(dependencies=[note("root")])
    child = OutboxRouter(dependencies=[note("child")])

    @child.subscriber("orders", dependencies=[note("subscriber")])
    async def handle(body: str, own: Annotated[None, note("parameter")]) -> None:
        order.append("handler")

    root.include_router(child, dependencies=[note("include")])
    async with TestOutboxBroker(root.broker) as broker:
        await broker.publish("one", "orders")
    assert order == ["root", "include", "child", "subscriber", "parameter", "handler"]


async def test_a_brokers_router_is_included_with_its_prefix_and_handled_by_fastapi() -> None:
    handled = []
    router = OutboxRouter()
    brokers_router = outbox_sqlalchemy.OutboxRouter(prefix="shop.")
    router.include_router(brokers_router, prefix="test.")

    @brokers_router.subscriber("orders")  # after it was included
    async def handle(id: int, x_tenant: Annotated[str, Header()]) -> None:
        handled.append((id, x_tenant))

    async with TestOutboxBroker(router.broker) as broker:
        await broker.publish({"id": 1}, "test.shop.orders", headers={"x-tenant": "a"})
    assert handled == [(1, "a")]


async def test_plain_routers_are_included_as_ever(place: Place) -> None:
    router, plain = OutboxRouter(place.engine, outbox_table=place.tables, logger=None), APIRouter()

    @plain.get("/plain")
    async def index(broker: OutboxBroker) -> bool:
        return broker is router.broker

    router.include_router(plain, prefix="/within")
    app = FastAPI()
    app.include_router(router)
    async with serving(app) as client:
        assert (await client.get("/within/plain")).json() is True


async def test_background_tasks_of_a_nested_handler_run_once() -> None:
    from fastapi import BackgroundTasks

    ran: list[int] = []
    root, child = OutboxRouter(), OutboxRouter()

    @child.subscriber("orders")
    async def handle(body: int, background: BackgroundTasks) -> None:
        background.add_task(ran.append, body)

    root.include_router(child)
    async with TestOutboxBroker(root.broker) as broker:
        await broker.publish(1, "orders")
    assert ran == [1]
