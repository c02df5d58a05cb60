"""Where FastAPI itself differs from version to version: what holds on the one that is installed."""

from importlib.metadata import version
from inspect import signature

import pytest
from fastapi import APIRouter, FastAPI
from fastapi.exceptions import RequestValidationError

from outbox_core.errors import UnknownOption
from outbox_fastapi import OutboxRouter, TestOutboxBroker
from outbox_fastapi.router import ApiRouterOptions
from tests.fastapi.serving import serving
from tests.places import Place

FASTAPI = tuple(int(part) for part in version("fastapi").split(".")[:2])


@pytest.mark.parametrize("body", [None, {"discount": None, "id": 7}], ids=["body", "field"])
async def test_null_is_a_value_since_0_151_and_missing_before(body: object) -> None:
    router = OutboxRouter(logger=None)
    got: list[object] = []

    @router.subscriber("body")
    async def whole(discount: int | None) -> None:
        got.append(discount)

    @router.subscriber("field")
    async def field(discount: int | None, id: int) -> None:
        got.append(discount)

    async with TestOutboxBroker(router.broker) as broker:
        if FASTAPI >= (0, 151):
            await broker.publish(body, "body" if body is None else "field")
            assert got == [None]
        else:
            with pytest.raises(RequestValidationError) as caught:
                await broker.publish(body, "body" if body is None else "field")
            assert [error["type"] for error in caught.value.errors()] == ["missing"]


async def test_a_route_may_follow_its_routers_inclusion_since_0_137(place: Place) -> None:
    router = OutboxRouter(place.engine, outbox_table=place.tables)
    app = FastAPI()
    app.include_router(router)

    @router.get("/late")
    async def late() -> str:
        return "here"

    async with serving(app) as client:
        assert (await client.get("/late")).status_code == (200 if FASTAPI >= (0, 137) else 404)


def test_the_router_has_the_options_that_fastapis_has() -> None:
    theirs = set(signature(APIRouter).parameters) - {"lifespan"}

    OutboxRouter(**{option: signature(APIRouter).parameters[option].default for option in theirs})
    assert theirs <= set(ApiRouterOptions.__annotations__)
    for option in set(ApiRouterOptions.__annotations__) - theirs:
        with pytest.raises(UnknownOption, match=f"OutboxRouter has no option {option!r}"):
            OutboxRouter(**{option: None})
