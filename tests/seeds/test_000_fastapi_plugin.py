"""Seed 000, the page on FastStream's FastAPI plugin, line by line; its KafkaRouter is our OutboxRouter."""

import asyncio
import json
import logging
import shutil
import warnings
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from queue import Queue
from typing import Annotated, Any

import faststream
import pytest
import yaml
from fastapi import BackgroundTasks, Body, Depends, FastAPI, Header, Request
from fastapi import Path as PathParameter
from faststream.exceptions import SetupError
from pydantic import BaseModel
from sqlalchemy import make_url

from outbox_core.events import Event, WorkerStarted
from outbox_fastapi import Context, Logger, OutboxRouter, TestOutboxBroker
from outbox_sqlalchemy import OutboxBroker
from tests.fastapi.serving import serving
from tests.places import PATIENCE, Place, until

LIFESPANS = pytest.mark.parametrize(
    "lifespan", [True, False], ids=["lifespan and include_router", "include_router alone"]
)


class Incoming(BaseModel):
    m: dict[str, str]


def queues(place: Place) -> list[str]:
    """Of what is in the table."""
    return [row.queue for row in place.rows()]


async def test_000_1_a_subscriber_takes_a_model(both: Place) -> None:
    router = OutboxRouter(both.engine)
    got: asyncio.Queue[Incoming] = asyncio.Queue()

    @router.subscriber("test")
    async def hello(m: Incoming) -> None:
        got.put_nowait(m)

    app = FastAPI(lifespan=router.lifespan_context)
    app.include_router(router)

    async with serving(app):
        await router.broker.publish(Incoming(m={"name": "Zoë"}), "test")
        assert await got.get() == Incoming(m={"name": "Zoë"})
        await until(both.rows, [])


@pytest.mark.parametrize("order", ["subscriber first", "publisher first"])
async def test_000_2_what_a_handler_returns_is_published(both: Place, order: str) -> None:
    router = OutboxRouter(both.engine)
    subscriber, publisher = router.subscriber("test"), router.publisher("response")

    async def hello(m: Incoming) -> dict[str, str]:
        return {"response": "Hello, Outbox!"}

    if order == "subscriber first":
        subscriber(publisher(hello))
    else:
        publisher(subscriber(hello))
    app = FastAPI(lifespan=router.lifespan_context)
    app.include_router(router)

    async with serving(app):
        await router.broker.publish({"m": {}}, "test")
        await until(lambda: queues(both), ["response"])

    assert [row.payload for row in both.rows()] == [b'{"response":"Hello, Outbox!"}']


async def test_000_3_a_handler_depends_as_a_route_does(both: Place) -> None:
    router = OutboxRouter(both.engine)
    got: asyncio.Queue[tuple[Incoming, bool]] = asyncio.Queue()

    def call() -> bool:
        return True

    @router.subscriber("test")
    async def hello(m: Incoming, d: bool = Depends(call)) -> None:
        got.put_nowait((m, d))

    app = FastAPI(lifespan=router.lifespan_context)
    app.include_router(router)

    async with serving(app):
        await router.broker.publish({"m": {}}, "test")
        assert await got.get() == (Incoming(m={}), True)


async def test_000_4_logger_and_context_are_fastapis_here(both: Place, caplog: pytest.LogCaptureFixture) -> None:
    shop_logger = logging.getLogger("shop")
    shop_logger.setLevel(logging.INFO)
    router = OutboxRouter(both.engine, logger=shop_logger)
    got: asyncio.Queue[tuple[object, ...]] = asyncio.Queue()

    @router.subscriber("test")
    async def hello(
        m: Incoming,
        logger: Logger,
        tenant: Annotated[str, Context("message.headers.tenant")],
        broker: Annotated[OutboxBroker, Context("broker")],
    ) -> None:
        logger.info(m)
        got.put_nowait((logger, tenant, broker))

    app = FastAPI(lifespan=router.lifespan_context)
    app.include_router(router)

    async with serving(app):
        await router.broker.publish({"m": {"name": "Zoë"}}, "test", headers={"tenant": "eu"})
        assert await got.get() == (shop_logger, "eu", router.broker)

    assert ("shop", logging.INFO, "m={'name': 'Zoë'}") in caplog.record_tuples


