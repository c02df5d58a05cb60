"""FastAPI's dependencies in handlers: what they get, when they close, what they see."""

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from inspect import signature
from typing import Annotated, Any

import pytest
from fastapi import BackgroundTasks, Depends, FastAPI, Header, Request, Security
from fastapi.security import SecurityScopes

from outbox_core.events import DeadLettered
from outbox_fastapi import OutboxMessage, OutboxResponse, OutboxRouter, TestOutboxBroker
from outbox_fastapi.errors import DependencyError
from outbox_sqlalchemy import NoRetry
from tests.fastapi.serving import serving
from tests.places import Place, until

HAS_SCOPES = "scope" in signature(Depends).parameters  # FastAPI 0.121; before, what was opened first closes last


def of_function_scope(dependency: Any) -> Any:
    return Depends(dependency, scope="function") if HAS_SCOPES else Depends(dependency)


async def test_dependencies_of_every_kind_are_resolved_once_a_message() -> None:
    calls: list[str] = []

    async def shared() -> int:
        calls.append("shared")
        return len(calls)

    def in_a_thread(value: int = Depends(shared)) -> tuple[int, bool]:
        return value, threading.current_thread() is threading.main_thread()

    class Service:
        def __init__(self, value: Annotated[int, Depends(shared)], tenant: Annotated[str, Header()]) -> None:
            self.value, self.tenant = value, tenant

    async def generated() -> AsyncIterator[str]:
        yield "generated"

    def generated_in_a_thread() -> Iterator[str]:
        yield "generated in a thread"

    async def scoped(scopes: SecurityScopes) -> list[str]:
        return scopes.scopes

    seen: list[Any] = []
    router = OutboxRouter()

    @router.subscriber("orders")
    async def handle(
        body: str,
        service: Annotated[Service, Depends()],
        one: Annotated[tuple[int, bool], Depends(in_a_thread)],
        two: Annotated[str, Depends(generated)],
        three: Annotated[str, Depends(generated_in_a_thread)],
        four: Annotated[list[str], Security(scoped, scopes=["write"])],
        again: Annotated[int, Depends(shared, use_cache=False)],
    ) -> None:
        seen.append((body, service.value, service.tenant, one, two, three, four, again))

    async with TestOutboxBroker(router.broker) as broker:
        await broker.publish("a", "orders", headers={"tenant": "t"})
        await broker.publish("b", "orders", headers={"tenant": "t"})
    generators = ("generated", "generated in a thread", ["write"])
    assert seen == [("a", 1, "t", (1, False), *generators, 2), ("b", 3, "t", (3, False), *generators, 4)]


async def test_a_dependency_shared_with_a_route_reads_the_bodys_fields() -> None:
    """What is a query parameter in a route is a field of the message in a handler."""

    def page(limit: int = 10, offset: int = 0) -> tuple[int, int]:
        return limit, offset

    seen: list[Any] = []
    router = OutboxRouter()

    @router.subscriber("orders")
    async def handle(body: dict, page: Annotated[tuple[int, int], Depends(page)]) -> None:  # type: ignore[type-arg]
        seen.append(page)

    async with TestOutboxBroker(router.broker) as broker:
        await broker.publish({"limit": 5}, "orders")
    assert seen == [(5, 0)]


async def test_dependencies_close_in_order_before_the_reply_and_the_background_tasks() -> None:
    order: list[str] = []

    async def of_the_request() -> AsyncIterator[None]:
        order.append("open request")
        yield
        order.append("close request")

    async def of_the_function() -> AsyncIterator[None]:
        order.append("open function")
        yield
        order.append("close function")

    router = OutboxRouter()

    @router.publisher("replies")
    @router.subscriber("orders")
    async def handle(
        body: str,
        tasks: BackgroundTasks,
        inner: Annotated[None, of_function_scope(of_the_function)],
        outer: Annotated[None, Depends(of_the_request)],
    ) -> str:
        tasks.add_task(order.append, "background")
        order.append("handler")
        return "reply"

    @router.subscriber("replies")
    async def listen(body: str) -> None:
        order.append("reply")

    async with TestOutboxBroker(router.broker) as broker:
        await broker.publish("one", "orders")
    closing = ["close function", "close request"] if HAS_SCOPES else ["close request", "close function"]
    assert order == ["open function", "open request", "handler", *closing, "reply", "background"]


async def test_a_dependency_sees_what_the_handler_raised_and_the_message_is_a_failure(both: Place) -> None:
    seen: list[str] = []
    dead = asyncio.Queue[str]()

    async def watching() -> AsyncIterator[None]:
        try:
            yield
        except RuntimeError as error:
            seen.append(str(error))
            raise

    router = OutboxRouter(
        both.engine,
        outbox_table=both.tables,
        logger=None,
        observers=[lambda event: dead.put_nowait(event.reason) if isinstance(event, DeadLettered) else None],
    )

    @router.subscriber("orders", retry_strategy=NoRetry())
    async def handle(body: str, watched: Annotated[None, Depends(watching)]) -> None:
        raise RuntimeError(body)

    app = FastAPI()
    app.include_router(router)
    async with serving(app):
        await router.broker.publish("ouch", "orders")
        assert await dead.get() == "retry_terminal"
    assert seen == ["ouch"]


