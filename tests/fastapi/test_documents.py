"""The AsyncAPI document of an application."""

import asyncio
import json
from typing import Annotated, Any

import pytest
import yaml
from fastapi import Depends, FastAPI, HTTPException
from faststream.specification import AsyncAPI
from pydantic import BaseModel, Field

from outbox_fastapi import OutboxMessage, OutboxRouter
from tests.fastapi.serving import serving
from tests.places import Place, until


class Order(BaseModel):
    id: int = Field(description="the order's")


class Shipped(BaseModel):
    order_id: int


def router_on(place: Place, **options: Any) -> OutboxRouter:
    return OutboxRouter(place.engine, outbox_table=place.tables, logger=None, **options)


def payload(document: dict[str, Any], message: str) -> dict[str, Any]:
    """The schema of *message*'s payload."""
    reference = document["components"]["messages"][message]["payload"]["$ref"]
    schema: dict[str, Any] = document["components"]["schemas"][reference.rpartition("/")[2]]
    return schema


async def test_the_document_describes_handlers_and_publishers_of_the_application(place: Place) -> None:
    router = router_on(place)

    def page(limit: int = 10) -> int:
        return limit

    @router.subscriber("orders")
    @router.publisher("shipped")
    async def ship(order: Order, message: OutboxMessage) -> Shipped:
        """Ships it."""
        return Shipped(order_id=order.id)

    @router.subscriber("fields")
    async def fields(id: int, name: str | None, page: Annotated[int, Depends(page)]) -> None: ...

    @router.subscriber("scalar")
    async def scalar(id: int) -> None: ...

    @router.subscriber("nothing")
    async def nothing() -> None: ...

    app = FastAPI(
        title="Shop", version="1.2.3", description="Sells.", contact={"name": "me"}, license_info={"name": "MIT"}
    )
    app.include_router(router)
    async with serving(app) as client:
        page_ = await client.get("/asyncapi")
        document = (await client.get("/asyncapi.json")).json()
        as_yaml = await client.get("/asyncapi.yaml")
        assert "/asyncapi" not in (await client.get("/openapi.json")).text
    assert page_.headers["content-type"] == "text/html; charset=utf-8"
    assert "Shop" in page_.text
    assert "asyncapi/try" not in page_.text
    assert yaml.safe_load(as_yaml.text) == document
    assert document["info"] == {
        "title": "Shop",
        "version": "1.2.3",
        "description": "Sells.",
        "contact": {"name": "me"},
        "license": {"name": "MIT"},
    }
    assert {channel["address"] for channel in document["channels"].values()} == {
        *("orders", "shipped", "fields", "scalar", "nothing")
    }
    assert payload(document, "orders:Ship:SubscribeMessage") == Order.model_json_schema()
    assert payload(document, "shipped:Publisher:Message") == Shipped.model_json_schema()
    assert payload(document, "scalar:Scalar:SubscribeMessage")["type"] == "integer"
    assert payload(document, "nothing:Nothing:SubscribeMessage")["type"] == "null"
    found = payload(document, "fields:Fields:SubscribeMessage")
    assert found["required"] == ["id", "name"]
    types = {name: one.get("type") for name, one in found["properties"].items()}
    assert types == {"id": "integer", "name": None, "limit": "integer"}


async def test_reading_the_document_does_not_disturb_the_consumer(place: Place) -> None:
    handled = asyncio.Queue[int]()
    router = router_on(place)

    @router.subscriber("orders")
    async def handle(order: Order) -> None:
        handled.put_nowait(order.id)

    app = FastAPI()
    app.include_router(router)
    async with serving(app) as client:
        for number in range(3):
            assert (await client.get("/asyncapi.json")).status_code == 200
            await router.broker.publish({"id": number}, "orders")
            assert await handled.get() == number


async def test_routers_that_show_their_document_at_one_path_have_one_document(place: Place) -> None:
    app = FastAPI()
    for name, url in (("a", "/asyncapi"), ("b", "/asyncapi"), ("c", "/other"), ("d", None)):
        router = router_on(place, schema_url=url)
        router.subscriber(name)(lambda body: None)
        app.include_router(router)
    async with serving(app) as client:
        together = (await client.get("/asyncapi.json")).json()
        alone = (await client.get("/other.json")).json()
    assert {channel["address"] for channel in together["channels"].values()} == {"a", "b"}
    assert {channel["address"] for channel in alone["channels"].values()} == {"c"}


