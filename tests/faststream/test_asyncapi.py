"""The AsyncAPI document of a broker."""

import json
from typing import Any

import pytest
from faststream import FastStream
from faststream.asgi import AsgiFastStream, make_ping_asgi
from faststream.security import SASLScram256
from faststream.specification import AsyncAPI
from faststream.specification.schema import Tag
from pydantic import BaseModel
from sqlalchemy.ext.asyncio import create_async_engine

from outbox_sqlalchemy import OutboxBroker, OutboxRouter
from tests.places import Place


class Order(BaseModel):
    id: int


class Letter(BaseModel):
    """What is sent."""

    text: str


def documented() -> OutboxBroker:
    engine = create_async_engine("postgresql+asyncpg://app_user:s3cret@db.internal:6543/shop_database")
    broker = OutboxBroker(engine, description="Orders of the shop", tags=[Tag(name="shop")], protocol_version="1")
    router = OutboxRouter("eu.")

    @broker.subscriber(["orders", "returns"], title="Orders", description="New orders")
    @broker.publisher("letters", title="Letters", description="To customers", schema=Letter)
    async def on_order(order: Order) -> Letter:
        return Letter(text=str(order.id))

    @router.subscriber("parcels")
    async def on_parcel(body: dict[str, str]) -> None:
        """Handle a parcel."""

    @broker.subscriber("internal", include_in_schema=False)
    async def internal(body: int) -> None: ...

    broker.include_router(router)
    return broker


@pytest.fixture(params=["2.6.0", "3.0.0"])
def document(request: pytest.FixtureRequest) -> dict[str, Any]:
    specification = AsyncAPI(documented(), title="Shop", schema_version=request.param)
    parsed: dict[str, Any] = json.loads(specification.to_specification().to_json())
    assert parsed["asyncapi"] == request.param
    return parsed


def test_the_document_has_a_channel_for_each_queue(document: dict[str, Any]) -> None:
    channels = document["channels"]

    addresses = sorted(channel.get("address", name) for name, channel in channels.items())
    if document["asyncapi"] == "3.0.0":
        assert addresses == ["eu.parcels", "letters", "orders", "returns"]
    assert len(channels) == 4
    assert not any("internal" in name for name in channels)


def test_the_document_tells_nothing_about_the_database(document: dict[str, Any]) -> None:
    text = json.dumps(document)

    for secret in ("app_user", "s3cret", "db.internal", "6543", "shop_database", "asyncpg"):
        assert secret not in text
    (server,) = document["servers"].values()
    assert (server["protocol"], server["description"]) == ("outbox", "Orders of the shop")
    assert server.get("url", f"postgresql://{server.get('host')}") == "postgresql://outbox"


def test_the_document_describes_the_messages(document: dict[str, Any]) -> None:
    text = json.dumps(document)
    schemas = document["components"]["schemas"]

    assert {"Order", "Letter"} <= schemas.keys()
    assert schemas["Letter"]["properties"] == {"text": {"title": "Text", "type": "string"}}
    for words in ("New orders", "To customers", "Handle a parcel."):
        assert words in text


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("postgresql://app_user:s3cret@db.example.com:6543/shop", "postgresql://db.example.com:6543/shop"),
        ("postgresql+asyncpg://app_user:s3/cr?t@db.example.com/shop", "postgresql+asyncpg://db.example.com/shop"),
        ("postgresql://app_user:s3@cret@db.example.com", "postgresql://db.example.com"),
        ("postgresql://one,two/shop?user=app_user&password=s3cret", "postgresql://one,two/shop"),
        ("app_user:s3cret@db.example.com:6543", "db.example.com:6543"),
        ("sqlite:///outbox.db", "sqlite:///outbox.db"),
        ("outbox.example.com", "outbox.example.com"),
    ],
)
@pytest.mark.parametrize("version", ["2.6.0", "3.0.0"])
def test_the_document_tells_no_secret_of_the_url_that_it_is_given(url: str, shown: str, version: str) -> None:
    broker = OutboxBroker(specification_url=url)

    text = AsyncAPI(broker, schema_version=version).to_specification().to_json()

    assert broker.specification.url == [shown]
    for secret in ("app_user", "s3", "cr?t", "cret"):
        assert secret not in text


@pytest.mark.parametrize("version", ["2.6.0", "3.0.0"])
def test_security_is_told_as_a_scheme_and_without_its_secrets(version: str) -> None:
    broker = OutboxBroker(security=SASLScram256(username="app_user", password="s3cret"))

    text = AsyncAPI(broker, schema_version=version).to_specification().to_json()

    assert json.loads(text)["components"]["securitySchemes"] == {"scram256": {"type": "scramSha256"}}
    assert "app_user" not in text
    assert "s3cret" not in text