def fast_stream_depends(d: bool = faststream.Depends(lambda: True)) -> None: ...


def fast_stream_context(d: bool = faststream.Context("broker")) -> None: ...


@pytest.mark.parametrize("handler", [fast_stream_depends, fast_stream_context])
async def test_000_5_faststreams_own_depends_and_context_are_refused(both: Place, handler: Any) -> None:
    router = OutboxRouter(both.engine)
    router.subscriber("test")(handler)
    app = FastAPI(lifespan=router.lifespan_context)
    app.include_router(router)

    with pytest.raises(
        SetupError, match=rf"faststream's (Depends|Context).* for 'd' of {handler.__name__}\(\).*; use "
    ):
        async with serving(app):
            raise AssertionError("it started")


async def test_000_6_background_tasks_run_after_the_handler(both: Place) -> None:
    router = OutboxRouter(both.engine)
    events: list[str] = []

    @router.subscriber("test")
    async def hello(m: Incoming, tasks: BackgroundTasks) -> None:
        tasks.add_task(events.append, "task")
        await asyncio.sleep(0)
        events.append("handler")

    app = FastAPI(lifespan=router.lifespan_context)
    app.include_router(router)

    async with serving(app):
        await router.broker.publish({"m": {}}, "test")
        await until(both.rows, [])

    assert events == ["handler", "task"]


async def test_000_7_the_body_is_in_body_and_path_and_headers_are_headers(both: Place) -> None:
    router = OutboxRouter(both.engine)
    got: asyncio.Queue[tuple[object, ...]] = asyncio.Queue()

    @router.subscriber("test")
    async def hello(
        id: Annotated[int, PathParameter()],
        name: Annotated[str, PathParameter()],
        same_id: Annotated[int, Body(alias="id")],
        same_name: Annotated[str, Body(alias="name")],
        tenant: Annotated[str, Header()],
        trace_id: Annotated[str, Header()],
        x_region: str = Header(alias="X-Region"),
    ) -> None:
        got.put_nowait((id, name, same_id, same_name, tenant, trace_id, x_region))

    app = FastAPI(lifespan=router.lifespan_context)
    app.include_router(router)

    async with serving(app):
        headers = {"tenant": "eu", "trace-id": "1f", "X-Region": "Zürich"}
        await router.broker.publish({"id": 7, "name": "Zoë"}, "test", headers=headers)
        assert await got.get() == (7, "Zoë", 7, "Zoë", "eu", "1f", "Zürich")


@pytest.mark.parametrize("method", ["get", "post", "put", "delete", "patch"])
async def test_000_8_the_router_serves_routes(both: Place, method: str) -> None:
    router = OutboxRouter(both.engine)

    @getattr(router, method)("/")
    async def hello_http() -> str:
        return "Hello, HTTP!"

    app = FastAPI(lifespan=router.lifespan_context)
    app.include_router(router)

    async with serving(app) as client:
        answer = await client.request(method, "/")

    assert (answer.status_code, answer.json()) == (200, "Hello, HTTP!")


@LIFESPANS
async def test_000_9_the_broker_starts_once(both: Place, lifespan: bool) -> None:
    events: list[Event] = []
    router = OutboxRouter(both.engine, observers=[events.append])
    got: list[str] = []

    @router.subscriber("test")
    async def hello(msg: str) -> None:
        got.append(msg)

    @router.after_startup
    async def started(app: FastAPI) -> None:
        got.append("started")

    app = FastAPI(lifespan=router.lifespan_context) if lifespan else FastAPI()
    app.include_router(router)

    async with serving(app):
        await router.broker.publish("Hi!", "test")
        await until(both.rows, [])

    assert got == ["started", "Hi!"]
    assert len([event for event in events if isinstance(event, WorkerStarted)]) == 1
    assert not router.broker.running


async def test_000_10_the_state_of_requests_can_be_left_alone(both: Place) -> None:
    router = OutboxRouter(both.engine, setup_state=False)

    @router.get("/")
    async def hello_http(request: Request) -> bool:
        await router.broker.publish("Hello, Outbox!", "test")
        return hasattr(request.state, "broker")

    app = FastAPI(lifespan=router.lifespan_context)
    app.include_router(router)

    async with serving(app) as client:
        assert (await client.get("/")).json() is False

    assert queues(both) == ["test"]