async def test_the_document_stands_below_the_prefixes(place: Place) -> None:
    router = router_on(place, prefix="/shop", schema_url="/events")
    app = FastAPI()
    app.include_router(router, prefix="/api")
    async with serving(app) as client:
        assert (await client.get("/api/shop/events.json")).status_code == 200


@pytest.mark.parametrize("options", [{"schema_url": None}, {"include_in_schema": False}])
async def test_no_document_is_shown_where_none_is_wanted(place: Place, options: dict[str, Any]) -> None:
    app = FastAPI()
    app.include_router(router_on(place, **options))
    async with serving(app) as client:
        assert (await client.get("/asyncapi")).status_code == 404


async def test_a_specification_of_ones_own(place: Place) -> None:
    router = router_on(place, specification=AsyncAPI(title="Mine", version="9", schema_version="2.6.0"))
    router.subscriber("orders")(lambda body: None)
    app = FastAPI(title="Not this")
    app.include_router(router)
    async with serving(app) as client:
        document = (await client.get("/asyncapi.json")).json()
    assert (document["info"]["title"], document["asyncapi"]) == ("Mine", "2.6.0")
    assert router.schema.to_specification().to_jsonable() == document


async def test_nothing_secret_is_shown(place: Place) -> None:
    router = router_on(place, specification_tags=[{"name": "shop"}], protocol_version="17", description="The outbox.")
    app = FastAPI()
    app.include_router(router)
    async with serving(app) as client:
        text = (await client.get("/asyncapi.json")).text
    server = json.loads(text)["servers"]["development"]
    assert server["description"] == "The outbox."
    assert server["protocolVersion"] == "17"
    assert server["tags"] == [{"name": "shop"}]
    assert str(place.url.database) not in text


async def form(client: Any, channel: str, body: object, *, real: bool = False) -> tuple[int, Any]:
    """What try-it-out answers."""
    options = {"sendToRealBroker": real}
    answer = await client.post(
        "/asyncapi/try", json={"channelName": channel, "message": {"message": body}, "options": options}
    )
    return answer.status_code, answer.json()


async def test_try_it_out_is_off_unless_it_is_switched_on(place: Place) -> None:
    app = FastAPI()
    app.include_router(router_on(place))
    async with serving(app) as client:
        assert (await client.post("/asyncapi/try", json={})).status_code == 404


async def test_try_it_out_runs_the_handler_or_publishes(both: Place) -> None:
    handled = asyncio.Queue[int]()
    router = router_on(both, try_it_out=True)

    @router.subscriber("orders")
    async def handle(order: Order) -> dict[str, int]:
        handled.put_nowait(order.id)
        return {"shipped": order.id}

    app = FastAPI()
    app.include_router(router)
    async with serving(app) as client:
        assert "/asyncapi/try" in (await client.get("/asyncapi")).text
        assert await form(client, "orders:Handle", {"id": 1}) == (200, {"shipped": 1})
        assert await handled.get() == 1
        assert await form(client, "orders:Handle", {"id": 2}, real=True) == (200, "ok")
        assert await handled.get() == 2
        assert (await form(client, "nowhere:X", {}))[0] == 404
        assert (await form(client, "orders:Handle", {"id": "x"}))[0] == 500
        assert (await client.post("/asyncapi/try", content=b"{")).status_code == 400
        assert (await client.post("/asyncapi/try", json=[])).status_code == 400
        await router.broker.publish({"id": 3}, "orders")  # the consumer goes on
        assert await handled.get() == 3
        await until(both.rows, [])


async def test_try_it_out_is_behind_the_routers_dependencies(place: Place) -> None:
    async def forbidden() -> None:
        raise HTTPException(403)

    app = FastAPI()
    app.include_router(router_on(place, try_it_out=True, dependencies=[Depends(forbidden)]))
    async with serving(app) as client:
        assert (await client.post("/asyncapi/try", json={})).status_code == 403
