"""FastStream's broker on Django's databases."""

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Unpack, cast

from outbox_core.envelope import PublishOptions, check_queue, refuse_for_batches
from outbox_core.errors import OptionError
from outbox_core.events import Event, Handled, WorkerStopped
from outbox_core.faststream import OutboxBroker as CoreBroker
from outbox_core.faststream import TestOutboxBroker as CoreTestOutboxBroker
from outbox_core.faststream.broker import BrokerOptions
from outbox_core.faststream.producer import OutboxProducer
from outbox_core.faststream.response import OutboxPublishCommand
from outbox_core.faststream.subscriber import OutboxSubscriber
from outbox_core.message import NewMessage
from outbox_core.options import check_max_workers
from outbox_core.quoting import indent_traceback
from outbox_django.dependencies import LaneProvider, filter_in_lane, in_lane
from outbox_django.lanes import Lane, Lanes, in_thread
from outbox_django.publishing import check_transaction
from outbox_django.settings import TransactionPolicy, outbox_settings
from outbox_django.signals import SignalSender
from outbox_django.store import AtomicBlock, DjangoStore, InlineStore

logger = logging.getLogger("outbox")
handlers_logger = logging.getLogger("outbox.handlers")
handlers_logger.addFilter(indent_traceback)

SIGNALS_TIMEOUT = 5.0  # seconds for the receivers of the last signals


class OutboxBroker(CoreBroker):
    """Publishes on Django's connections; runs each handler in a lane (`outbox_django.lanes`).

    *using*: the alias of the database; None: `OUTBOX["DATABASE"]`, or where the database routers write the outbox.
    *concurrency*: handlers that run at once in this process, over all subscribers; also `max_workers` of subscribers that
    do not say. What is not given is taken from `settings.OUTBOX`. The other arguments are those of
    `outbox_core.faststream.OutboxBroker`.
    """

    def __init__(
        self, using: str | None = None, *, concurrency: int | None = None, **options: Unpack[BrokerOptions]
    ) -> None:
        settings = outbox_settings()
        if not isinstance(options.setdefault("provider", LaneProvider()), LaneProvider):
            raise OptionError("provider must be an outbox_django.dependencies.LaneProvider; others use any thread")
        size = settings.concurrency if concurrency is None else check_max_workers(concurrency)
        self.lanes = Lanes(size, conn_max_age=settings.conn_max_age)
        self.handled = 0
        self.abandoned = 0
        self._signals = SignalSender(self)
        self._policy: TransactionPolicy = options.pop("require_transaction", settings.require_transaction)
        options["call_decorators"] = (*options.get("call_decorators", ()), in_lane)
        options.setdefault("max_workers", self.lanes.size)
        options.setdefault("graceful_timeout", settings.graceful_timeout)
        options.setdefault("stuck_timeout", settings.stuck_timeout)
        options.setdefault("max_payload_bytes", settings.max_payload_bytes)
        options.setdefault("logger", handlers_logger)
        store = DjangoStore(
            using or settings.database,
            settings.tables,
            notify=settings.notify,
            listen_alias=settings.listen_database,
            conn_max_age=settings.conn_max_age,
            insert_only=settings.insert_only,
        )
        options["lane"] = self.lanes
        super().__init__(store, **options)
        self.watch(self._count)
        self.watch(self._signals)
        config = self.config.broker_config
        config.producer = DjangoProducer(config, self._policy)

    def _count(self, event: Event) -> None:
        match event:
            case Handled():
                self.handled += 1
            case WorkerStopped(abandoned=abandoned):
                self.abandoned = abandoned

    def use_database(self, alias: str) -> None:
        """Consume from the outbox of *alias*, from the next start on."""
        cast("DjangoStore", self.store).alias = alias

    def set_concurrency(self, concurrency: int) -> None:
        """Let so many handlers run at once, from the next start on."""
        self.lanes.size = check_max_workers(concurrency)
        self.config.broker_config.max_workers = concurrency

    # Life

    async def connect(self) -> Any:
        """FastStream's own, before any handler is called: their filters are put into the lanes as well."""
        for subscriber in self.subscribers:
            for call in subscriber.calls:
                call.filter = filter_in_lane(call.filter)
        return await super().connect()

    async def start(self) -> None:
        """Connect, check the tables, and consume. Does nothing if it does already."""
        if not self.running:
            self._warn_of_too_many_workers()
            await self._signals.start(Lane(self.lanes.conn_max_age))
        await super().start()

    def _warn_of_too_many_workers(self) -> None:
        for subscriber in cast("list[OutboxSubscriber]", self.subscribers):
            if subscriber.options.max_workers > self.lanes.size:
                logger.warning(
                    "max_workers=%d of %r is more than the %d handlers that run at once in this process; raise "
                    'OUTBOX["CONCURRENCY"], or --concurrency',
                    subscriber.options.max_workers,
                    subscriber.queues,
                    self.lanes.size,
                )

    async def stop(self, exc_type: Any = None, exc_val: Any = None, exc_tb: Any = None) -> None:
        """Drain every subscriber at once, write what they did, send the last signals, close all connections. Idempotent."""
        await super().stop(exc_type, exc_val, exc_tb)
        await self._signals.stop(SIGNALS_TIMEOUT)
        await self.lanes.close()

    # Publishing

    async def publish(  # type: ignore[override]  # a database is named by its alias here
        self,
        message: Any,
        queue: str,
        *,
        using: str | None = None,
        standalone: bool = False,
        headers: Mapping[str, str] | None = None,
        **options: Unpack[PublishOptions],
    ) -> int | None:
        """Insert *message* on the connection of the current lane or thread; see `outbox_django.apublish`.

        Unlike that, it runs FastStream's publish middlewares.
        """
        return await super().publish(message, queue, session=using, standalone=standalone, headers=headers, **options)

    async def publish_batch(  # type: ignore[override]  # as above
        self,
        *messages: Any,
        queue: str,
        using: str | None = None,
        standalone: bool = False,
        headers: Mapping[str, str] | None = None,
        **options: Unpack[PublishOptions],
    ) -> list[int | None]:
        """Insert all *messages* in one statement or none of them; see `publish`."""
        return await super().publish_batch(
            *messages, queue=queue, session=using, standalone=standalone, headers=headers, **options
        )

    def publish_sync(  # type: ignore[override]  # as above
        self,
        message: Any,
        queue: str,
        *,
        using: str | None = None,
        standalone: bool = False,
        headers: Mapping[str, str] | None = None,
        **options: Unpack[PublishOptions],
    ) -> int | None:
        """`outbox_django.publish` through FastStream's publish middlewares, without an event loop."""
        session = self._covered(queue, using, standalone)
        return super().publish_sync(message, queue, session=session, headers=headers, **options)

    def publish_batch_sync(  # type: ignore[override]  # as above
        self,
        *messages: Any,
        queue: str,
        using: str | None = None,
        standalone: bool = False,
        headers: Mapping[str, str] | None = None,
        **options: Unpack[PublishOptions],
    ) -> list[int | None]:
        """`outbox_django.publish_batch` through FastStream's publish middlewares, without an event loop."""
        check_queue(queue)
        if not messages:
            return []
        refuse_for_batches(options)
        session = self._covered(queue, using, standalone)
        return super().publish_batch_sync(*messages, queue=queue, session=session, headers=headers, **options)

    def _covered(self, queue: str, using: str | None, standalone: bool) -> str:
        """The alias to publish on; the policy is applied before the middlewares, behind which no line of the caller's is."""
        store = cast("DjangoStore", self.store)
        if not standalone:
            check_transaction(store.connection(using), queue, self._policy, stacklevel=4)
        return store.alias if using is None else using


