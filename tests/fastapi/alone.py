"""The quickstart of seed 003, run by CI where nothing but the `[fastapi]` extra and a driver is installed."""

import asyncio
import json
import tempfile
from pathlib import Path
from typing import Any

import fastapi
from pydantic import BaseModel
from sqlalchemy import select
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

SEED = """\
from collections.abc import AsyncIterator

from fastapi import Depends, FastAPI
from sqlalchemy import MetaData
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine

from faststream_outbox import make_outbox_table
from faststream_outbox.fastapi import OutboxBroker, OutboxRouter


metadata = MetaData()
outbox_table = make_outbox_table(metadata, table_name="outbox")
engine = create_async_engine("postgresql+asyncpg://localhost/app")
session_factory = async_sessionmaker(engine, expire_on_commit=False)


async def get_session() -> AsyncIterator[AsyncSession]:
    async with session_factory() as s, s.begin():
        yield s


router = OutboxRouter(engine, outbox_table=outbox_table)


@router.subscriber("orders")
async def handle(
    body: dict,
    session: AsyncSession = Depends(get_session),
) -> None:
    ...  # domain writes on `session` commit with any chained outbox publishes


@router.post("/orders")
async def create_order(
    order: OrderIn,
    broker: OutboxBroker,
    session: AsyncSession = Depends(get_session),
) -> dict:
    session.add(Order(...))
    await broker.publish({"order_id": ...}, queue="orders", session=session)
    return {"ok": True}


app = FastAPI()
app.include_router(router)
"""


class Base(DeclarativeBase):
    """The tables of the user's domain, which the seed leaves out."""


class Order(Base):
    __tablename__ = "orders"
    id: Mapped[int] = mapped_column(primary_key=True)


class OrderIn(BaseModel):
    id: int


def quickstart(dsn: str) -> dict[str, Any]:
    """The names of the seed's module after it ran on *dsn*: its imports, its DSN and the undefined model are replaced."""
    code = SEED
    for theirs, ours in {
        "from faststream_outbox import make_outbox_table": "from outbox_sqlalchemy import make_outbox_table",
        "from faststream_outbox.fastapi import": "from outbox_fastapi import",
        "postgresql+asyncpg://localhost/app": dsn,
        "Order(...)": "Order(id=order.id)",
        '{"order_id": ...}': '{"order_id": order.id}',
    }.items():
        assert code.count(theirs) == 1, theirs
        code = code.replace(theirs, ours)
    names: dict[str, Any] = {"__name__": "quickstart", "Order": Order, "OrderIn": OrderIn}
    exec(compile(code, "quickstart.py", "exec"), names)
    return names


async def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        names = quickstart(f"sqlite+aiosqlite:///{Path(folder) / 'alone.sqlite3'}")
        app, engine, outbox = names["app"], names["engine"], names["outbox_table"]
        async with engine.begin() as connection:
            await connection.run_sync(names["metadata"].create_all)
            await connection.run_sync(Base.metadata.create_all)
        async with asyncio.timeout(30), app.router.lifespan_context(app):
            assert await ask(app, "POST", "/orders", {"id": 7}) == (200, b'{"ok":true}')
            status, document = await ask(app, "GET", "/asyncapi.yaml")
            assert (status, b"asyncapi: 3" in document) == (200, True), document
            await names["router"].broker.drained()
        assert (await all_of(engine, Order.__table__), await all_of(engine, outbox)) == ([(7,)], [])
        await engine.dispose()
    print("FastAPI alone:", fastapi.__version__)


async def ask(app: fastapi.FastAPI, method: str, path: str, body: object = None) -> tuple[int, bytes]:
    """Status and body, asked for as an ASGI server does, since none is installed."""
    sent: list[Any] = []
    scope = {
        "type": "http",
        "method": method,
        "path": path,
        "root_path": "",
        "query_string": b"",
        "headers": [(b"content-type", b"application/json")],
    }

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"" if body is None else json.dumps(body).encode()}

    async def send(message: Any) -> None:
        sent.append(message)

    await app(scope, receive, send)
    return sent[0]["status"], b"".join(part.get("body", b"") for part in sent[1:])


async def all_of(engine: Any, table: Any) -> list[tuple[Any, ...]]:
    async with engine.connect() as connection:
        return [tuple(row) for row in await connection.execute(select(table))]


if __name__ == "__main__":
    asyncio.run(main())