async def test_000_11_a_route_publishes_with_the_routers_broker(both: Place) -> None:
    router = OutboxRouter(both.engine)
    app = FastAPI(lifespan=router.lifespan_context)

    @router.get("/")
    async def hello_http() -> str:
        await router.broker.publish("Hello, Outbox!", "test")
        return "Hello, HTTP!"

    app.include_router(router)

    async with serving(app) as client:
        assert (await client.get("/")).json() == "Hello, HTTP!"

    assert [(row.queue, row.payload) for row in both.rows()] == [("test", b"Hello, Outbox!")]


async def test_000_12_a_route_depends_on_the_broker(both: Place) -> None:
    router = OutboxRouter(both.engine)
    app = FastAPI(lifespan=router.lifespan_context)

    def broker() -> OutboxBroker:
        return router.broker

    @router.get("/")
    async def hello_http(broker: Annotated[OutboxBroker, Depends(broker)]) -> str:
        await broker.publish("Hello, Outbox!", "test")
        return "Hello, HTTP!"

    app.include_router(router)

    async with serving(app) as client:
        assert (await client.get("/")).json() == "Hello, HTTP!"

    assert queues(both) == ["test"]


async def test_000_13_the_broker_is_in_the_state_of_requests(both: Place) -> None:
    router = OutboxRouter(both.engine)
    app = FastAPI(lifespan=router.lifespan_context)
    app.include_router(router)

    @app.get("/")
    async def main(request: Request) -> bool:
        broker = request.state.broker
        await broker.publish("Hello, Outbox!", "test")
        return broker is router.broker

    async with serving(app) as client:
        assert (await client.get("/")).json() is True

    assert queues(both) == ["test"]


@LIFESPANS
async def test_000_14_what_follows_the_start_may_publish(both: Place, lifespan: bool) -> None:
    router = OutboxRouter(both.engine)
    got: asyncio.Queue[str] = asyncio.Queue()

    @router.subscriber("test")
    async def hello(msg: str) -> dict[str, str]:
        got.put_nowait(msg)
        return {"response": "Hello, Outbox!"}

    @router.after_startup
    async def test(app: FastAPI) -> dict[str, str]:
        await router.broker.publish("Hello!", "test")
        return {"greeting": f"from {app.title}"}

    @router.after_startup
    def count(app: FastAPI) -> dict[str, int]:
        return {"number": 2}

    @router.get("/")
    async def state(request: Request) -> list[object]:
        return [request.state.greeting, request.state.number]

    app = FastAPI(title="Shop", lifespan=router.lifespan_context if lifespan else None)
    app.include_router(router)

    async with serving(app) as client:
        assert await got.get() == "Hello!"
        await until(both.rows, [])
        assert (await client.get("/")).json() == ["from Shop", 2]

    assert got.empty()


async def test_000_15_the_document_is_served(both: Place) -> None:
    router = OutboxRouter(both.engine)

    @router.subscriber("test")
    async def hello(m: Incoming) -> None: ...

    app = FastAPI(lifespan=router.lifespan_context)
    app.include_router(router)

    async with serving(app) as client:
        page = await client.get("/asyncapi")
        document = (await client.get("/asyncapi.json")).json()
        as_yaml = await client.get("/asyncapi.yaml")
        routes = (await client.get("/openapi.json")).json()["paths"]

    assert (page.status_code, page.headers["content-type"]) == (200, "text/html; charset=utf-8")
    assert "AsyncAPI" in page.text
    assert [channel["address"] for channel in document["channels"].values()] == ["test"]
    assert "Incoming" in document["components"]["schemas"]
    assert (as_yaml.status_code, yaml.safe_load(as_yaml.text)) == (200, document)
    assert routes == {}
    assert json.dumps(document).count(both.url.database or "") == 0


