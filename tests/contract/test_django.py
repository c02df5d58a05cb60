"""What is special about Django's connections: aliases, threads, and settings that are meant for requests."""

import asyncio
import socket
import threading
from collections.abc import AsyncIterator
from contextlib import suppress

import pytest
from django.db import connections
from sqlalchemy import URL, make_url

from outbox_core.envelope import compose
from outbox_core.errors import DatabaseUnavailable, WrongDatabase
from outbox_core.schema import Tables
from outbox_core.sql import Statement
from outbox_django.connections import own_wrapper
from outbox_django.store import DjangoStore
from tests.contract.harness import Outbox, SqlOutbox, bodies, claim, until
from tests.databases import execute
from tests.django_databases import added_database, close_connections

every_django = pytest.mark.parametrize("outbox", ["django-sqlite", "django-postgresql"], indirect=True)
django_on_postgresql = pytest.mark.parametrize("outbox", ["django-postgresql"], indirect=True)


@pytest.fixture
async def nowhere() -> AsyncIterator[DjangoStore]:
    """A store on a server that does not run."""
    with added_database("nowhere", make_url("postgresql://app:s3cret@127.0.0.1:1/shop")) as alias:
        yield DjangoStore(alias, Tables())
        await close_connections(alias)


@every_django
async def test_an_alias_is_a_session(outbox: Outbox) -> None:
    await outbox.store.insert([compose("a", "orders")], "outbox")

    assert bodies(await outbox.pending()) == ["a"]


@every_django
async def test_an_alias_that_is_not_configured_is_refused(outbox: Outbox) -> None:
    expected = r"there is no database 'nowhere' in settings\.DATABASES; known are 'default', 'outbox'"
    with pytest.raises(WrongDatabase, match=expected):
        await outbox.store.insert([compose("a", "orders")], "nowhere")


@every_django
async def test_a_transaction_has_a_thread_and_a_connection_of_its_own(outbox: Outbox) -> None:
    async with outbox.transaction() as one:
        assert threads("outbox-lane") == 1
        await outbox.store.insert([compose("one", "orders")], one)
        assert await outbox.pending() == []

    await until(lambda: threads("outbox-lane") == 0)


def threads(prefix: str) -> int:
    return sum(thread.name.startswith(prefix) for thread in threading.enumerate())


async def test_a_server_that_does_not_run_is_unavailable(nowhere: DjangoStore) -> None:
    for operation in (nowhere.stats, nowhere.connect, nowhere.differences):
        with pytest.raises(DatabaseUnavailable) as refused:
            await operation()
        assert str(refused.value).startswith("cannot use postgresql://127.0.0.1:1/shop/outbox: ")
        assert "s3cret" not in str(refused.value)


async def test_a_server_that_is_silent_keeps_no_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("outbox_django.connections.DEADLINE", 0.5)
    monkeypatch.setattr("outbox_django.connections.CLOSE_DEADLINE", 0.1)
    before = threads("outbox-connection")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = make_url(f"postgresql://app@127.0.0.1:{silent.getsockname()[1]}/shop")
        with added_database("silent", url, connect_timeout=1) as alias:
            async with asyncio.timeout(10):
                with pytest.raises(DatabaseUnavailable):
                    await DjangoStore(alias, Tables()).connect()
            await until(lambda: threads("outbox-connection") == before, within=5)


@pytest.mark.parametrize(("options", "seconds"), [({}, 10), ({"connect_timeout": 3}, 3)])
def test_no_connection_is_waited_for_without_end(options: dict[str, object], seconds: int) -> None:
    with added_database("patient", make_url("postgresql://127.0.0.1/shop"), **options) as alias:
        assert own_wrapper(alias).get_connection_params()["connect_timeout"] == seconds


@django_on_postgresql
async def test_a_link_is_planned_once_for_each_statement(outbox: SqlOutbox) -> None:
    executor = await outbox.store.open()
    for _ in range(6):
        await executor.execute(Statement("SELECT CAST(:x AS int)", {"x": 1}))

    rows = await executor.execute(Statement("SELECT statement FROM pg_prepared_statements", {}))

    assert [row[0] for row in rows] == ["SELECT CAST($1 AS int)"]
    await executor.close()


@django_on_postgresql
async def test_closing_a_link_ends_what_waits_on_it(outbox: SqlOutbox, shared_database: URL) -> None:
    executor = await outbox.store.open()
    waiting = asyncio.create_task(executor.execute(Statement("SELECT pg_sleep(60)", {})))
    await until(lambda: running(shared_database, "SELECT pg_sleep(60)"))

    async with asyncio.timeout(10):
        await executor.close()

    with pytest.raises(Exception, match=r"connection|closed"):
        await waiting


@django_on_postgresql
async def test_an_interrupted_link_leaves_no_thread_behind(outbox: SqlOutbox, shared_database: URL) -> None:
    before = threads("outbox-connection")
    executor = await outbox.store.open()
    waiting = asyncio.create_task(executor.execute(Statement("SELECT pg_sleep(60)", {})))
    await until(lambda: running(shared_database, "SELECT pg_sleep(60)"))

    waiting.cancel()
    with suppress(asyncio.CancelledError):
        await waiting
    await executor.close()

    await until(lambda: threads("outbox-connection") == before)


async def running(database: URL, statement: str) -> bool:
    rows = await asyncio.to_thread(execute, database, "SELECT query FROM pg_stat_activity WHERE state = 'active'")
    return (statement,) in rows


@django_on_postgresql
@pytest.mark.parametrize(
    "options", [{"isolation_level": 3}, {"isolation_level": 4}, {"pool": {"min_size": 1, "max_size": 1}}]
)
async def test_options_that_are_meant_for_requests_are_not_for_links(
    outbox: SqlOutbox, monkeypatch: pytest.MonkeyPatch, options: dict[str, object]
) -> None:
    given = {**connections.settings["outbox"], "OPTIONS": options}
    monkeypatch.setitem(connections.settings, "outbox", given)

    opened = []
    for _ in range(2):  # of a pool of one
        executor = await outbox.store.open()
        opened.append(executor)
        assert list(await executor.execute(Statement("SHOW transaction_isolation", {}))) == [("read committed",)]
    for executor in opened:
        await executor.close()

    assert given["OPTIONS"] == options


@django_on_postgresql
async def test_the_options_of_the_database_are_for_links_too(
    outbox: SqlOutbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"options": "-c application_name=shop", "prepare_threshold": None}
    monkeypatch.setitem(connections.settings["outbox"], "OPTIONS", options)
    executor = await outbox.store.open()
    for _ in range(6):
        assert list(await executor.execute(Statement("SHOW application_name", {}))) == [("shop",)]

    assert list(await executor.execute(Statement("SELECT statement FROM pg_prepared_statements", {}))) == []
    await executor.close()


@django_on_postgresql
async def test_a_replaced_link_works(outbox: SqlOutbox, shared_database: URL) -> None:
    await outbox.publish(compose("a", "orders"))
    link = await outbox.link()
    (pid,) = next(iter(await link._executor.execute(Statement("SELECT pg_backend_pid()", {}))))  # type: ignore[attr-defined]
    await asyncio.to_thread(execute, shared_database, f"SELECT pg_terminate_backend({pid})")

    with pytest.raises(Exception, match=r"terminat|closed|lost"):
        await claim(link)
    await link.close()

    assert bodies(await claim(await outbox.link())) == ["a"]
