"""Seed 002, FastStream's page "ASGI Support", line by line of the checklist, with our broker in NATS's place.

Programs are the seed's own, run as processes where the seed runs commands.
"""

import asyncio
import os
import socket
from collections.abc import Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from signal import SIGTERM

import httpx
import pytest
from fastapi import FastAPI
from faststream import FastStream
from faststream.asgi import AsgiFastStream, AsgiResponse, get, make_asyncapi_asgi, make_ping_asgi
from sqlalchemy import URL

from outbox_core.events import Event, WorkerStarted, WorkerStopped
from outbox_sqlalchemy import OutboxBroker
from tests.django.sites import Site
from tests.fastapi.serving import serving
from tests.places import Place, until
from tests.processes import Process
from tests.processes import until as seen
from tests.programs import Program, program

ASGI = """
from faststream.asgi import AsgiFastStream

from outbox import broker

app = AsgiFastStream(broker)
"""

PLAIN = """
from faststream import FastStream

from outbox import broker

app = FastStream(broker)
"""

HEALTH = """
from faststream.asgi import AsgiFastStream, make_ping_asgi

from outbox import broker

app = AsgiFastStream(
    broker,
    asgi_routes=[
        ("/health", make_ping_asgi(broker, timeout=5.0)),
    ]
)
"""

REUSED = """
from faststream import FastStream
from faststream.asgi import AsgiResponse, get, make_ping_asgi

from outbox import broker


@get
async def liveness_ping(scope):
    return AsgiResponse(b"", status_code=200)


app = FastStream(broker).as_asgi(
    asgi_routes=[
        ("/liveness", liveness_ping),
        ("/readiness", make_ping_asgi(broker, timeout=5.0)),
    ],
    asyncapi_path="/docs",
)
"""


@pytest.fixture
def lite(place: Place, tmp_path: Path) -> Iterator[Program]:
    """Modules on SQLite."""
    with program(tmp_path, place) as modules:
        yield modules


@pytest.fixture
def modules(both: Place, tmp_path: Path) -> Iterator[Program]:
    """Modules on each database in turn."""
    with program(tmp_path, both) as modules:
        yield modules


def numbers(place: Place, got: list[int] | None = None, **options: object) -> OutboxBroker:
    """A broker with a handler of numbers."""
    broker = place.broker(**options)

    @broker.subscriber("numbers")
    async def handle(number: int) -> None:
        if got is not None:
            got.append(number)

    return broker


def asked(address: str, path: str, expected: int) -> None:
    """Return when *path* answers with *expected*; processes listen, and brokers start, after it is said that they do."""

    def status() -> int | None:
        try:
            return httpx.get(f"{address}{path}", trust_env=False).status_code
        except httpx.ConnectError:
            return None

    seen(status, expected)


# 002.1


def test_002_1_uvicorn_runs_the_application_as_its_lifespan(modules: Program) -> None:
    modules.write("main.py", ASGI)
    server = modules.start("uvicorn", "main:app", "--port", 0)
    server.serves()
    modules.publish(1, 2, -3)
    seen(modules.handled, [-3, 1, 2])

    server.send(SIGTERM)
    server.says("FastStream app shutting down")
    modules.write("gate", "")

    assert server.ends() in (0, -SIGTERM)  # uvicorn raises the signal again when it is done
    assert modules.handled() == [-3, 1, 2, 3]
    assert modules.place.rows() == []
    assert "FastStream app shut down gracefully" in server.log


@pytest.mark.parametrize("app", [PLAIN, ASGI], ids=["FastStream", "AsgiFastStream"])
def test_002_1_several_workers_never_handle_a_message_twice(modules: Program, app: str) -> None:
    modules.write("main.py", app)
    port = ["--port", 0] if app == ASGI else []
    parent = modules.start("faststream", "run", "main:app", "--workers", 4, *port)
    parent.says("`Handle` waiting for messages", times=4)

    for first in range(1, 1_000, 100):
        modules.publish(*range(first, first + 100))
    modules.settled()
    parent.send(SIGTERM)

    assert parent.ends() == 0
    assert modules.handled() == list(range(1, 1_001))
    assert len({process for process, _ in modules.ledger()}) > 1


# 002.2


async def test_002_2_health_is_204_while_the_broker_works_and_500_otherwise(both: Place) -> None:
    broker = numbers(both)
    app = AsgiFastStream(broker, asgi_routes=[("/health", make_ping_asgi(broker, timeout=5.0))])

    async with serving(app) as client:
        await until(lambda: broker.running, True)
        assert (await client.get("/health")).status_code == 204
        assert (await client.head("/health")).status_code == 204
        assert (await client.post("/health")).status_code == 405
        await broker.stop()
        assert (await client.get("/health")).status_code == 500


