"""FastStream's broker on an SQLAlchemy engine."""

from datetime import timedelta
from typing import Unpack

from sqlalchemy import Table
from sqlalchemy.ext.asyncio import AsyncEngine

from outbox_core.errors import NotStarted, OptionError
from outbox_core.faststream import OutboxBroker as CoreBroker
from outbox_core.faststream.broker import BrokerOptions
from outbox_sqlalchemy.store import SqlAlchemyStore
from outbox_sqlalchemy.tables import OutboxTables, names_of


class OutboxBroker(CoreBroker):
    """Publishes on SQLAlchemy sessions and connections; consumes on connections of its own.

    *engine*: the caller's, never disposed; without one, the broker only publishes, with `session=`. *outbox_table*: made by
    `make_outbox_table`, or the whole set of `make_outbox_tables`; None: a table named "outbox". *dlq_table*: where dead
    letters go; None: they stay in the outbox table, parked with their reason. *notify*: whether publishers wake sleeping
    workers; without it they poll. *listen_dsn*: where the worker's own connections go, past the pooler that the engine's
    URL names. *insert_only*: the database role may INSERT and nothing else, so publishing returns None instead of row ids,
    and timers are neither extended nor replaced. *dead_letter_retention*: how long dead letters are kept, as inboxes have
    been told; `redrive` refuses what is older. The other arguments are those of `outbox_core.faststream.OutboxBroker`.
    """

    def __init__(
        self,
        engine: AsyncEngine | None = None,
        *,
        outbox_table: Table | OutboxTables | None = None,
        dlq_table: Table | None = None,
        notify: bool = True,
        listen_dsn: str | None = None,
        insert_only: bool = False,
        dead_letter_retention: timedelta | None = None,
        **options: Unpack[BrokerOptions],
    ) -> None:
        if isinstance(outbox_table, OutboxTables) and dlq_table is not None:
            raise OptionError("dlq_table is part of the set made by make_outbox_tables; pass one of them")
        tables = names_of(outbox_table, dlq_table)
        self.engine = engine
        store = SqlAlchemyStore(
            engine,
            tables,
            notify=notify,
            listen_dsn=listen_dsn,
            insert_only=insert_only,
            dead_letter_retention=dead_letter_retention,
        )
        super().__init__(store, **options)

    async def start(self) -> None:
        """Connect, check the tables, and consume. Does nothing if it does already; `NotStarted` without an engine."""
        if self.engine is None and self.served_queues:
            raise NotStarted(
                f"subscribers of {', '.join(self.served_queues)} have no database; create the broker with an engine, "
                "or the OutboxRouter that has it"
            )
        await super().start()