class DjangoProducer(OutboxProducer):
    """Inserts rows in the thread whose connection has the transaction, and asks there whether it has one."""

    def __init__(self, config: Any, policy: TransactionPolicy) -> None:
        super().__init__(config)
        self._policy = policy

    async def publish_batch(self, cmd: OutboxPublishCommand) -> list[int | None]:
        messages = await self.compose(cmd)
        if isinstance(cmd.session, AtomicBlock):
            return await self._store.insert(messages, cmd.session)
        return await in_thread(self._insert, messages, cmd)

    def _insert(self, messages: list[NewMessage], cmd: OutboxPublishCommand) -> list[int | None]:
        if not cmd.standalone and not isinstance(cmd.session, AtomicBlock):
            check_transaction(self._django_store.connection(cmd.session), cmd.destination, self._policy)
        return self._store.insert_sync(messages, cmd.session)

    @property
    def _django_store(self) -> DjangoStore:
        assert isinstance(self._store, DjangoStore), "a Django broker has one"
        return self._store


class TestOutboxBroker(CoreTestOutboxBroker, broker=OutboxBroker):
    """FastStream's test broker; a transactional handler has its `atomic()` on the connection that the test has."""

    @contextmanager
    def _patch_producer(self, broker: CoreBroker) -> Iterator[None]:
        config = broker.config.broker_config
        store = cast("DjangoStore", config.store)
        with super()._patch_producer(broker):
            config.store = InlineStore(store.alias, store.tables)
            try:
                yield
            finally:
                config.store = store
