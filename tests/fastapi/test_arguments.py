"""Where the arguments of a handler come from."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any

import pytest
from fastapi import Body, Depends, FastAPI, Header, Path, Query, Request
from fastapi.exceptions import RequestValidationError, ResponseValidationError
from faststream.response import Response
from pydantic import BaseModel, Field

from outbox_fastapi import OutboxResponse, OutboxRouter, TestOutboxBroker

Everything = dict[str, Any]


class Order(BaseModel):
    id: int
    note: str | None = None


@dataclass
class Point:
    x: int
    y: int


async def handled(handler: Callable[..., Any], *bodies: Any, **options: Any) -> Everything:
    """What *handler* was called with when *bodies* were published: the arguments of its only call."""
    _calls.clear()
    router = OutboxRouter()
    router.subscriber("orders", **options)(handler)
    async with TestOutboxBroker(router.broker) as broker:
        await broker.publish_batch(*bodies, queue="orders")
    (call,) = _calls
    return call


_calls: list[Everything] = []  # of the handlers below


async def a_dict(body: dict) -> None:  # type: ignore[type-arg]  # as users write it
    _calls.append(body)


async def a_model(order: Order) -> None:
    _calls.append({"order": order})


async def a_dataclass(point: Point) -> None:
    _calls.append({"point": point})


async def a_list(numbers: list[int]) -> None:
    _calls.append({"numbers": numbers})


async def a_scalar(id: int) -> None:
    _calls.append({"id": id})


async def some_text(msg: str) -> None:
    _calls.append({"msg": msg})


async def some_bytes(msg: bytes) -> None:
    _calls.append({"msg": msg})


async def untyped(msg) -> None:  # type: ignore[no-untyped-def]  # that is the point
    _calls.append({"msg": msg})


async def anything(msg: Any) -> None:
    _calls.append({"msg": msg})


async def fields(id: int, name: str, tags: list[str], note: str = "none") -> None:
    _calls.append({"id": id, "name": name, "tags": tags, "note": note})


async def fields_with_a_model(order: Order, urgent: bool) -> None:
    _calls.append({"order": order, "urgent": urgent})


async def constrained(id: Annotated[int, Field(gt=0)], size: Annotated[int, Body(ge=1)]) -> None:
    _calls.append({"id": id, "size": size})


async def aliased(order_id: Annotated[int, Body(alias="orderId")], sku: str) -> None:
    _calls.append({"order_id": order_id, "sku": sku})


async def embedded(order: Annotated[Order, Body(embed=True)]) -> None:
    _calls.append({"order": order})


async def placed(id: Annotated[int, Path()], name: Annotated[str, Query()], order: dict) -> None:  # type: ignore[type-arg]
    _calls.append({"id": id, "name": name, "order": order})


async def only_placed(id: Annotated[int, Path()]) -> None:
    _calls.append({"id": id})


async def nothing() -> None:
    _calls.append({})


def in_a_thread(id: int) -> None:
    _calls.append({"id": id})


ARGUMENTS = [
    (a_dict, {"a": 1}, {"a": 1}),
    (a_model, {"id": 1}, {"order": Order(id=1)}),
    (a_model, Order(id=1, note="n"), {"order": Order(id=1, note="n")}),
    (a_dataclass, {"x": 1, "y": 2}, {"point": Point(1, 2)}),
    (a_list, [1, 2], {"numbers": [1, 2]}),
    (a_list, [], {"numbers": []}),
    (a_scalar, {"id": 1}, {"id": 1}),
    (a_scalar, 1, {"id": 1}),
    (a_scalar, "1", {"id": 1}),
    (some_text, "Hi!", {"msg": "Hi!"}),
    (some_text, {"msg": "Hi!"}, {"msg": "Hi!"}),
    (some_bytes, b"\x00\xff", {"msg": b"\x00\xff"}),
    (untyped, {"a": 1}, {"msg": {"a": 1}}),
    (untyped, {"msg": 1}, {"msg": 1}),
    (untyped, "Hi!", {"msg": "Hi!"}),
    (anything, [1, None], {"msg": [1, None]}),
    (fields, {"id": 1, "name": "n", "tags": []}, {"id": 1, "name": "n", "tags": [], "note": "none"}),
    (fields_with_a_model, {"order": {"id": 1}, "urgent": True}, {"order": Order(id=1), "urgent": True}),
    (constrained, {"id": 1, "size": 2}, {"id": 1, "size": 2}),
    (aliased, {"orderId": 1, "sku": "s"}, {"order_id": 1, "sku": "s"}),
    (embedded, {"order": {"id": 1}}, {"order": Order(id=1)}),
    (placed, {"id": 1, "name": "n"}, {"id": 1, "name": "n", "order": {"id": 1, "name": "n"}}),
    (only_placed, {"id": 1}, {"id": 1}),
    (only_placed, 1, {"id": 1}),
    (nothing, {"a": 1}, {}),
    (nothing, "Hi!", {}),
    (in_a_thread, {"id": 1}, {"id": 1}),
]


@pytest.mark.parametrize(("handler", "body", "expected"), ARGUMENTS)
async def test_a_body_becomes_arguments(handler: Callable[..., Any], body: Any, expected: Everything) -> None:
    assert await handled(handler, body) == expected


async def test_what_a_dependency_reads_of_the_body_is_no_parameter_of_the_handler() -> None:
    def named(a: Any) -> Any:
        return a

    seen: list[Any] = []
    router = OutboxRouter()

    @router.subscriber("orders")
    async def handle(msg: Any, named: Annotated[Any, Depends(named)]) -> None:
        seen.append((msg, named))

    async with TestOutboxBroker(router.broker) as broker:
        await broker.publish({"a": 1}, "orders")
    assert seen == [({"a": 1}, 1)]


async def test_a_batch_is_a_list() -> None:
    assert await handled(a_list, 1, 2, 3, batch=True) == {"numbers": [1, 2, 3]}


WRONG = [
    (a_scalar, {"other": 1}, {"other": 1}, ("body", "id"), "missing"),
    (a_scalar, {"id": "one"}, {"id": "one"}, ("body", "id"), "int_parsing"),
    (a_scalar, "one", {"id": "one"}, ("body", "id"), "int_parsing"),
    (a_model, {"note": "n"}, {"note": "n"}, ("body", "id"), "missing"),
    (a_model, "Hi!", "Hi!", ("body",), "model_attributes_type"),
    (fields, [1, 2], [1, 2], ("body", "id"), "missing"),
    (constrained, {"id": 0, "size": 1}, {"id": 0, "size": 1}, ("body", "id"), "greater_than"),
]


@pytest.mark.parametrize(("handler", "body", "received", "place", "kind"), WRONG)
async def test_a_body_that_does_not_fit_says_where(
    handler: Callable[..., Any], body: Any, received: Any, place: tuple[str, ...], kind: str
) -> None:
    router = OutboxRouter()
    router.subscriber("orders")(handler)
    async with TestOutboxBroker(router.broker) as broker:
        with pytest.raises(RequestValidationError) as caught:
            await broker.publish(body, "orders")
    error = caught.value.errors()[0]
    assert (tuple(error["loc"]), error["type"]) == (place, kind)
    assert caught.value.body == received


async def test_headers_are_found_in_any_case_and_spelling_with_values_in_any_script() -> None:
    async def handle(
        x_tenant: Annotated[str, Header()],
        correlation_id: Annotated[str, Header()],
        tags: Annotated[list[str], Header(alias="X-Tags")],
        absent: Annotated[str | None, Header()] = None,
    ) -> None:
        seen.append((x_tenant, correlation_id, tags, absent))

    seen: list[Any] = []
    router = OutboxRouter()
    router.subscriber("orders")(handle)
    async with TestOutboxBroker(router.broker) as broker:
        await broker.publish({}, "orders", headers={"X-Tenant": "Øre 漢", "x-tags": "a"}, correlation_id="c-1")
    assert seen == [("Øre 漢", "c-1", ["a"], None)]


async def test_a_request_is_the_message() -> None:
    async def handle(body: dict, request: Request) -> None:  # type: ignore[type-arg]
        seen.append((await request.json(), json.loads(await request.body()), dict(request.headers)["x-tenant"]))
        seen.append((request.method, request.cookies, request.client, next(iter(request.headers))))
        seen.append((request.headers.getlist("X-Tenant"), request.query_params["id"], request.path_params["id"]))

    seen: list[Any] = []
    router = OutboxRouter()
    router.subscriber("orders")(handle)
    async with TestOutboxBroker(router.broker) as broker:
        await broker.publish({"id": 1}, "orders", headers={"X-Tenant": "a"})
    assert seen == [({"id": 1}, {"id": 1}, "a"), ("POST", {}, None, "x-tenant"), (["a"], 1, 1)]


async def test_string_annotations_are_evaluated_where_the_handler_is() -> None:
    async def handle(order: "Order", urgent: "Annotated[bool, Header()]" = False) -> None:
        seen.append((order, urgent))

    seen: list[Any] = []
    router = OutboxRouter()
    router.subscriber("orders")(handle)
    async with TestOutboxBroker(router.broker) as broker:
        await broker.publish({"id": 1}, "orders", headers={"urgent": "1"})
    assert seen == [(Order(id=1), True)]


# Replies


class Public(BaseModel):
    id: int
    name: str = Field(default="none", serialization_alias="displayName")


class Secret(Public):
    password: str


async def replied(handler: Callable[..., Any], **options: Any) -> Any:
    """What *handler* published."""
    replies: list[Any] = []
    router = OutboxRouter()
    router.subscriber("orders", **options)(router.publisher("replies")(handler))

    @router.subscriber("replies")
    async def listen(reply: Any) -> None:
        replies.append(reply)

    async with TestOutboxBroker(router.broker) as broker:
        await broker.publish({"id": 1}, "orders")
    (reply,) = replies
    return reply


@pytest.mark.parametrize("make", [lambda: Secret(id=1, password="p"), lambda: {"id": 1, "password": "p"}])
async def test_a_reply_is_cut_to_its_response_model(make: Callable[[], Any]) -> None:
    async def handle(body: dict) -> Any:  # type: ignore[type-arg]
        return make()

    def handle_in_thread(body: dict) -> Any:  # type: ignore[type-arg]
        return make()

    for handler in (handle, handle_in_thread):
        assert await replied(handler, response_model=Public) == {"id": 1, "displayName": "none"}
    assert await replied(handle, response_model=Public, response_model_exclude_unset=True) == {"id": 1}
    assert await replied(handle, response_model=Public, response_model_by_alias=False) == {"id": 1, "name": "none"}
    assert await replied(handle, response_model=Public, response_model_include={"id"}) == {"id": 1}


async def test_a_response_keeps_what_it_says_beside_its_body() -> None:
    async def handle(body: dict) -> Response:  # type: ignore[type-arg]
        return OutboxResponse(Secret(id=1, password="p"), headers={"x-tenant": "a"})

    seen: list[Any] = []
    router = OutboxRouter()
    router.subscriber("orders", response_model=Public)(router.publisher("replies")(handle))

    @router.subscriber("replies")
    async def listen(reply: Any, x_tenant: Annotated[str, Header()]) -> None:
        seen.append((reply, x_tenant))

    async with TestOutboxBroker(router.broker) as broker:
        await broker.publish({}, "orders")
    assert seen == [({"id": 1, "displayName": "none"}, "a")]


async def test_a_reply_that_is_not_its_model_is_a_failure() -> None:
    async def handle(body: dict) -> Any:  # type: ignore[type-arg]
        return {"id": "one"}

    with pytest.raises(ResponseValidationError) as caught:
        await replied(handle, response_model=Public)
    assert caught.value.errors()[0]["type"] == "int_parsing"


async def test_a_reply_without_a_model_is_published_as_it_is() -> None:
    async def handle(body: dict) -> Secret:  # type: ignore[type-arg]
        return Secret(id=1, password="p")

    assert await replied(handle) == {"id": 1, "name": "none", "password": "p"}


async def test_a_handler_is_called_as_it_was_written() -> None:
    router = OutboxRouter()

    @router.subscriber("orders", response_model=Public)
    async def handle(order: Order, x: Annotated[str, Header()] = "none") -> Order:
        return order

    async with TestOutboxBroker(router.broker):
        assert await handle(Order(id=1)) == Order(id=1)
    app = FastAPI()
    app.include_router(router)
    assert await handle(Order(id=2)) == Order(id=2)
