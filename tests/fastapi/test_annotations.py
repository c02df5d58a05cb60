"""The annotated shortcuts, in handlers and in routes."""

import asyncio
import logging
from typing import Annotated, Any

import faststream
import httpx
import pytest
from fastapi import Depends, FastAPI, WebSocket

import outbox_sqlalchemy
from outbox_fastapi import (
    Context,
    ContextRepository,
    Logger,
    OutboxBroker,
    OutboxMessage,
    OutboxRouter,
    TestOutboxBroker,
)
from tests.fastapi.serving import serving
from tests.places import Place


async def test_a_handler_gets_its_message_broker_logger_and_context() -> None:
    seen: list[Any] = []
    router = OutboxRouter(logger=logging.getLogger("mine"))
    router.context.set_global("answer", 42)

    async def within(message: OutboxMessage, broker: OutboxBroker) -> tuple[str, bool]:
        return message.queue, broker is router.broker

    @router.subscriber("orders")
    async def handle(
        body: str,
        message: OutboxMessage,
        broker: OutboxBroker,
        logger: Logger,
        context: ContextRepository,
        answer: Annotated[int, Context("answer")],
        tenant: Annotated[str, Context("message.headers.tenant")],
        absent: Annotated[str, Context("absent", default="default")],
        made: Annotated[list[int], Context("made", initial=list)],
        within: Annotated[tuple[str, bool], Depends(within)],
        old_style: int = Context("answer"),
    ) -> None:
        made.append(len(seen))
        seen.append((message.queue, message.attempt, broker is router.broker, answer, tenant, absent, [*made]))
        seen.append((isinstance(logger, logging.Logger), context.get("answer"), within, old_style))

    async with TestOutboxBroker(router.broker) as broker:
        await broker.publish("one", "orders", headers={"tenant": "a"})
        await broker.publish("two", "orders", headers={"tenant": "b"})
    assert seen[0] == ("orders", 1, True, 42, "a", "default", [0])
    assert seen[2] == ("orders", 1, True, 42, "b", "default", [0, 2])
    assert [seen[1][1:], seen[3][1:]] == [(42, ("orders", True), 42)] * 2


async def test_fastapis_marker_wins_beside_faststreams() -> None:
    """One function can then be a handler on a broker of FastStream's, too."""
    seen: list[Any] = []
    router = OutboxRouter()

    def one() -> int:
        return 1

    @router.subscriber("orders")
    async def handle(
        body: str,
        number: Annotated[int, faststream.Depends(one), Depends(one)],
        headers: Annotated[dict[str, str], Context("message.headers"), faststream.Context("message.headers")],
        nested: Annotated[Annotated[str, faststream.Context("message.queue")], Context("message.queue")],
    ) -> None:
        seen.append((number, headers["tenant"], nested))

    async with TestOutboxBroker(router.broker) as broker:
        await broker.publish("one", "orders", headers={"tenant": "a"})
    assert seen == [(1, "a", "orders")]


async def test_a_route_of_the_router_gets_broker_logger_and_context(place: Place) -> None:
    router = OutboxRouter(place.engine, outbox_table=place.tables, setup_state=False)
    router.context.set_global("answer", 42)

    @router.get("/")
    async def index(
        broker: OutboxBroker,
        logger: Logger,
        answer: Annotated[int, Context("answer")],
        nobody: Annotated[str, Context("message.headers.tenant", default="nobody")],
    ) -> list[Any]:
        await broker.publish("one", "orders")
        return [broker is router.broker, isinstance(logger, logging.Logger), answer, nobody]

    app = FastAPI()
    app.include_router(router)
    async with serving(app) as client:
        assert (await client.get("/")).json() == [True, True, 42, "nobody"]
    assert [row.queue for row in place.rows()] == ["orders"]


async def test_a_route_of_the_application_gets_the_broker_of_its_state(place: Place) -> None:
    router = OutboxRouter(place.engine, outbox_table=place.tables, logger=None)
    app = FastAPI()
    app.include_router(router)

    @app.get("/")
    async def index(broker: OutboxBroker) -> bool:
        return broker is router.broker

    async with serving(app) as client:
        assert (await client.get("/")).json() is True


async def test_each_route_gets_the_broker_of_its_own_router(place: Place) -> None:
    app, routers = FastAPI(), []
    for name in ("a", "b"):
        router = OutboxRouter(place.engine, outbox_table=place.tables, logger=None, prefix=f"/{name}")
        routers.append(router)

        @router.get("/")
        async def index(broker: OutboxBroker) -> int:
            return [one.broker for one in routers].index(broker)

        app.include_router(router)
    async with serving(app) as client:
        assert (await client.get("/a/")).json() == 0
        assert (await client.get("/b/")).json() == 1


async def test_the_class_with_a_dependency_of_ones_own(place: Place) -> None:
    router = OutboxRouter(place.engine, outbox_table=place.tables, logger=None)

    def broker() -> outbox_sqlalchemy.OutboxBroker:
        return router.broker

    @router.get("/")
    async def index(
        broker: Annotated[outbox_sqlalchemy.OutboxBroker, Depends(broker)],
        alias: Annotated[OutboxBroker, Depends(broker)],
    ) -> bool:
        return broker is alias is router.broker

    app = FastAPI()
    app.include_router(router)
    async with serving(app) as client:
        assert (await client.get("/")).json() is True


async def test_handlers_of_one_process_do_not_see_each_others_messages(place: Place) -> None:
    router = OutboxRouter(place.engine, outbox_table=place.tables, logger=None)
    seen: set[bool] = set()
    together = asyncio.Barrier(4)

    async def id_of(message: OutboxMessage) -> str:
        return message.message_id

    @router.subscriber("orders", max_workers=4)
    async def handle(body: int, message: OutboxMessage, id: Annotated[str, Depends(id_of)]) -> None:
        await together.wait()
        seen.add(id == message.message_id and int(await message.decode()) == body)
        await together.wait()
        if len(seen) == 1:
            done.set()

    done = asyncio.Event()
    for number in range(4):
        await router.broker.publish(number, "orders")
    app = FastAPI()
    app.include_router(router)
    async with serving(app):
        await done.wait()
    assert seen == {True}


async def test_a_websocket_route_gets_the_broker(place: Place) -> None:
    router = OutboxRouter(place.engine, outbox_table=place.tables, logger=None)

    @router.websocket("/ws")
    async def talk(websocket: WebSocket, broker: OutboxBroker) -> None:
        await websocket.accept()
        await websocket.send_json(broker is router.broker)
        await websocket.close()

    app = FastAPI()
    app.include_router(router)
    sent: list[Any] = []
    scope = {"type": "websocket", "path": "/ws", "headers": [], "query_string": b"", "subprotocols": []}

    async def receive() -> dict[str, str]:
        return {"type": "websocket.connect"}

    async def send(event: Any) -> None:
        sent.append(event.get("text"))

    await app(scope, receive, send)
    assert sent == [None, "true", None]


@pytest.mark.parametrize(("annotation", "kind"), [(OutboxBroker, "OutboxBroker"), (Logger, "Logger")])
async def test_a_route_works_before_the_application_has_started(annotation: Any, kind: str) -> None:
    """In tests that have no lifespan, say."""
    router = OutboxRouter()

    @router.get("/")
    async def index(it: annotation) -> str:  # type: ignore[valid-type]
        return type(it).__name__

    app = FastAPI()
    app.include_router(router)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
        assert (await client.get("/")).json() == kind
