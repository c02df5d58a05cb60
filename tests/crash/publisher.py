"""A process that publishes message 1 in a transaction and never commits it.

python -m tests.crash.publisher '{"url": …}'
"""

import asyncio
import json
import sys

from sqlalchemy import MetaData
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine

from outbox_sqlalchemy import OutboxBroker, make_outbox_tables


async def publish_and_wait(url: str) -> None:
    broker = OutboxBroker(create_async_engine(url), outbox_table=make_outbox_tables(MetaData()))
    async with AsyncSession(broker.engine) as session, session.begin():
        await broker.publish(1, "crash", session=session)
        print("inserted", flush=True)
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(publish_and_wait(json.loads(sys.argv[1])["url"]))