async def test_000_15_the_document_may_be_elsewhere_or_nowhere(both: Place) -> None:
    elsewhere = OutboxRouter(both.engine, schema_url="/docs/messages")
    nowhere = OutboxRouter(both.engine, prefix="/nowhere", include_in_schema=False)
    neither = OutboxRouter(both.engine, prefix="/neither", schema_url=None)
    app = FastAPI()
    for router in (elsewhere, nowhere, neither):
        app.include_router(router)

    async with serving(app) as client:
        for suffix in ("", ".json", ".yaml"):
            assert (await client.get(f"/docs/messages{suffix}")).status_code == 200
            for prefix in ("", "/nowhere", "/neither"):
                assert (await client.get(f"{prefix}/asyncapi{suffix}")).status_code == 404


async def test_000_16_a_handler_is_tested_in_memory() -> None:
    router = OutboxRouter()

    @router.subscriber("test")
    async def handler(msg: str) -> None: ...

    async with TestOutboxBroker(router.broker) as br:
        await br.publish("Hi!", "test")

        handler.mock.assert_called_once_with("Hi!")


def test_000_16_an_application_is_tested_with_starlettes_client(place: Place) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Starlette 1 warns about httpx, and anyio about older Starlettes
        from starlette.testclient import TestClient

    router = OutboxRouter(place.engine)
    got: Queue[str] = Queue()

    @router.subscriber("test")
    async def handler(msg: str) -> None:
        got.put(msg)

    @router.get("/")
    async def hello_http() -> str:
        await router.broker.publish("Hi!", "test")
        return "Hello, HTTP!"

    app = FastAPI(lifespan=router.lifespan_context)
    app.include_router(router)

    for _ in range(2):  # each on an event loop of its own
        with TestClient(app) as client:
            assert client.get("/").json() == "Hello, HTTP!"
            assert got.get(timeout=PATIENCE) == "Hi!"


async def test_000_17_a_router_without_arguments_publishes_on_sessions(both: Place) -> None:
    router = OutboxRouter()

    async with both.engine.begin() as connection:
        await router.broker.publish("Hi!", "test", session=connection)

    assert queues(both) == ["test"]


async def test_000_18_nested_routers_share_one_connection(both: Place) -> None:
    events: list[Event] = []
    core_router = OutboxRouter(both.engine, observers=[events.append])
    nested_router = OutboxRouter()
    got: list[str] = []

    @core_router.subscriber("core-queue")
    async def handler(msg: str) -> None:
        got.append(f"core {msg}")

    @nested_router.subscriber("nested-queue")
    async def nested_handler(msg: str) -> None:
        got.append(f"nested {msg}")

    core_router.include_router(nested_router)

    app = FastAPI(lifespan=core_router.lifespan_context)
    app.include_router(core_router)

    async with serving(app):
        await core_router.broker.publish("Hi!", "core-queue")
        await nested_router.broker.publish("Hi!", "nested-queue")
        await until(both.rows, [])

    assert sorted(got) == ["core Hi!", "nested Hi!"]
    assert nested_router.broker is core_router.broker
    assert len(core_router.broker.subscribers) == 2
    (started,) = (event for event in events if isinstance(event, WorkerStarted))
    assert started.queues == ("core-queue", "nested-queue")


async def test_000_19_routers_of_several_databases_start_in_a_lifespan_of_the_users(
    both: Place, sqlite_template: Path, tmp_path: Path
) -> None:
    shutil.copy(sqlite_template, tmp_path / "other.db")
    other = Place(make_url(f"sqlite:///{tmp_path / 'other.db'}"), "aiosqlite")
    core_router = OutboxRouter(both.engine)
    nested_router = OutboxRouter(other.engine)
    got: list[str] = []

    @core_router.subscriber("test")
    async def handler(msg: str) -> None:
        got.append(f"core {msg}")

    @nested_router.subscriber("nested")
    async def nested_handler(msg: str) -> None:
        got.append(f"nested {msg}")

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with (
            core_router.lifespan_context(app),
            nested_router.lifespan_context(app),
        ):
            yield

    app = FastAPI(lifespan=lifespan)
    app.include_router(core_router)
    app.include_router(nested_router)

    async with serving(app) as client:
        await core_router.broker.publish("Hi!", "test")
        await nested_router.broker.publish("Hi!", "nested")
        await until(both.rows, [])
        await until(other.rows, [])
        document = (await client.get("/asyncapi.json")).json()

    assert sorted(got) == ["core Hi!", "nested Hi!"]
    assert sorted(channel["address"] for channel in document["channels"].values()) == ["nested", "test"]
    await other.close()
