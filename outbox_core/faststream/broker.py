"""The broker: FastStream's, over any store. Adapters subclass it with a constructor of their own.

Entering it (`async with broker`) connects and consumes nothing; `start` consumes. Both may be repeated, and it may be
started again after a stop, on another event loop too.
"""

import asyncio
import logging
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from datetime import timedelta
from inspect import iscoroutinefunction
from os import getpid
from typing import Any, TypedDict, Unpack, cast

from fast_depends import Provider, dependency_provider
from faststream.message import gen_cor_id
from faststream.middlewares import AckPolicy
from faststream.response import PublishType
from faststream.specification.schema import BrokerSpec

from outbox_core.envelope import (
    MAX_PAYLOAD_BYTES,
    PublishOptions,
    check_key,
    check_max_payload_bytes,
    check_name,
    check_queue,
    check_timer_id,
    refuse_for_batches,
)
from outbox_core.errors import NotStarted, OptionError, SchemaMismatch, WrongType
from outbox_core.events import Observer
from outbox_core.faststream._compat import EMPTY, BrokerUsecase, ContextRepo, FastDependsConfig
from outbox_core.faststream.command_line import is_command_line, read_flag, read_options
from outbox_core.faststream.config import Injection, OutboxBrokerConfig, make_outbox_logger_state
from outbox_core.faststream.message import OutboxMessage
from outbox_core.faststream.producer import OutboxProducer, TransactionPolicy
from outbox_core.faststream.registrator import OutboxRegistrator, check_ack_policy
from outbox_core.faststream.response import OutboxPublishCommand
from outbox_core.faststream.subscriber import OutboxSubscriber
from outbox_core.message import OutboxStats, PendingMessage
from outbox_core.options import check_graceful_timeout, check_max_workers, check_renderer
from outbox_core.quoting import quoted
from outbox_core.slots import Lane
from outbox_core.store import Store
from outbox_core.waiting import Question, drive
from outbox_core.worker import Worker

MAX_ID = 2**63 - 1  # of a bigint
MAX_AGE = timedelta(days=36_525)  # a century, as for retries


class SharedOptions(TypedDict, total=False):
    """The keyword arguments that brokers and FastAPI's router have; see `OutboxBroker`."""

    require_transaction: TransactionPolicy
    observers: Sequence[Observer]
    worker_name: str | None
    max_workers: int
    max_payload_bytes: int
    last_exception_renderer: Callable[[BaseException], str] | None
    graceful_timeout: float | None
    stuck_timeout: float | None
    decoder: Any
    parser: Any
    codec: Any
    middlewares: Sequence[Any]
    routers: Iterable[Any]
    ack_policy: AckPolicy
    id_generator: Callable[[], str]
    security: Any
    specification_url: str | Iterable[str] | None
    protocol: str | None
    protocol_version: str | None
    description: str | None
    logger: Any
    log_level: int
    serializer: Any
    context: ContextRepo | None


class BrokerOptions(SharedOptions, total=False):
    """The keyword arguments of every broker; see `OutboxBroker`."""

    lane: Lane | None
    call_decorators: Sequence[Callable[..., Any]]
    injection: Injection | None
    dependencies: Sequence[Any]
    tags: Iterable[Any]
    apply_types: bool
    provider: Provider | None


