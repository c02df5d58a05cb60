"""A password is in no record, no error, no repr and no document, through a whole life with an outage, at DEBUG."""

import gc
import json
import logging
import traceback
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from faststream.specification import AsyncAPI
from sqlalchemy import URL
from sqlalchemy.ext.asyncio import create_async_engine

from outbox_core.errors import OutboxError
from outbox_django.faststream import OutboxBroker as DjangoBroker
from outbox_django.store import DjangoStore
from outbox_fastapi import OutboxRouter
from outbox_sqlalchemy import NoRetry, OutboxBroker
from tests.databases import backends, execute, with_driver
from tests.django_databases import added_database
from tests.places import Place, running, until

CANARY = "canary-7f3e-password"
USER = "canary-user"


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture) -> Callable[[], str]:
    """Everything that was logged by anybody, with tracebacks."""
    caplog.set_level(logging.DEBUG)
    for name in ("outbox", "sqlalchemy", "asyncpg", "psycopg", "faststream", "django"):
        caplog.set_level(logging.DEBUG, logger=name)
    formatter = logging.Formatter("%(name)s %(message)s")
    return lambda: "\n".join(formatter.format(record) for record in caplog.records)


def secret(url: URL) -> URL:
    """The URL with a password; the test's server asks for none."""
    return url.set(password=CANARY)


def told(error: BaseException) -> str:
    return "".join(traceback.format_exception(error)) + repr(error)


async def test_a_life_with_an_outage_says_nothing(postgres: Place, driver: str, said: Callable[[], str]) -> None:
    engine = create_async_engine(with_driver(secret(postgres.url), driver), echo=False)
    broker = OutboxBroker(
        engine,
        outbox_table=postgres.tables,
        log_level=logging.DEBUG,
        listen_dsn=with_driver(secret(postgres.url), driver),
        observers=[lambda event: logging.getLogger("outbox").debug("%r", event)],
    )
    seen: list[str] = []

    @broker.subscriber("orders", retry_strategy=NoRetry())
    async def handle(body: str) -> None:
        seen.append(body)
        if body == "bad":
            raise ValueError("no")

    async with running(broker, 30):
        await broker.publish_batch("good", "bad", queue="orders")
        await until(lambda: len(seen), 2)
        for pid in backends(postgres.url):
            execute(postgres.url, "SELECT pg_terminate_backend(%s)", pid)
        await engine.dispose()
        await postgres.broker().publish("after", "orders")
        await until(lambda: len(seen), 3, patience=20)
        texts = [repr(broker), repr(broker.store), str(broker.store.name), repr(vars(broker.store)["tables"])]
    await engine.dispose()
    gc.collect()

    assert "after" in seen
    assert CANARY not in said() + "".join(texts)
    assert "cut" in said() or "lost" in said() or "connection" in said()


async def test_errors_say_nothing(driver: str, said: Callable[[], str]) -> None:
    gone = URL.create("postgresql", USER, CANARY, "127.0.0.1", 1, "shop")
    engine = create_async_engine(with_driver(gone, driver))
    broker = OutboxBroker(engine, log_level=logging.DEBUG)
    broker.subscriber("orders")(lambda body: None)

    texts = []
    for attempt in (
        broker.start,
        broker.stats,
        lambda: broker.publish("x", "orders"),
        lambda: broker.purge_dead_letters(timedelta(1)),
    ):
        with pytest.raises(OutboxError) as raised:
            await attempt()
        texts.append(told(raised.value))
    await broker.stop()
    await engine.dispose()

    assert CANARY not in said() + "".join(texts)


async def test_django_says_nothing(said: Callable[[], str]) -> None:
    gone = URL.create("postgresql", USER, CANARY, "127.0.0.1", 1, "shop")
    with added_database("gone", gone):
        broker = DjangoBroker("gone")
        broker.subscriber("orders")(lambda body: None)
        with pytest.raises(OutboxError) as raised:
            await broker.start()
        texts = [told(raised.value), repr(broker), repr(DjangoStore("gone")), DjangoStore("gone").name]
        texts.append(json.dumps(AsyncAPI(broker).to_specification().to_jsonable()))
        await broker.stop()

    assert CANARY not in said() + "".join(texts)
    assert USER not in texts[-1]


@pytest.mark.parametrize("made", ["broker", "router"])
async def test_the_document_names_no_user_host_or_database(made: str) -> None:
    url = URL.create("postgresql", USER, CANARY, "canary-host", 5433, "canary-database")
    engine = create_async_engine(with_driver(url, "asyncpg"))
    source: Any = OutboxBroker(engine) if made == "broker" else OutboxRouter(engine)
    source.subscriber("orders")(lambda body: None)
    document = AsyncAPI(source) if made == "broker" else source.schema
    text = json.dumps(document.to_specification().to_jsonable()) + repr(source)
    await engine.dispose()

    assert "canary" not in text


async def test_a_url_of_the_users_own_loses_its_password() -> None:
    broker = OutboxBroker(specification_url=f"postgresql://{USER}:{CANARY}@database/shop?password={CANARY}")

    text = json.dumps(AsyncAPI(broker).to_specification().to_jsonable())

    assert "canary" not in text
    assert "database" in text
