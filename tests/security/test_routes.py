"""An application gets the routes that it asked for."""

import pytest

from outbox_fastapi import OutboxRouter
from tests.places import Place


def routes(router: OutboxRouter) -> set[tuple[str, str]]:
    """Methods and paths; what FastAPI answers to HEAD by itself aside."""
    return {
        (method, route.path) for route in router.routes for method in getattr(route, "methods", ()) if method != "HEAD"
    }


async def test_a_router_adds_a_document_to_read_and_nothing_that_changes_anything(place: Place) -> None:
    router = OutboxRouter(place.engine, outbox_table=place.tables)

    assert routes(router) == {
        ("GET", "/asyncapi"),
        ("GET", "/asyncapi.json"),
        ("GET", "/asyncapi.yaml"),
    }


async def test_a_router_without_documents_adds_nothing(place: Place) -> None:
    router = OutboxRouter(place.engine, outbox_table=place.tables, schema_url=None)
    router.subscriber("orders")(lambda body: None)

    assert routes(router) == set()


@pytest.mark.parametrize("given", [True, False])
async def test_only_try_it_out_adds_a_post(place: Place, given: bool) -> None:
    router = OutboxRouter(place.engine, outbox_table=place.tables, try_it_out=given)

    assert [path for method, path in routes(router) if method == "POST"] == (["/asyncapi/try"] if given else [])