class OutboxBroker(OutboxRegistrator, BrokerUsecase[Any, Store, OutboxBrokerConfig]):
    """Publishes into an outbox table and consumes from it.

    *require_transaction* says what a publish without a session does: nothing special, a warning, or `NoTransaction`.
    *graceful_timeout*: seconds that handlers get at a stop; None does not wait. *stuck_timeout*: seconds for which the event
    loop may be blocked with messages in hand before the process is ended; None: for ever. *log_level*: of the two records
    that FastStream writes for each message; they cost more than the rest of the pipeline, so they are at DEBUG.
    *observers* are called with every event of the engine (`outbox_core.events`). *max_workers*: of subscribers that do not
    say.
    *max_payload_bytes*: of an encoded body; a larger one is refused when it is published, and handled if it is there.
    *last_exception_renderer*: makes the text that a dead letter keeps of an exception, for those whose exceptions repeat
    what nobody may keep; without it, type and text.
    *lane*: entered around each delivery, a place for its handler; *call_decorators*: put around every handler: together
    they let an adapter give handlers threads and connections. *injection*: finds the handlers' arguments, in FastDepends'
    place. The other arguments are FastStream's own.
    """

    def __init__(
        self,
        store: Store | None = None,
        *,
        require_transaction: TransactionPolicy = "ignore",
        observers: Sequence[Observer] = (),
        worker_name: str | None = None,
        max_workers: int = 1,
        max_payload_bytes: int = MAX_PAYLOAD_BYTES,
        last_exception_renderer: Callable[[BaseException], str] | None = None,
        lane: Lane | None = None,
        call_decorators: Sequence[Callable[..., Any]] = (),
        injection: Injection | None = None,
        graceful_timeout: float | None = 15.0,
        stuck_timeout: float | None = 30.0,
        decoder: Any = None,
        parser: Any = None,
        codec: Any = None,
        dependencies: Sequence[Any] = (),
        middlewares: Sequence[Any] = (),
        routers: Iterable[Any] = (),
        ack_policy: AckPolicy = EMPTY,
        id_generator: Any = gen_cor_id,
        security: Any = None,
        specification_url: str | Iterable[str] | None = None,
        protocol: str | None = None,
        protocol_version: str | None = None,
        description: str | None = None,
        tags: Iterable[Any] = (),
        logger: Any = EMPTY,
        log_level: int = logging.DEBUG,
        apply_types: bool = True,
        serializer: Any = EMPTY,
        provider: Provider | None = None,
        context: ContextRepo | None = None,
    ) -> None:
        if require_transaction not in ("ignore", "warn", "error"):
            raise OptionError(
                f"require_transaction must be 'ignore', 'warn' or 'error', got {quoted(require_transaction)}"
            )
        if worker_name is not None:
            check_name("worker_name", worker_name)
        observers, worker = _checked_observers(observers), None
        if store is not None:
            worker = Worker(store, name=worker_name, observers=observers, stuck_timeout=stuck_timeout)
        config = OutboxBrokerConfig(
            store=store,
            worker=worker,
            require_transaction=require_transaction,
            broker_middlewares=middlewares,
            broker_parser=parser,
            broker_decoder=decoder,
            broker_codec=codec,
            broker_dependencies=dependencies,
            graceful_timeout=check_graceful_timeout(graceful_timeout),
            ack_policy=check_ack_policy(ack_policy),
            id_generator=id_generator,
            logger=make_outbox_logger_state(logger=logger, log_level=log_level),
            fd_config=FastDependsConfig(
                use_fastdepends=apply_types,
                serializer=serializer,
                provider=provider or dependency_provider,
                context=context or ContextRepo(),
                call_decorators=call_decorators,
                get_dependent=None if injection is None else injection.describe,
            ),
            extra_context={"broker": self},
            lane=lane,
            injection=injection,
            max_workers=check_max_workers(max_workers),
            max_payload_bytes=check_max_payload_bytes(max_payload_bytes),
            last_exception_renderer=check_renderer(last_exception_renderer),
        )
        config.producer = OutboxProducer(config)
        config.default_driver_annotations = _annotations(type(self))
        self._loop: asyncio.AbstractEventLoop | None = None
        self._process = 0
        self._question = Question(self._reaches_database)
        super().__init__(
            config=config,
            specification=BrokerSpec(
                url=_urls(specification_url, store),
                protocol=protocol or "outbox",
                protocol_version=protocol_version,
                description=description,
                tags=tags,
                security=security,
            ),
            routers=routers,
        )

    # Life

    async def _connect(self) -> Store:
        return self.store

    @property
    def store(self) -> Store:
        """Where the rows are; `NotStarted` for a broker without a database."""
        store = self.config.broker_config.store
        if store is None:
            raise NotStarted("this broker has no database; create it with an engine")
        return store

    async def start(self) -> None:
        """Connect, check the tables, and consume. Does nothing if it does already.

        Raises `NotStarted` in a process that was forked from one in which it runs, and on another event loop: there it
        would do nothing, and nothing would be consumed.
        """
        loop = asyncio.get_running_loop()
        if self.running and self._loop is not loop:
            raise NotStarted(
                f"this broker was started on another event loop, in process {self._process}, and this is {getpid()}; "
                "stop it there before you start it here, or make one for each"
            )
        self._loop, self._process = loop, getpid()
        await self.connect()
        worker = self.config.broker_config.worker
        try:
            if worker is not None and (queues := self.served_queues):
                await worker.start(queues)
            await super().start()
        except BaseException:  # nothing goes on behind a start that failed
            if not self.running:
                await self.stop()
            raise

    async def stop(self, exc_type: Any = None, exc_val: Any = None, exc_tb: Any = None) -> None:
        """Drain every subscriber at once, write what they did, disconnect. Idempotent."""
        await super().stop(exc_type, exc_val, exc_tb)
        worker = self.config.broker_config.worker
        if worker is not None:
            await worker.stop(timeout=self.config.graceful_timeout or 0)
        await self._question.close()
        self._connection = None

    async def ping(self, timeout: float | None = None) -> bool:
        """Whether the worker makes progress and its database answers within *timeout* seconds; never raises.

        It is asked on a connection of the worker's own, whatever the application's pool is doing. A broker that consumes
        nothing opens one for the question. False before `start`.
        """
        worker = self.config.broker_config.worker
        if worker is None or not self.running:
            return False
        return await (worker.ping(timeout) if worker.running else self._question.answer(timeout))

    async def _reaches_database(self) -> bool:
        try:
            link = await self.store.connect()
            try:
                await link.ping()
            finally:
                await link.close()
        except Exception:  # whatever it is, the answer is no
            return False
        return True

    @property
    def served_queues(self) -> list[str]:
        """The queues that this process consumes from once it is started, by name."""
        return [queue for queue in self.subscribed_queues if self.config.broker_config.serves(queue)]

    @property
    def subscribed_queues(self) -> list[str]:
        """The queues that have a subscriber here, by name."""
        every = (cast("OutboxSubscriber", subscriber).queues for subscriber in self.subscribers)
        return sorted({queue for queues in every for queue in queues})

    def serve(self, queues: Collection[str] | None = None, *, exclude: Collection[str] = ()) -> None:
        """From the next start on, consume from *queues* only, or with None from all; never from those to *exclude*.

        Raises `OptionError` for a queue that has no subscriber here.
        """
        for what, names in (("queues", queues), ("exclude", exclude)):
            if isinstance(names, str) or not isinstance(names, Collection | None):
                raise WrongType(what, "a list of queues", names)
        known = self.subscribed_queues
        for queue in (*(queues or ()), *exclude):
            if queue not in known:
                raise OptionError(f"no subscriber of queue {queue!r}; there are subscribers of {known}")
        chosen = set(known if queues is None else queues) - set(exclude)
        self.config.broker_config.serves = chosen.__contains__

    def watch(self, observer: Observer) -> None:
        """Have *observer* called with every event of the engine, from the next start on."""
        worker = self.config.broker_config.worker
        if worker is None:
            raise NotStarted("this broker has no database, so there is nothing to watch; create it with an engine")
        worker.watch(*_checked_observers((observer,)))

    def halt(self) -> None:
        """Let no handler begin any more; what has not begun is given back, and what runs goes on until `stop`."""
        worker = self.config.broker_config.worker
        if worker is not None:
            worker.halt()

    async def drained(self) -> None:
        """Return once nothing is due in the subscribers' queues and nothing is in hand; what is scheduled later stays."""
        worker = self.config.broker_config.worker
        if worker is None or not self.running:
            raise NotStarted("this broker does not consume, so it drains nothing; start it first")
        if self.served_queues:
            await worker.drained()

    # Publishing

    async def publish(
        self,
        message: Any,
        queue: str,
        *,
        session: object | None = None,
        standalone: bool = False,
        headers: Mapping[str, str] | None = None,
        **options: Unpack[PublishOptions],
    ) -> int | None:
        """Insert *message* in the caller's transaction; the row's id, or None if a live timer has the same id.

        *session*: the caller's open transaction, in which nothing is flushed or committed; None: a short transaction of
        its own. *activate_in*, *activate_at*: not before, on the database's clock. *key*: recorded for ordered delivery.
        *priority*: higher first. *timer_id*: one live message of that id a queue; *timer_conflict* says what a second
        one does: "ignore" it, "extend" the first to the later of both times, or "replace" the first. *message_id*: a UUID
        that stays with the message for ever; publishing the same one again inserts nothing and returns None.

        Raises `InvalidMessage`, `WrongType`, `CannotEncode` or `PayloadTooLarge` before anything is sent, so that the
        caller's transaction stays usable.
        """
        if is_command_line() and not self.running:
            options, standalone = read_options(options), read_flag("standalone", standalone)
        command = self._command(
            message, queue=queue, session=session, standalone=standalone, headers=headers, **options
        )
        row_id: int | None = await self._basic_publish(command, producer=self.config.producer)
        return row_id

    async def publish_batch(
        self,
        *messages: Any,
        queue: str,
        session: object | None = None,
        standalone: bool = False,
        headers: Mapping[str, str] | None = None,
        **options: Unpack[PublishOptions],
    ) -> list[int | None]:
        """Insert all *messages* in one statement or none of them; their row ids, in order. See `publish`."""
        check_queue(queue)
        if not messages:
            return []
        refuse_for_batches(options)
        command = self._command(
            *messages, queue=queue, session=session, standalone=standalone, headers=headers, **options
        )
        row_ids: list[int | None] = await self._basic_publish_batch(command, producer=self.config.producer)
        return row_ids

    def publish_sync(
        self,
        message: Any,
        queue: str,
        *,
        session: object,
        headers: Mapping[str, str] | None = None,
        **options: Unpack[PublishOptions],
    ) -> int | None:
        """`publish` on a synchronous session, without an event loop; the same middlewares run."""
        command = self._command(message, queue=queue, session=_required(session), headers=headers, **options)
        row_id: int | None = drive(self._basic_publish(command, producer=self.config.sync_producer))
        return row_id

    def publish_batch_sync(
        self,
        *messages: Any,
        queue: str,
        session: object,
        headers: Mapping[str, str] | None = None,
        **options: Unpack[PublishOptions],
    ) -> list[int | None]:
        """`publish_batch` on a synchronous session, without an event loop."""
        check_queue(queue)
        if not messages:
            return []
        refuse_for_batches(options)
        command = self._command(*messages, queue=queue, session=_required(session), headers=headers, **options)
        row_ids: list[int | None] = drive(self._basic_publish_batch(command, producer=self.config.sync_producer))
        return row_ids

    async def request(self, message: Any, queue: str, **options: Any) -> Any:  # type: ignore[override]  # as above
        """Refused outside tests: see `OutboxProducer.request`."""
        timeout = options.pop("timeout", None)
        command = self._command(message, queue=queue, _publish_type=PublishType.REQUEST, **options)
        command.timeout = timeout
        return await self._basic_request(command, producer=self.config.producer)

    def _command(self, *messages: Any, **options: Any) -> OutboxPublishCommand:
        if options.get("correlation_id") is None:
            options["correlation_id"] = self.config.broker_config.new_correlation_id()
        return OutboxPublishCommand(*messages, **options)

    # Operating

    async def cancel_timer(self, *, queue: str, timer_id: str, session: object | None = None) -> bool:
        """Delete a live timer that no worker has leased; say whether there was one."""
        return await self.store.cancel_timer(check_queue(queue), check_timer_id(timer_id), session)

    async def fetch_unprocessed(
        self, session: object | None = None, queue: str | None = None, limit: int = 1_000
    ) -> list[PendingMessage]:
        """Look at the oldest *limit* rows, leased ones too, without leasing them."""
        return await self.store.fetch_unprocessed(_checked_filter(queue), _checked_limit(limit), session)

    async def redrive(
        self,
        queue: str | None = None,
        ids: Sequence[int] | None = None,
        reason: str | None = None,
        limit: int | None = None,
        dry_run: bool = False,
        session: object | None = None,
        *,
        key: str | None = None,
    ) -> int:
        """Put dead letters back, oldest first, with their message ids and fresh counters; how many.

        The filters are combined; none means all. With *dry_run* nothing is changed. A message that halts its key comes first
        and keeps its place in the order; others with a key go to its end. Raises `PastRetention`, and puts none back, if one
        of them failed longer ago than the dead-letter retention that is declared.
        """
        return await self.store.redrive(
            queue=_checked_filter(queue),
            key=None if key is None else check_key(key),
            ids=_checked_ids(ids),
            reason=None if reason is None else check_name("reason", reason),
            limit=None if limit is None else _checked_limit(limit),
            dry_run=dry_run,
            session=session,
        )

    async def purge_dead_letters(
        self,
        older_than: timedelta,
        *,
        queue: str | None = None,
        limit: int = 10_000,
        session: object | None = None,
    ) -> int:
        """Delete up to *limit* dead letters that failed more than *older_than* ago; how many."""
        if not isinstance(older_than, timedelta):
            raise WrongType("older_than", "a timedelta", older_than)
        if not timedelta(0) <= older_than <= MAX_AGE:
            raise OptionError(f"older_than must be between 0 and {MAX_AGE.days:,} days, got {older_than!r}")
        return await self.store.purge_dead_letters(older_than, _checked_filter(queue), _checked_limit(limit), session)

    async def release_key(self, queue: str, key: str, *, session: object | None = None) -> bool:
        """Let *key* go on without the dead message that halts it; say whether there was one.

        The message goes to the dead letters, from where `redrive` puts it at the end of its key.
        """
        return await self.store.release_key(check_queue(queue), check_key(key), session)

    async def stats(self) -> OutboxStats:
        """Counts by queue at one moment; it reads the whole table."""
        return await self.store.stats()

    async def pause(self, queue: str, session: object | None = None) -> None:
        """Stop every worker's claiming from *queue* within about a second, until `resume`; it survives restarts."""
        await self.store.set_paused(check_queue(queue), True, session)

    async def resume(self, queue: str, session: object | None = None) -> None:
        """Undo `pause`."""
        await self.store.set_paused(check_queue(queue), False, session)

    async def validate_schema(self) -> None:
        """Compare the live tables with their description; `SchemaMismatch` names each difference of the first misfit."""
        for table, differences in (await self.store.differences()).items():
            raise SchemaMismatch(table, [difference.text for difference in differences])


