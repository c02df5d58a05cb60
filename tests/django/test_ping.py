"""A health check of a Django broker, whose database falls silent."""

import asyncio
from collections.abc import Iterator

import pytest
from sqlalchemy import URL

from outbox_django import OutboxBroker
from tests.databases import OwnServer, backends, frozen
from tests.django.conftest import leading, migrate
from tests.django.running import consuming, until
from tests.places import answered_within

ALIAS = "frozen"


@pytest.fixture
def own_database() -> Iterator[URL]:
    """On a server whose processes a test may stop."""
    with OwnServer.running() as server, server.database() as url:
        migrate(url)
        with leading(ALIAS, url):
            yield url


def test_a_worker_is_unhealthy_in_time_and_comes_back(own_database: URL) -> None:
    broker = OutboxBroker(ALIAS)

    @broker.subscriber("orders")
    def handle(body: int) -> None: ...

    async def run() -> None:
        async with consuming(broker):
            assert await broker.ping(5.0) is True
            with frozen(*backends(own_database)):
                for timeout in (0.3, 1.0):
                    with answered_within(timeout + 0.3):
                        assert await broker.ping(timeout) is False
                await until(lambda: broker.ping(0.5))  # on new connections, after the old ones' deadline

    asyncio.run(run())


def test_a_broker_without_handlers_is_asked_too(own_database: URL) -> None:
    broker = OutboxBroker(ALIAS)

    async def run() -> None:
        async with consuming(broker):
            assert await broker.ping(5.0) is True
            broker.use_database("lite")  # which leads nowhere here
            assert await broker.ping(5.0) is False

    asyncio.run(run())