async def test_002_2_health_honours_its_timeout(place: Place, driver: str) -> None:
    """A server that accepts connections and says nothing; see tests/faststream/test_ping.py for one that falls silent."""

    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        nowhere = Place(URL.create("postgresql", "nobody", host="127.0.0.1", port=port, database="nowhere"), driver)
        broker = nowhere.broker()
        app = AsgiFastStream(broker, asgi_routes=[("/health", make_ping_asgi(broker, timeout=0.3))])
        async with serving(app) as client:
            await until(lambda: broker.running, True)
            async with asyncio.timeout(1.0):
                assert (await client.get("/health")).status_code == 500
        await nowhere.close()


async def test_002_2_health_fails_when_a_loop_is_dead(place: Place) -> None:
    broker = numbers(place)
    app = AsgiFastStream(broker, asgi_routes=[("/health", make_ping_asgi(broker, timeout=5.0))])

    async with serving(app) as client:
        await until(lambda: len(loops()), 1)
        assert (await client.get("/health")).status_code == 204
        loops()[0].cancel()
        await asyncio.gather(*loops(), return_exceptions=True)
        assert (await client.get("/health")).status_code == 500


def loops() -> list[asyncio.Task[object]]:
    """The tasks that claim messages, of which a running broker has one."""
    return [task for task in asyncio.all_tasks() if getattr(task.get_coro(), "__qualname__", "") == "Claimer.run"]


# 002.3


async def test_002_3_custom_endpoints_in_asgi_routes_and_mounted(place: Place) -> None:
    broker = numbers(place)

    @get
    async def liveness_ping(scope: object) -> AsgiResponse:
        return AsgiResponse(b"", status_code=200)

    async def foreign(scope: object, receive: object, send: object) -> None:
        await AsgiResponse(b"foreign", status_code=202)(scope, receive, send)  # type: ignore[arg-type]  # ASGI's own

    app = AsgiFastStream(broker, asgi_routes=[("/health", liveness_ping)])
    app.mount("/again", liveness_ping)
    app.mount("/foreign", foreign)

    async with serving(app) as client:
        answers = [await client.get(path) for path in ("/health", "/again", "/foreign", "/nowhere")]

    assert [answer.status_code for answer in answers] == [200, 200, 202, 404]
    assert answers[2].text == "foreign"


# 002.4


async def test_002_4_the_documentation_is_served(both: Place) -> None:
    got: list[int] = []
    broker = numbers(both, got)
    app = AsgiFastStream(broker, asyncapi_path="/docs")

    async with serving(app) as client:
        page, document = await client.get("/docs"), await client.get("/docs.json")
        await until(lambda: broker.running, True)
        tried = [await client.post("/docs/try", json=a_try(real=real)) for real in (True, False)]
        await until(lambda: 7 in got, True)

    assert (page.status_code, page.headers["content-type"]) == (200, "text/html; charset=utf-8")
    assert "AsyncAPI" in page.text
    assert (document.status_code, list(document.json()["channels"])) == (200, ["numbers:Handle"])
    assert [answer.status_code for answer in tried] == [200, 200]


def a_try(*, real: bool) -> dict[str, object]:
    """What the page's form sends."""
    return {"channelName": "numbers:Handle", "message": {"message": 7}, "options": {"sendToRealBroker": real}}


# 002.5


async def test_002_5_an_application_is_reused_as_asgi(both: Place) -> None:
    got: list[int] = []
    hooks: list[str] = []
    broker = numbers(both, got)

    @get
    async def liveness_ping(scope: object) -> AsgiResponse:
        return AsgiResponse(b"", status_code=200)

    app = FastStream(broker, after_startup=[lambda: hooks.append("started")]).as_asgi(
        asgi_routes=[
            ("/liveness", liveness_ping),
            ("/readiness", make_ping_asgi(broker, timeout=5.0)),
        ],
        asyncapi_path="/docs",
    )

    async with serving(app) as client:
        await until(lambda: hooks, ["started"])
        await broker.publish(1, "numbers")
        await until(lambda: got, [1])
        statuses = [(await client.get(path)).status_code for path in ("/liveness", "/readiness", "/docs", "/docs.json")]

    assert statuses == [200, 204, 200, 200]
    assert broker.running is False


# 002.6