def _annotations(broker: type[OutboxBroker]) -> dict[type, str]:
    """What a handler means that names one of these classes. From 0.7.8 on, FastStream refuses that and tells this."""
    module = "outbox_core.faststream.annotations"
    brokers = [one for one in broker.__mro__ if issubclass(one, OutboxBroker)]
    return {OutboxMessage: f"{module}.OutboxMessage", **dict.fromkeys(brokers, f"{module}.OutboxBroker")}


def _urls(specification_url: str | Iterable[str] | None, store: Store | None) -> list[str]:
    """The server of the AsyncAPI document: a logical name, without host, user or database, unless one is given."""
    if specification_url is None:
        kind, known, _ = ("" if store is None else store.name).partition(":")
        return [f"{kind if known else 'outbox'}://outbox"]
    given = [specification_url] if isinstance(specification_url, str) else specification_url
    if not isinstance(given, Iterable):
        raise WrongType("specification_url", "a str, or a list of them", given)
    return [_without_secrets(url) for url in given]


def _without_secrets(url: str) -> str:
    """Scheme, host and path: the document is public, and a user, a password or a driver's options are not."""
    scheme, separator, rest = url.rpartition("://")
    return f"{scheme}{separator}{rest.rpartition('@')[2].partition('?')[0]}"


