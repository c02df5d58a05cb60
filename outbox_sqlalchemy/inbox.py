"""Messages from elsewhere, each received once, in the transaction of its handler's writes.

    async with AsyncSession(engine) as session, session.begin():
        if await inbox.receive(message_id, "billing", session=session):
            ...  # the handler's own writes, on the same session

The record of a message and the writes that it causes are committed together or not at all. So a delivery that failed is
received again, and one that comes again after the commit is not. The database need not be that of any outbox.
"""

from datetime import timedelta
from uuid import UUID

from sqlalchemy import Engine, Table
from sqlalchemy.ext.asyncio import AsyncEngine

from outbox_core.envelope import check_consumer, check_foreign_id
from outbox_core.errors import MissingTable, WrongType
from outbox_core.inbox import Retention
from outbox_core.schema import Tables
from outbox_core.store import PURGED_AT_ONCE
from outbox_sqlalchemy.store import SqlAlchemyStore
from outbox_sqlalchemy.tables import OutboxTables


class Inbox:
    """Says of a message whether it is there for the first time.

    *inbox_table*: made by `make_inbox_table`, or the set of `make_outbox_tables(..., inbox=True)`. *retention*: how long a
    received message is remembered; None: for ever. *dead_letter_retention*: how long after a failure a message can come
    again, that is, how long dead letters are kept where it comes from; None: for ever. A retention that is shorter raises
    `OptionError`.
    """

    def __init__(
        self,
        inbox_table: Table | OutboxTables,
        *,
        retention: timedelta | None = None,
        dead_letter_retention: timedelta | None = None,
    ) -> None:
        table = inbox_table.inbox if isinstance(inbox_table, OutboxTables) else inbox_table
        if table is None:
            raise MissingTable("these tables have no inbox; make them with make_outbox_tables(metadata, inbox=True)")
        if not isinstance(table, Table):
            raise WrongType("inbox_table", "a Table made by make_inbox_table", table)
        self._retention = Retention(inbox=retention, dead_letters=dead_letter_retention)
        self._store = SqlAlchemyStore(None, Tables(inbox=table.name, schema=table.schema))

    async def receive(self, message_id: str | UUID, consumer: str, *, session: object) -> bool:
        """Record the message in the session's transaction: True if it is new to *consumer*, False if it is to be skipped.

        *session*: the `AsyncSession` or `AsyncConnection` of the handler's own writes. *consumer*: the name of who handles
        the message; two consumers each handle it once. If another transaction that received it is open, this waits for its
        end: False once that has committed, True if it was rolled back. At REPEATABLE READ and SERIALIZABLE, PostgreSQL
        reports a serialization failure instead of False; run the transaction again, as for any.

        Raises `InvalidMessage` or `WrongType` before anything is sent, and `NoTransaction` for a connection in AUTOCOMMIT.
        """
        checked = check_foreign_id(message_id), check_consumer(consumer)
        return await self._store.receive(*checked, _required(session))

    def receive_sync(self, message_id: str | UUID, consumer: str, *, session: object) -> bool:
        """`receive` on a `Session` or `Connection`, without an event loop."""
        checked = check_foreign_id(message_id), check_consumer(consumer)
        return self._store.receive_sync(*checked, _required(session))

    async def purge(self, engine: AsyncEngine, *, older_than: timedelta | None = None) -> int:
        """Forget what was received longer ago than the retention, or than *older_than*; how many messages.

        Some thousands a transaction, oldest first. Raises `OptionError` for less than `dead_letter_retention`, and if that,
        or how old, is not said.
        """
        age = self._retention.age(older_than)
        if not isinstance(engine, AsyncEngine):
            raise WrongType("engine", "an AsyncEngine", engine, "use purge_sync(...) with a synchronous one")
        forgotten, found = 0, PURGED_AT_ONCE
        while found == PURGED_AT_ONCE:
            async with engine.begin() as connection:
                found = await self._store.purge_inbox(age, PURGED_AT_ONCE, connection)
            forgotten += found
        return forgotten

    def purge_sync(self, engine: Engine, *, older_than: timedelta | None = None) -> int:
        """`purge` on an `Engine`, without an event loop."""
        age = self._retention.age(older_than)
        if not isinstance(engine, Engine):
            raise WrongType("engine", "an Engine", engine, "use await purge(...) with an asynchronous one")
        forgotten, found = 0, PURGED_AT_ONCE
        while found == PURGED_AT_ONCE:
            with engine.begin() as connection:
                found = self._store.purge_inbox_sync(age, PURGED_AT_ONCE, connection)
            forgotten += found
        return forgotten


def _required(session: object) -> object:
    if session is None:
        raise WrongType("session", "that of the handler's own writes", session, "both are committed together")
    return session
