"""An application to be served by uvicorn in a process of its own: `uvicorn tests.fastapi.shop:app`; see `test_stop`."""

import asyncio
import os
from pathlib import Path

from fastapi import FastAPI
from sqlalchemy import MetaData
from sqlalchemy.ext.asyncio import create_async_engine

from outbox_fastapi import OutboxRouter
from outbox_sqlalchemy import make_outbox_tables

folder = Path(os.environ["SHOP_FOLDER"])
engine = create_async_engine(os.environ["SHOP_DSN"])
router = OutboxRouter(engine, outbox_table=make_outbox_tables(MetaData()))


@router.subscriber("orders", prefetch=10)
async def handle(body: int) -> None:
    (folder / f"begun {body}").touch()
    while not (folder / "go on").exists():  # noqa: ASYNC110  another process makes it
        await asyncio.sleep(0.01)
    (folder / f"done {body}").touch()


app = FastAPI()
app.include_router(router)
