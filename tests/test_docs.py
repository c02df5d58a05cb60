"""The documentation holds: its examples run, its links lead somewhere, its references are complete."""

import ast
import dataclasses
import inspect
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from django.core.management.base import DjangoHelpFormatter
from django.dispatch import Signal
from sqlalchemy import URL

from outbox_core import events, schema
from outbox_core.faststream.response import PublishOptions
from outbox_core.options import ConsumerOptions
from outbox_django import signals
from outbox_django.management.commands import outbox_worker
from outbox_django.settings import OutboxSettings
from outbox_fastapi import OutboxRouter
from outbox_fastapi import errors as fastapi_errors
from outbox_fastapi.responses import ResponseOptions
from outbox_sqlalchemy import OutboxBroker
from tests.pages import PAGES, ROOT, examples, files_of
from tests.processes import Process

REFERENCE = ROOT / "docs" / "reference"


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


def run(*arguments: str, timeout: float) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=timeout, check=False
    )


def documented(page: Path) -> set[str]:
    """The names in the first cells of the page's tables."""
    return set(re.findall(r"^\| `([^`]+)`", page.read_text(), re.MULTILINE))


@pytest.mark.parametrize(
    "page", [page for page in PAGES if any(one.mark == "run" for one in examples(page))], ids=name_of
)
def test_the_programs_of_a_page_run(page: Path) -> None:
    done = run("-m", "tests.pages", str(page), timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_python_block_of_a_page_compiles(page: Path) -> None:
    for example in examples(page):
        compile(example.code, f"{page}:{example.line}", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_link_within_the_repository_leads_to_a_file(page: Path) -> None:
    links = re.findall(r"\]\((?!https?:|#)([^)#]+)", page.read_text())
    assert [link for link in links if not (page.parent / link).exists()] == []


def test_the_worker_of_the_tutorial_runs_on_the_command_line(tmp_path: Path) -> None:
    for name, code in files_of(ROOT / "docs" / "tutorial.md").items():
        (tmp_path / name).write_text(code)
    subprocess.run([sys.executable, "shop.py"], cwd=tmp_path, timeout=60, check=True, stdout=subprocess.DEVNULL)
    worker = subprocess.Popen(
        [sys.executable, "-u", "-m", "faststream", "run", "worker:app"],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    with worker, ending(worker):
        assert worker.stdout is not None
        assert "shipped mug\n" in iter(worker.stdout.readline, "")
        worker.terminate()
        assert worker.wait(timeout=30) == 0


def test_the_application_of_the_page_on_asgi_answers_and_handles(tmp_path: Path) -> None:
    code = files_of(ROOT / "docs/how-to/faststream-asgi.md")["main.py"]
    (tmp_path / "main.py").write_text(code)
    (tmp_path / "tables.py").write_text(
        "from main import metadata\nfrom sqlalchemy import create_engine\n"
        'metadata.create_all(create_engine("sqlite:///shop.db"))\n'
    )
    for module in (["tables"], ["faststream", "publish", "main:app", '{"id": 7}', "--queue", "orders"]):
        subprocess.run([sys.executable, "-m", *module], cwd=tmp_path, timeout=60, check=True)

    command = [sys.executable, "-u", "-m", "faststream", "run", "main:app", "--port", "0"]
    server = Process.begin(command, tmp_path, tmp_path / "log.txt", {})
    try:
        server.says("shipping order 7")
        address = server.serves()
        paths = ("/alive", "/health", "/docs", "/docs.json")
        assert [httpx.get(address + path, trust_env=False).status_code for path in paths] == [200, 204, 200, 200]
    finally:
        server.kill()


def test_the_tutorial_of_django_can_be_followed(tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "DJANGO_SETTINGS_MODULE"}

    def manage(*arguments: str) -> str:
        command = [sys.executable, "-W", "error", "manage.py", *arguments]
        done = subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def place(item: str) -> None:
        manage("shell", "-c", f"from orders.services import place_order; place_order({item!r})")

    for command in (["startproject", "shop", "."], ["startapp", "orders"]):
        django = [sys.executable, "-m", "django", *command]
        subprocess.run(django, cwd=tmp_path, env=environment, timeout=60, check=True)
    for name, code in files_of(ROOT / "docs" / "tutorial-django.md").items():
        with (tmp_path / name).open("a") as file:
            file.write(code)
    manage("makemigrations", "orders")
    manage("migrate")

    place("mug")
    assert "shipped mug\n" in manage("outbox_worker", "--drain")
    place("vase")
    for _ in range(3):  # attempts, each due a little later
        manage("outbox_worker", "--drain")
        time.sleep(0.2)
    assert json.loads(manage("outbox_stats", "--json"))["queues"]["orders"]["dead"] == 1
    assert manage("outbox_redrive", "--queue", "orders") == "1 dead letter put back\n"
    manage("test")


def test_the_tutorial_of_fastapi_can_be_followed(tmp_path: Path) -> None:
    for name, code in files_of(ROOT / "docs" / "tutorial-fastapi.md").items():
        (tmp_path / name).write_text(code)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        host, port = listening.getsockname()
        client = httpx.Client(base_url=f"http://{host}:{port}", trust_env=False, timeout=30)

        def serve() -> subprocess.Popen[str]:
            return subprocess.Popen(
                [sys.executable, "-u", "-m", "uvicorn", "shop:app", "--fd", str(listening.fileno())],
                cwd=tmp_path,
                pass_fds=[listening.fileno()],
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )

        def place(item: str) -> int:
            return client.post("/orders", json={"item": item}).status_code

        with client:
            with serve() as server, ending(server):
                assert (place("mug"), place("unicorn")) == (201, 404)
                assert prints(server, "shipping mug")
                assert client.get("/orders/2").status_code == 404
                assert place("piano") == 201
                assert prints(server, "carrying the piano down the stairs")
                server.kill()
            with serve() as server, ending(server):
                assert prints(server, "shipping piano")
                assert place("vase") == 201
                assert prints(server, "RuntimeError: attempt 3: the vase is broken")
                for _ in range(20):  # the third failure is still being settled, perhaps
                    redrive = [sys.executable, "redrive.py"]
                    told = subprocess.run(redrive, cwd=tmp_path, timeout=60, check=True, capture_output=True, text=True)
                    if told.stdout != "0 dead, 0 put back\n":
                        break
                assert told.stdout == "1 dead, 1 put back\n"
                server.terminate()
                assert server.wait(timeout=30) == -signal.SIGTERM


def prints(process: subprocess.Popen[str], line: str) -> bool:
    assert process.stdout is not None
    return any(line == printed.rstrip("\n") for printed in iter(process.stdout.readline, ""))


@pytest.mark.parametrize("demo", ["orders", "shop"])
def test_the_demo_loses_nothing(demo: str) -> None:
    done = run(f"docs/examples/{demo}/demo.py", "--orders", "100", timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"^  lost +0$", done.stdout, re.MULTILINE)


def test_both_directions_of_the_shop_work_on_postgresql(server: URL) -> None:
    dsn = server.render_as_string(hide_password=False)
    done = run("docs/examples/shop/demo.py", "--dsn", dsn, "--orders", "100", timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_options_page_names_every_option_of_a_subscriber() -> None:
    assert {field.name for field in dataclasses.fields(ConsumerOptions)} <= documented(REFERENCE / "options.md")


@pytest.mark.parametrize(
    "method", ["subscriber", "publisher", "publish", "publish_batch", "redrive", "purge_dead_letters"]
)
def test_the_options_page_names_every_argument_of(method: str) -> None:
    assert arguments(getattr(OutboxBroker, method)) <= documented(REFERENCE / "options.md")


def test_the_options_page_names_every_argument_of_the_broker() -> None:
    every = arguments(OutboxBroker.__init__) | arguments(OutboxBroker.__base__.__init__)
    assert every - {"store"} <= documented(REFERENCE / "options.md")


def test_the_options_page_names_every_option_of_a_publish() -> None:
    assert set(PublishOptions.__annotations__) <= documented(REFERENCE / "options.md")


def test_the_django_page_names_every_setting() -> None:
    settings = {field.name.upper() for field in dataclasses.fields(OutboxSettings)}
    assert settings <= documented(REFERENCE / "django.md")


def test_the_django_page_names_every_command() -> None:
    commands = {path.stem for path in (ROOT / "outbox_django/management/commands").glob("outbox_*.py")}
    assert commands <= documented(REFERENCE / "django.md")


def test_the_django_page_names_every_check() -> None:
    checks = set(re.findall(r"outbox\.[EWI]\d{3}", (ROOT / "outbox_django/checks.py").read_text()))
    assert checks <= documented(REFERENCE / "django.md")


def test_the_django_page_names_every_signal() -> None:
    assert {name for name, value in vars(signals).items() if isinstance(value, Signal)} <= documented(
        REFERENCE / "django.md"
    )


def test_the_fastapi_page_names_every_argument_of_the_router_and_its_subscriber() -> None:
    every = arguments(OutboxRouter.__init__) | set(ResponseOptions.__annotations__)
    assert every <= documented(REFERENCE / "fastapi.md")


def test_the_fastapi_page_names_every_error() -> None:
    errors = {
        name
        for name, value in vars(fastapi_errors).items()
        if getattr(value, "__module__", "") == fastapi_errors.__name__
    }
    assert errors <= documented(REFERENCE / "fastapi.md")


def test_the_page_on_workers_names_every_option_of_the_command() -> None:
    parser = outbox_worker.Command().create_parser("manage.py", "outbox_worker")
    common = set(DjangoHelpFormatter.show_last)
    options = {name for action in parser._actions for name in action.option_strings} - common
    shown = {name.partition(" ")[0] for name in documented(ROOT / "docs/how-to/django-workers.md")}
    assert options - {"-h", "--help", "-v", "--force-color"} <= shown


def test_the_events_page_names_every_event() -> None:
    assert {event.__name__ for event in events.Event.__args__} <= documented(REFERENCE / "events.md")


def test_the_schema_page_names_every_column() -> None:
    specs = (schema.OUTBOX, schema.DEAD_LETTERS, schema.ARCHIVE, schema.QUEUES, schema.INBOX)
    assert {name for spec in specs for name in spec.names} <= documented(REFERENCE / "schema.md")


@contextmanager
def ending(process: subprocess.Popen[str]) -> Iterator[None]:
    """Kill *process* if it is not done in a minute, so that reading its output comes to an end."""
    deadline = threading.Timer(60, process.kill)
    deadline.start()
    try:
        yield
    finally:
        deadline.cancel()
        process.kill()


def arguments(function: object) -> set[str]:
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return {p.name for p in inspect.signature(function).parameters.values() if p.kind in kinds} - {"self"}
