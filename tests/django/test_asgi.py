"""The site, its worker, health and documentation as one ASGI application, in a server's process."""

from collections.abc import Iterator
from signal import SIGTERM

import httpx
import pytest

from tests.django.sites import Site
from tests.pages import ROOT, files_of
from tests.processes import Process, until

ASGI = files_of(ROOT / "docs/how-to/django-asgi.md")["asgi.py"]

URLS = """
import json

from django.db import transaction
from django.http import JsonResponse
from django.urls import path

from outbox_django import publish


@transaction.atomic
def order(request):
    return JsonResponse({"published": publish(json.loads(request.body), "orders") is not None})


async def hello(request):
    return JsonResponse({"hello": request.path})


urlpatterns = [path("orders", order), path("hello", hello)]
"""

EXITS = """
import sys

from outbox_django import broker


@broker.subscriber("orders")
def leave(order: dict) -> None:
    sys.exit()
"""


@pytest.fixture(params=["site", "lite"])
def served(request: pytest.FixtureRequest) -> Site:
    """A site with pages, on each database in turn."""
    return with_pages(request.getfixturevalue(request.param))


@pytest.fixture
def served_lite(lite: Site) -> Site:
    """A site with pages, on SQLite."""
    return with_pages(lite)


def with_pages(site: Site) -> Site:
    site.settings |= {"ROOT_URLCONF": "urls", "ALLOWED_HOSTS": ["*"]}
    site.write("urls.py", URLS)
    site.write("asgi.py", ASGI)
    return site


@pytest.fixture
def client() -> Iterator[httpx.Client]:
    with httpx.Client(trust_env=False) as client:
        yield client


def healthy(client: httpx.Client, server: Process) -> str:
    """The address of *server*, once its worker has started."""
    address = server.serves()
    until(lambda: client.get(f"{address}/health").status_code, 204)
    return address


def test_one_application_serves_the_site_and_handles_what_it_publishes(served: Site, client: httpx.Client) -> None:
    address = healthy(client, served.serve())

    assert client.get(f"{address}/hello").json() == {"hello": "/hello"}
    assert client.get(f"{address}/nowhere").status_code == 404
    assert "AsyncAPI" in client.get(f"{address}/asyncapi").text
    assert client.post(f"{address}/asyncapi/try", json={}).status_code == 404
    document = client.get(f"{address}/asyncapi.json").json()
    assert sorted(channel["address"] for channel in document["channels"].values()) == ["mails", "orders"]
    for number in range(5):
        assert client.post(f"{address}/orders", json={"number": number}).json() == {"published": True}
    until(served.handled, [0, 1, 2, 3, 4])
    until(served.messages, [])


def test_sigterm_lets_running_handlers_end_and_gives_back_the_others(served: Site, client: httpx.Client) -> None:
    server = served.serve()
    healthy(client, server)
    gate = served.folder / "gate"
    served.orders(*range(10), gate=str(gate))
    until(lambda: len(served.begun()), 4)

    server.send(SIGTERM)
    server.says("Waiting for application shutdown")
    until(served.leased, 4)
    gate.touch()

    assert server.ends() in (0, -SIGTERM)  # uvicorn raises the signal again when it is done
    assert len(served.handled()) == 4
    assert (len(served.messages()), served.leased()) == (6, 0)


def test_faststream_runs_it_with_several_workers(site: Site, client: httpx.Client) -> None:
    server = with_pages(site).serve("faststream", "run", "asgi:application", "--port", 0, "--workers", 2)
    server.says("Application startup complete", times=2)
    healthy(client, server)

    site.orders(*range(100), seconds=0.01)
    until(site.handled, list(range(100)))
    server.send(SIGTERM)

    assert server.ends() == 0
    assert len({run.process for run in site.runs()}) == 2
    assert site.begun() == list(range(100))


def test_faststream_publishes_through_it(served: Site) -> None:
    command = ["faststream", "publish", "asgi:application", '{"number": 7}', "--queue", "orders", "--priority", "5"]

    refused, asked_for = served.serve(*command), served.serve(*command, "--standalone")

    assert (refused.ends(), asked_for.ends()) == (1, 0)
    assert "NotInTransaction" in refused.log
    assert served.messages() == ["orders"]
    assert served.runs() == []


def test_sys_exit_in_a_handler_stops_the_server(served_lite: Site, client: httpx.Client) -> None:
    served_lite.write("shop/outbox.py", EXITS)
    server = served_lite.serve()
    healthy(client, server)

    served_lite.orders(1)

    assert server.ends() in (0, -SIGTERM)
    assert "a handler raised SystemExit; stopping this process" in server.log
    assert (len(served_lite.messages()), served_lite.leased()) == (1, 0)


def test_a_database_that_cannot_be_reached_leaves_the_site_and_fails_health(
    served_lite: Site, client: httpx.Client
) -> None:
    served_lite.settings["DATABASES"]["default"] |= {"NAME": str(served_lite.folder / "nowhere" / "site.db")}
    server = served_lite.serve()
    server.says("DatabaseUnavailable: cannot use sqlite3://")
    address = server.serves()

    assert client.get(f"{address}/health").status_code == 500
    assert client.get(f"{address}/hello").status_code == 200


def test_a_site_of_ones_own_gets_what_has_no_route(served_lite: Site, client: httpx.Client) -> None:
    mine = """

class Site:
    async def __call__(self, scope, receive, send):
        await send({"type": "http.response.start", "status": 418, "headers": []})
        await send({"type": "http.response.body", "body": scope["path"].encode()})


application = OutboxASGI(Site(), health_path="/health")
"""
    served_lite.write("asgi.py", ASGI + mine)
    address = healthy(client, served_lite.serve())

    answer = client.get(f"{address}/anything")

    assert (answer.status_code, answer.text) == (418, "/anything")


def test_the_timeout_of_health_and_try_it_out_can_be_chosen(served_lite: Site, client: httpx.Client) -> None:
    chosen = """
from faststream.asgi import AsyncAPIRoute, make_ping_asgi

application = OutboxASGI(asyncapi_path=AsyncAPIRoute("/docs"))
application.mount("/health", make_ping_asgi(application.broker, timeout=1.0))
"""
    served_lite.write("asgi.py", ASGI + chosen)
    address = healthy(client, served_lite.serve())

    assert client.get(f"{address}/asyncapi").status_code == 404
    assert client.post(f"{address}/docs/try", json={}).status_code == 400


def test_a_project_without_handlers_is_told_so(served_lite: Site, client: httpx.Client) -> None:
    served_lite.write("shop/outbox.py", "")
    server = served_lite.serve()
    healthy(client, server)

    assert "there are no handlers in any module 'outbox' of an installed app; this process only publishes" in server.log