def test_the_server_is_described(document: dict[str, Any]) -> None:
    (server,) = document["servers"].values()

    assert (server["description"], server["protocolVersion"], server["tags"]) == (
        "Orders of the shop",
        "1",
        [{"name": "shop"}],
    )


def test_several_servers_can_be_named() -> None:
    broker = OutboxBroker(specification_url=["one.example.com", "two.example.com"])

    document = json.loads(AsyncAPI(broker, schema_version="3.0.0").to_specification().to_json())

    assert [server["host"] for server in document["servers"].values()] == ["one.example.com", "two.example.com"]


@pytest.mark.parametrize("of_router", [None, True, False])
@pytest.mark.parametrize("of_include", [None, True, False])
@pytest.mark.parametrize("of_endpoint", [True, False])
def test_what_is_left_out_anywhere_is_left_out(
    of_router: bool | None, of_include: bool | None, of_endpoint: bool
) -> None:
    broker, router = OutboxBroker(), OutboxRouter(include_in_schema=of_router)

    @router.subscriber("orders", include_in_schema=of_endpoint)
    @router.publisher("letters", include_in_schema=of_endpoint)
    async def handle(body: int) -> int:
        return body

    broker.include_router(router, include_in_schema=of_include)
    document = json.loads(AsyncAPI(broker, schema_version="3.0.0").to_specification().to_json())

    shown = ["letters", "orders"] if of_endpoint and False not in (of_router, of_include) else []
    assert sorted(channel["address"] for channel in document["channels"].values()) == shown


def test_publishers_are_described_by_what_their_handlers_return() -> None:
    broker = OutboxBroker()
    publisher = broker.publisher("letters")
    broker.publisher("parcels", schema=Order, title="Parcels")

    @publisher
    @broker.subscriber("orders")
    async def handle(order: Order) -> Letter:
        return Letter(text=str(order.id))

    document = json.loads(AsyncAPI(broker, schema_version="3.0.0").to_specification().to_json())

    sent = [operation for operation in document["operations"].values() if operation["action"] == "send"]
    messages = {name: message["payload"]["$ref"] for name, message in document["components"]["messages"].items()}
    assert len(sent) == 2
    assert sorted(messages.values()) == [
        "#/components/schemas/Letter",
        "#/components/schemas/Order",
        "#/components/schemas/Order",
    ]
    assert {"letters:Publisher:Message", "Parcels:Message"} <= messages.keys()


def test_a_batch_is_described_as_a_list() -> None:
    broker = OutboxBroker()

    @broker.subscriber("orders", batch=True)
    async def handle(orders: list[Order]) -> None: ...

    document = json.loads(AsyncAPI(broker, schema_version="3.0.0").to_specification().to_json())

    (payload,) = [one for name, one in document["components"]["schemas"].items() if name != "Order"]
    assert (payload["type"], payload["items"]) == ("array", {"$ref": "#/components/schemas/Order"})


def test_a_server_can_be_named(document: dict[str, Any]) -> None:
    broker = OutboxBroker(specification_url="outbox.example.com", protocol="postgres")

    specification = AsyncAPI(broker, schema_version="2.6.0").to_specification()

    (server,) = json.loads(specification.to_json())["servers"].values()
    assert (server["url"], server["protocol"]) == ("outbox.example.com", "postgres")


def test_a_broker_without_an_engine_has_a_document() -> None:
    broker = OutboxBroker()

    @broker.subscriber("orders")
    async def handle(body: int) -> None: ...

    document = json.loads(FastStream(broker).schema.to_specification().to_json())

    assert [server["host"] for server in document["servers"].values()] == ["outbox"]
    assert len(document["channels"]) == 1


async def test_an_asgi_application_serves_health_and_documents(place: Place) -> None:
    broker = place.broker()

    @broker.subscriber("orders")
    async def handle(body: int) -> None: ...

    app = AsgiFastStream(
        broker,
        logger=None,
        asgi_routes=[("/health", make_ping_asgi(broker, timeout=5.0))],
        asyncapi_path="/docs",
    )
    before, _ = await get(app, "/health")
    await broker.start()
    running, _ = await get(app, "/health")
    status, page = await get(app, "/docs")
    await broker.stop()
    after, _ = await get(app, "/health")

    assert (before, running, after) == (500, 204, 500)
    assert (status, b"AsyncAPI" in page) == (200, True)


async def get(app: AsgiFastStream, path: str) -> tuple[int, bytes]:
    """Status and body, asked for as an ASGI server does."""
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "GET",
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "root_path": "",
        "headers": [(b"host", b"test")],
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 80),
    }
    await app(scope, receive, send)  # type: ignore[arg-type]  # plain dictionaries, as servers pass them
    return sent[0]["status"], b"".join(message.get("body", b"") for message in sent)
