"""A worker process whose handler writes into another database than the outbox's, behind an inbox, and dies where it is told.

    python -m tests.crash.receiver '{"url": …, "elsewhere": …, "dies": "written"}'

*dies*: "written", before the handler's commit; "committed", after it and before the outbox hears of it; null: not at all, it
ends when nothing is left. What the handler has written says nothing of duplicates by itself: nothing in it is unique.
"""

import asyncio
import json
import os
import signal
import sys

from sqlalchemy import Column, Integer, MetaData, Table, insert
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine

from outbox_sqlalchemy import Inbox, OutboxBroker, OutboxMessage, make_inbox_table, make_outbox_tables
from tests.places import until

metadata = MetaData()
inbox = Inbox(make_inbox_table(metadata))
effects = Table("effects", metadata, Column("id", Integer, primary_key=True), Column("number", Integer))


async def main(url: str, elsewhere: str, dies: str | None) -> None:
    engine, other = create_async_engine(url), create_async_engine(elsewhere)
    broker = OutboxBroker(engine, outbox_table=make_outbox_tables(MetaData()), logger=None)

    @broker.subscriber("crash", lease_ttl_seconds=1.0)
    async def write(number: int, message: OutboxMessage) -> None:
        async with AsyncSession(other) as session, session.begin():
            if not await inbox.receive(message.message_id, "writer", session=session):
                print("skipped", number, flush=True)
                return
            await session.execute(insert(effects).values(number=number))
            if dies == "written":
                os.kill(os.getpid(), signal.SIGKILL)
        if dies == "committed":
            os.kill(os.getpid(), signal.SIGKILL)

    async with broker:
        await broker.start()
        await until(broker.fetch_unprocessed, [], patience=20)
    await engine.dispose()
    await other.dispose()


if __name__ == "__main__":
    asyncio.run(main(**json.loads(sys.argv[1])))