async def test_dependency_overrides_of_the_application_hold_for_handlers(place: Place) -> None:
    async def real() -> str:
        return "real"

    seen = asyncio.Queue[str]()
    router = OutboxRouter(place.engine, outbox_table=place.tables, logger=None)

    @router.subscriber("orders")
    async def handle(body: str, which: Annotated[str, Depends(real)]) -> None:
        seen.put_nowait(which)

    app = FastAPI()
    app.include_router(router)
    async with serving(app):
        await router.broker.publish("one", "orders")
        assert await seen.get() == "real"
        app.dependency_overrides[real] = lambda: "fake"
        await router.broker.publish("two", "orders")
        assert await seen.get() == "fake"


async def test_a_routers_own_overrides_provider_is_asked() -> None:
    async def real() -> str:
        return "real"

    class Overrides:
        dependency_overrides = {real: lambda: "fake"}  # noqa: RUF012  what FastAPI's applications have

    seen: list[str] = []
    router = OutboxRouter(dependency_overrides_provider=Overrides())

    @router.subscriber("orders")
    async def handle(body: str, which: Annotated[str, Depends(real)]) -> None:
        seen.append(which)

    async with TestOutboxBroker(router.broker) as broker:
        await broker.publish("one", "orders")
    assert seen == ["fake"]


async def test_the_application_is_the_requests(place: Place) -> None:
    def pool(request: Request) -> object:
        return request.app.state.pool

    seen = asyncio.Queue[object]()
    router = OutboxRouter(place.engine, outbox_table=place.tables, logger=None)

    @router.subscriber("orders")
    async def handle(body: str, pool: Annotated[object, Depends(pool)], request: Request) -> None:
        seen.put_nowait((pool, request.app is app, request.url_for("index").path))

    @router.get("/index", name="index")
    async def index() -> None: ...

    app = FastAPI()
    app.state.pool = "mine"
    app.include_router(router)
    async with serving(app):
        await router.broker.publish("one", "orders")
        assert await seen.get() == ("mine", True, "/index")


async def test_a_background_task_that_fails_fails_its_message() -> None:
    router = OutboxRouter()

    async def fail() -> None:
        raise RuntimeError("in the background")

    @router.subscriber("orders")
    async def handle(body: str, tasks: BackgroundTasks) -> None:
        tasks.add_task(fail)

    async with TestOutboxBroker(router.broker) as broker:
        with pytest.raises(RuntimeError, match="in the background"):
            await broker.publish("one", "orders")


async def test_background_tasks_of_a_handler_that_failed_do_not_run() -> None:
    ran: list[str] = []
    router = OutboxRouter()

    @router.subscriber("orders")
    async def handle(body: str, tasks: BackgroundTasks) -> None:
        tasks.add_task(ran.append, body)
        raise RuntimeError("no")

    async with TestOutboxBroker(router.broker) as broker:
        with pytest.raises(RuntimeError):
            await broker.publish("one", "orders")
    assert ran == []


@pytest.mark.parametrize("asynchronous", [True, False])
async def test_an_outbox_response_chooses_its_queue(both: Place, asynchronous: bool) -> None:
    router = OutboxRouter(both.engine, outbox_table=both.tables, logger=None)

    async def handle(body: str) -> OutboxResponse:
        return OutboxResponse(f"re {body}", queue="elsewhere", key="k")

    def handle_in_thread(body: str) -> OutboxResponse:
        return OutboxResponse(f"re {body}", queue="elsewhere", key="k")

    router.subscriber("orders")(handle if asynchronous else handle_in_thread)
    app = FastAPI()
    app.include_router(router)
    async with serving(app):
        await router.broker.publish("one", "orders")
        await until(lambda: [(row.queue, row.key, row.payload) for row in both.rows()], [("elsewhere", "k", b"re one")])


async def test_filters_choose_among_the_handlers_of_a_subscriber() -> None:
    seen: list[Any] = []
    router = OutboxRouter()
    subscriber = router.subscriber("orders")

    @subscriber(filter=lambda message: message.headers.get("kind") == "big")
    async def big(id: int, message: OutboxMessage) -> None:
        seen.append(("big", id, message.queue))

    @subscriber
    async def other(id: int) -> None:
        seen.append(("other", id))

    async with TestOutboxBroker(router.broker) as broker:
        await broker.publish({"id": 1}, "orders", headers={"kind": "big"})
        await broker.publish({"id": 2}, "orders")
    assert seen == [("big", 1, "orders"), ("other", 2)]


async def test_what_a_dependency_kept_to_itself_is_the_cause_of_the_failure() -> None:
    async def silent() -> AsyncIterator[None]:
        with suppress(RuntimeError):
            yield

    router = OutboxRouter()

    @router.subscriber("orders")
    async def handle(body: str, nothing: Annotated[None, Depends(silent)]) -> None:
        raise RuntimeError(body)

    async with TestOutboxBroker(router.broker) as broker:
        with pytest.raises(DependencyError) as caught:
            await broker.publish("ouch", "orders")
    assert repr(caught.value.__cause__) == "RuntimeError('ouch')"