def _required(session: object | None) -> object:
    if session is None:
        raise WrongType("session", "a synchronous Session or Connection", session, "a synchronous publish has no other")
    return session


def _checked_filter(queue: str | None) -> str | None:
    return None if queue is None else check_queue(queue)


def _checked_ids(ids: Sequence[int] | None) -> Sequence[int] | None:
    if ids is None:
        return None
    if isinstance(ids, str | bytes) or not isinstance(ids, Collection):
        raise WrongType("ids", "a list of the ids of dead letters", ids)
    for id in ids:
        if isinstance(id, bool) or not isinstance(id, int):
            raise WrongType("ids", "the ids of dead letters", id)
        if not 1 <= id <= MAX_ID:
            raise OptionError(f"ids must be between 1 and {MAX_ID}, got {quoted(id)}")
    return list(ids)


def _checked_limit(limit: int) -> int:
    if isinstance(limit, bool) or not isinstance(limit, int):
        raise WrongType("limit", "an int", limit)
    if limit < 1:
        raise OptionError(f"limit must be >= 1, got {quoted(limit)}")
    if limit > MAX_ID:
        raise OptionError(f"limit must be at most {MAX_ID}, got {quoted(limit)}")
    return limit


def _checked_observers(observers: Sequence[Observer]) -> Sequence[Observer]:
    if not isinstance(observers, Sequence):
        raise WrongType("observers", "a list of functions", observers)
    for observer in observers:
        if not callable(observer) or iscoroutinefunction(observer):
            raise WrongType("an observer", "a function that takes an event, not asynchronous", observer)
    return observers
