"""What starts and stops with an application, and how often."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from fastapi import APIRouter, FastAPI, Request

from outbox_core.errors import SchemaMismatch
from outbox_core.events import Event, WorkerStarted, WorkerStopped
from outbox_fastapi import OutboxRouter
from tests.fastapi.serving import serving
from tests.places import Place, until


def router_on(place: Place, **options: Any) -> OutboxRouter:
    return OutboxRouter(place.engine, outbox_table=place.tables, logger=None, **options)


class Events(list[str]):
    """What the engine tells: starts and stops, in order."""

    def __call__(self, event: Event) -> None:
        if isinstance(event, WorkerStarted | WorkerStopped):
            self.append(type(event).__name__)


ONCE = ["WorkerStarted", "WorkerStopped"]


async def test_including_the_router_starts_and_stops_its_broker(both: Place) -> None:
    handled = asyncio.Queue[str]()
    events = Events()
    router = router_on(both, observers=[events])

    @router.subscriber("orders")
    async def handle(body: str) -> None:
        handled.put_nowait(body)

    app = FastAPI()
    app.include_router(router)
    async with serving(app):
        await router.broker.publish("one", "orders")
        assert await handled.get() == "one"
        assert await router.broker.ping(5.0)
    assert events == ONCE
    assert not await router.broker.ping(5.0)


async def test_a_router_that_is_the_lifespan_too_starts_once(place: Place) -> None:
    events = Events()
    started = []
    router = router_on(place, observers=[events])
    router.subscriber("orders")(lambda body: None)
    router.after_startup(lambda app: started.append(app))
    app = FastAPI(lifespan=router.lifespan_context)
    app.include_router(router)
    async with serving(app):
        assert events == ["WorkerStarted"]
    assert events == ONCE
    assert started == [app]


async def test_an_application_that_is_started_again_consumes_again(place: Place) -> None:
    handled = asyncio.Queue[int]()
    router = router_on(place)

    @router.subscriber("orders")
    async def handle(body: int) -> None:
        handled.put_nowait(body)

    app = FastAPI()
    app.include_router(router)
    for number in range(3):
        async with serving(app):
            await router.broker.publish(number, "orders")
            assert await handled.get() == number
    assert place.rows() == []


async def test_several_routers_are_started_and_stopped_independently(both: Place) -> None:
    handled = asyncio.Queue[str]()
    events = [Events(), Events()]
    routers = [router_on(both, observers=[events[0]]), router_on(both, observers=[events[1]])]

    @routers[0].subscriber("first")
    async def first(body: str) -> None:
        handled.put_nowait(f"first {body}")

    @routers[1].subscriber("second")
    async def second(body: str) -> None:
        handled.put_nowait(f"second {body}")

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with routers[0].lifespan_context(app), routers[1].lifespan_context(app):
            yield

    app = FastAPI(lifespan=lifespan)
    for router in routers:
        app.include_router(router)
    async with serving(app):
        await routers[1].broker.publish("two", "second")
        assert await handled.get() == "second two"
        await routers[0].broker.publish("one", "first")
        assert await handled.get() == "first one"
    assert events == [ONCE, ONCE]


async def test_a_router_within_a_plain_router_starts_with_the_application(place: Place) -> None:
    events = Events()
    router = router_on(place, observers=[events], prefix="/shop")
    router.subscriber("orders")(lambda body: None)

    @router.get("/")
    async def index() -> str:
        return "here"

    between, app = APIRouter(prefix="/api"), FastAPI()
    between.include_router(router)
    app.include_router(between)
    async with serving(app) as client:
        assert (await client.get("/api/shop/")).json() == "here"
        assert (await client.get("/api/shop/asyncapi")).status_code == 200
    assert events == ONCE


async def test_the_routers_lifespan_is_around_its_broker(place: Place) -> None:
    order: list[str] = []

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[dict[str, str]]:
        order.append(f"enter, running {router.broker.running}")
        yield {"pool": "mine"}
        order.append(f"exit, running {router.broker.running}")

    router = router_on(place, lifespan=lifespan)
    router.subscriber("orders")(lambda body: None)

    @router.get("/")
    async def index(request: Request) -> str:
        return str(request.state.pool)

    app = FastAPI()
    app.include_router(router)
    async with serving(app) as client:
        assert (await client.get("/")).json() == "mine"
    assert order == ["enter, running False", "exit, running False"]


async def test_hooks_are_called_once_with_the_application_while_the_broker_runs(place: Place) -> None:
    calls: list[tuple[str, bool, bool]] = []
    router = router_on(place)
    router.subscriber("orders")(lambda body: None)

    @router.after_startup
    def first(app: FastAPI) -> dict[str, int]:
        calls.append(("first", app is here, router.broker.running))
        return {"answer": 42}

    @router.after_startup
    async def second(app: FastAPI) -> None:
        await router.broker.publish({}, "started")
        calls.append(("second", app is here, router.broker.running))

    @router.on_broker_shutdown
    async def third(app: FastAPI) -> None:
        calls.append(("third", app is here, router.broker.running))

    @router.get("/")
    async def index(request: Request) -> list[object]:
        return [request.state.answer, request.state.broker is router.broker]

    here = FastAPI()
    here.include_router(router)
    async with serving(here) as client:
        assert (await client.get("/")).json() == [42, True]
    assert calls == [("first", True, True), ("second", True, True), ("third", True, True)]
    assert [row.queue for row in place.rows()] == ["started"]


async def test_a_hook_that_fails_fails_the_start_and_stops_the_broker(place: Place) -> None:
    events = Events()
    router = router_on(place, observers=[events])
    router.subscriber("orders")(lambda body: None)

    @router.after_startup
    async def fail(app: FastAPI) -> None:
        raise RuntimeError("not today")

    app = FastAPI()
    app.include_router(router)
    with pytest.raises(RuntimeError, match="not today"):
        async with serving(app):
            pass
    assert events == ONCE


async def test_without_tables_the_application_does_not_start(place: Place) -> None:
    place.run("DROP TABLE outbox")
    router = router_on(place)
    router.subscriber("orders")(lambda body: None)
    app = FastAPI()
    app.include_router(router)
    with pytest.raises(SchemaMismatch, match="outbox does not fit this version"):
        async with serving(app):
            pass
    assert not router.broker.running


async def test_what_the_router_put_into_the_state_is_seen_by_handlers_each_in_its_own_copy(place: Place) -> None:
    seen = asyncio.Queue[object]()
    router = router_on(place)

    @router.after_startup
    async def setup(app: FastAPI) -> dict[str, int]:
        return {"answer": 42}

    @router.subscriber("orders")
    async def handle(body: int, request: Request) -> None:
        seen.put_nowait((request.state.answer, hasattr(request.state, "mine"), request.state.broker is router.broker))
        request.state.mine = body

    app = FastAPI()
    app.include_router(router)
    async with serving(app):
        for number in range(2):
            await router.broker.publish(number, "orders")
            assert await seen.get() == (42, False, True)


async def test_without_setup_state_requests_have_no_broker_and_handlers_do_what_they_do(place: Place) -> None:
    handled = asyncio.Queue[str]()
    router = router_on(place, setup_state=False)

    @router.subscriber("orders")
    async def handle(body: str) -> None:
        handled.put_nowait(body)

    @router.get("/")
    async def index(request: Request) -> bool:
        await router.broker.publish("one", "orders")
        return hasattr(request.state, "broker")

    app = FastAPI()
    app.include_router(router)
    async with serving(app) as client:
        assert (await client.get("/")).json() is False
        assert await handled.get() == "one"


async def test_the_callers_engine_outlives_the_application(place: Place) -> None:
    router = router_on(place)
    router.subscriber("orders")(lambda body: None)
    app = FastAPI()
    app.include_router(router)
    async with serving(app):
        pass
    async with place.engine.connect() as connection:
        assert (await connection.exec_driver_sql("SELECT 1")).scalar() == 1


async def test_messages_that_wait_are_handled_when_the_application_comes(both: Place) -> None:
    router = router_on(both)
    for number in range(5):
        await router.broker.publish(number, "orders")
    router.subscriber("orders")(lambda body: None)
    app = FastAPI()
    app.include_router(router)
    async with serving(app):
        await until(both.rows, [])