@pytest.mark.parametrize("workers", [1, 2])
def test_002_6_the_command_line_takes_host_port_and_workers(lite: Program, workers: int) -> None:
    lite.write("main.py", REUSED)
    arguments = ["--host", "127.0.0.1", "--port", 0, "--workers", workers]
    server = lite.start("faststream", "run", "main:app", *arguments)
    address = server.serves()

    for path, status in (("/liveness", 200), ("/readiness", 204), ("/docs", 200), ("/docs.json", 200)):
        asked(address, path, status)
    lite.publish(1)
    seen(lite.handled, [1])

    ended(server)
    lite.settled()


def test_002_6_the_command_line_takes_a_unix_socket(lite: Program) -> None:
    """`--uds`; upstream reads `--bind` of the seed and ignores it."""
    lite.write("main.py", HEALTH)
    path = os.path.relpath(lite.folder / "uds")  # an absolute path may be too long for a socket
    server = lite.start("faststream", "run", "main:app", "--uds", "uds")
    server.says("Uvicorn running on unix socket uds")

    with httpx.Client(transport=httpx.HTTPTransport(uds=path)) as client:
        seen(lambda: client.get("http://outbox/health").status_code, 204)

    ended(server)


def ended(server: Process) -> None:
    server.send(SIGTERM)
    assert server.ends() in (0, -SIGTERM)
    assert "Traceback" not in server.log


# 002.7


async def test_002_7_a_foreign_host_starts_one_set_of_loops(both: Place) -> None:
    events: list[Event] = []
    got: list[int] = []
    broker = numbers(both, got, observers=[events.append])

    @asynccontextmanager
    async def start_broker(app):  # type: ignore[no-untyped-def]
        """Start the broker with the app."""
        async with broker:
            await broker.start()
            yield

    app = FastAPI(lifespan=start_broker)

    app.mount("/health", make_ping_asgi(broker, timeout=5.0))
    app.mount("/asyncapi", make_asyncapi_asgi(FastStream(broker).schema))

    async with serving(app) as client:
        assert len(loops()) == 1
        await broker.publish_batch(1, 2, 3, queue="numbers")
        await until(lambda: sorted(got), [1, 2, 3])
        answers = [await client.get(path, follow_redirects=True) for path in ("/health", "/health/", "/asyncapi")]

    assert [answer.status_code for answer in answers] == [204, 204, 200]
    assert "AsyncAPI" in answers[2].text
    assert [type(event) for event in events if isinstance(event, WorkerStarted | WorkerStopped)] == [
        WorkerStarted,
        WorkerStopped,
    ]
    assert loops() == []


# 002.8


def test_002_8_health_documentation_and_django_are_one_starlette_application(tmp_path: Path) -> None:
    site = Site.copied(tmp_path / "site", URL.create("sqlite", database=str(tmp_path / "site.db")))
    site.settings["ROOT_URLCONF"] = "urls"
    site.settings["ALLOWED_HOSTS"] = ["*"]
    site.write("urls.py", URLS)
    site.write("asgi.py", STARLETTE)
    assert site.manage("migrate", "-v", "0") == (0, "")
    server = site.serve()
    try:
        address = server.serves()
        for path, status in (("/health", 204), ("/asyncapi", 200), ("/nowhere", 404)):
            asked(address, path, status)
        assert httpx.post(f"{address}/orders/7", trust_env=False).json() == {"published": 1}
        seen(lambda: httpx.get(f"{address}/runs", trust_env=False).json(), {"handled": [7]})
        ended(server)
    finally:
        server.kill()


URLS = """
from django.db import transaction
from django.http import JsonResponse
from django.urls import path

from outbox_django import publish
from shop.models import Run


@transaction.atomic
def order(request, number):
    return JsonResponse({"published": publish({"number": number}, "orders")})


def runs(request):
    return JsonResponse({"handled": list(Run.objects.filter(ended=True).values_list("number", flat=True))})


urlpatterns = [path("orders/<int:number>", order), path("runs", runs)]
"""

STARLETTE = """
from contextlib import asynccontextmanager

from django.core.asgi import get_asgi_application

django = get_asgi_application()

from faststream import FastStream
from faststream.asgi import make_asyncapi_asgi, make_ping_asgi
from starlette.applications import Starlette
from starlette.routing import Mount, Route

from outbox_django.handlers import load_handlers

broker = load_handlers()


@asynccontextmanager
async def start_broker(app):
    async with broker:
        await broker.start()
        yield


application = Starlette(
    routes=[
        Route("/health", make_ping_asgi(broker, timeout=5.0)),
        Route("/asyncapi", make_asyncapi_asgi(FastStream(broker).schema)),
        Mount("/", django),
    ],
    lifespan=start_broker,
)
"""
