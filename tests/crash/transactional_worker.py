"""A worker process with a transactional handler, as each adapter has it.

    python -m tests.crash.transactional_worker '{"url": …, "adapter": …, …}'

See `Orders`. It knows nothing of how it will end.
"""

import asyncio
import json
import logging
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from sqlalchemy import MetaData, make_url, text
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine

from tests.crash.ledger import Ledger

INSERT = "INSERT INTO effects (n, attempt) VALUES (:n, :attempt)"


@dataclass(frozen=True, kw_only=True)
class Orders:
    """`adapter`: sqlalchemy, middleware, fastapi or django."""

    url: str
    ledger: str
    adapter: str
    options: dict[str, Any] = field(default_factory=dict)


def on_sqlalchemy(orders: Orders) -> AbstractAsyncContextManager[object]:
    from outbox_sqlalchemy import (
        OutboxBroker,
        OutboxMessage,
        OutboxResponse,
        OutboxSession,
        TransactionMiddleware,
        make_outbox_tables,
    )

    engine = create_async_engine(orders.url)
    middlewares = [TransactionMiddleware(async_sessionmaker(engine))] if orders.adapter == "middleware" else []
    broker = OutboxBroker(engine, outbox_table=make_outbox_tables(MetaData()), middlewares=middlewares, logger=None)
    ledger = Ledger(Path(orders.ledger))
    options = orders.options if middlewares else {"transactional": True, **orders.options}

    @broker.publisher("replies")
    @broker.subscriber("orders", **options)
    async def handle(n: int, message: OutboxMessage, session: OutboxSession) -> OutboxResponse:
        run = ledger.begin(n, message.deliveries)
        await session.execute(text(INSERT), {"n": n, "attempt": message.attempt})
        await broker.publish(n, "mails")
        ledger.end(run)
        return OutboxResponse(n, queue="chosen")

    return started(broker)


def on_fastapi(orders: Orders) -> AbstractAsyncContextManager[object]:
    from fastapi import Depends, FastAPI

    from outbox_fastapi import OutboxBroker, OutboxMessage, OutboxResponse, OutboxRouter
    from outbox_sqlalchemy import make_outbox_tables

    engine = create_async_engine(orders.url)
    new_session = async_sessionmaker(engine)
    router = OutboxRouter(engine, outbox_table=make_outbox_tables(MetaData()), logger=None)
    ledger = Ledger(Path(orders.ledger))

    async def get_session() -> AsyncIterator[AsyncSession]:
        async with new_session.begin() as session:
            yield session

    @router.publisher("replies")
    @router.subscriber("orders", transactional=True, **orders.options)
    async def handle(
        n: int, message: OutboxMessage, broker: OutboxBroker, session: Annotated[AsyncSession, Depends(get_session)]
    ) -> OutboxResponse:
        run = ledger.begin(n, message.deliveries)
        await session.execute(text(INSERT), {"n": n, "attempt": message.attempt})
        await broker.publish(n, "mails")
        ledger.end(run)
        return OutboxResponse(n, queue="chosen", session=session)

    app = FastAPI()
    app.include_router(router)
    return app.router.lifespan_context(app)


def on_django(orders: Orders) -> AbstractAsyncContextManager[object]:
    import django
    from django.conf import settings

    url = make_url(orders.url)
    default = {"ENGINE": "django.db.backends.postgresql", "NAME": url.database, "HOST": url.host, "PORT": url.port}
    default |= {"USER": url.username, "PASSWORD": url.password or ""}
    settings.configure(INSTALLED_APPS=["outbox_django"], DATABASES={"default": default}, USE_TZ=True)
    django.setup()

    from django.db import connection

    from outbox_django import OutboxBroker, OutboxMessage, OutboxResponse, publish

    broker = OutboxBroker(logger=None)
    ledger = Ledger(Path(orders.ledger))

    @broker.publisher("replies")
    @broker.subscriber("orders", transactional=True, **orders.options)
    def handle(n: int, message: OutboxMessage) -> OutboxResponse:
        run = ledger.begin(n, message.deliveries)
        with connection.cursor() as cursor:
            cursor.execute(INSERT.replace(":n, :attempt", "%s, %s"), [n, message.attempt])
        publish(n, "mails")
        ledger.end(run)
        return OutboxResponse(n, queue="chosen")

    return started(broker)


@asynccontextmanager
async def started(broker: Any) -> AsyncIterator[None]:
    async with broker:
        await broker.start()
        yield


ADAPTERS: dict[str, Callable[[Orders], AbstractAsyncContextManager[object]]] = {
    "sqlalchemy": on_sqlalchemy,
    "middleware": on_sqlalchemy,
    "fastapi": on_fastapi,
    "django": on_django,
}


async def work(application: AbstractAsyncContextManager[object], until: Awaitable[object]) -> None:
    async with application:
        logging.info("consuming")
        await until


def main() -> None:
    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s", level=logging.INFO)
    orders = Orders(**json.loads(sys.argv[1]))
    application = ADAPTERS[orders.adapter](orders)

    async def forever() -> None:
        await work(application, asyncio.Event().wait())

    with suppress(KeyboardInterrupt):
        asyncio.run(forever())


if __name__ == "__main__":
    main()
