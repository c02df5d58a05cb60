"""What brokers publish while they are tested: straight to their own subscribers, without a row.

    publish --> checks, encoding --> at once, or after the commit of the session --> handler --> what it publishes, and so on

The checks, the encoding and FastStream's pipeline are the real ones. There is no table, no lease and no retry.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Coroutine, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from inspect import CORO_CREATED, getcoroutinestate
from itertools import count
from time import time
from typing import TYPE_CHECKING, Any, cast
from unittest.mock import NonCallableMock
from uuid import uuid4

from anyio import from_thread
from faststream.exceptions import SubscriberNotFound
from faststream.response import Response, ensure_response

from outbox_core.completion import in_transaction, open_session
from outbox_core.errors import NotStarted
from outbox_core.faststream.producer import OutboxProducer
from outbox_core.faststream.response import OutboxPublishCommand
from outbox_core.message import Delivery, NewMessage
from outbox_core.store import Store

if TYPE_CHECKING:
    from outbox_core.faststream.broker import OutboxBroker
    from outbox_core.faststream.config import OutboxBrokerConfig
    from outbox_core.faststream.subscriber import OutboxSubscriber


class Rehearsal:
    """Some brokers, whose messages go from one to the other in memory."""

    def __init__(self, brokers: "Sequence[OutboxBroker]") -> None:
        self._brokers = brokers
        self._loop = asyncio.get_running_loop()
        self._late: list[asyncio.Task[None]] = []
        self._rowless: dict[Store | None, RowlessStore] = {}
        self._ids = count(1)
        self.over = False

    @asynccontextmanager
    async def held(self) -> AsyncIterator[None]:
        """While it lasts. At the end, wait for handlers that are late, and raise what they raise."""
        try:
            yield
            await asyncio.sleep(0)  # what was called for from other threads has begun
            while self._late:
                await self._late.pop(0)
        finally:
            self.over = True
            await asyncio.sleep(0)
            for task in self._late:
                task.cancel()
            await asyncio.gather(*self._late, return_exceptions=True)

    def producers_of(self, config: "OutboxBrokerConfig") -> "tuple[OutboxProducer, OutboxProducer]":
        """What stands in for its two producers."""
        return RehearsalProducer(config, self), SyncRehearsalProducer(config, self)

    def rowless(self, store: Store | None) -> Store:
        """The one of *store*, which transactional handlers publish by."""
        if store not in self._rowless:
            self._rowless[store] = RowlessStore(store)
        return cast("Store", self._rowless[store])

    def subscriber(self, queue: str) -> "OutboxSubscriber | None":
        return next((one for one in self._subscribers() if queue in one.queues), None)

    def _subscribers(self) -> "Iterator[OutboxSubscriber]":
        for broker in self._brokers:
            yield from cast("list[OutboxSubscriber]", broker.subscribers)

    def delivery(self, message: NewMessage) -> Delivery:
        now = time()
        return Delivery(
            id=next(self._ids),
            message_id=message.message_id,
            queue=message.queue,
            key=message.key,
            payload=message.payload,
            headers=json.loads(message.headers),
            priority=message.priority,
            attempts=0,
            deliveries=0,
            created=now,
            first_attempt=None,
            due=now,
            claimed=now,
            token=uuid4(),
        )

    async def handle(self, deliveries: Sequence[Delivery]) -> None:
        """Have the subscriber of their queue handle them, if there is one; raises what its handler raises."""
        subscriber = self.subscriber(deliveries[0].queue) if deliveries else None
        if subscriber is None:
            return
        for batch in [deliveries] if subscriber.options.batch else [[delivery] for delivery in deliveries]:
            await self.handle_by(subscriber, batch)

    async def handle_by(self, subscriber: "OutboxSubscriber", batch: Sequence[Delivery]) -> Response:
        """What *subscriber* answers."""
        if any(call.handler._wrapped_call is None for call in subscriber.calls):
            subscriber._build_fastdepends_model()  # it has never been started
        raw = batch if subscriber.options.batch else batch[0]
        if not subscriber.transactional:
            return await subscriber.process_message(raw)
        answer: Response | None = None

        async def process(_: Sequence[Delivery]) -> None:
            nonlocal answer
            answer = await subscriber.process_message(raw)

        await in_transaction(self.rowless(subscriber._outer_config.store), batch, process, subscriber._transaction)
        return ensure_response(answer)

    def run_sync(self, handling: Coroutine[Any, Any, None]) -> None:
        """Wait for *handling* from synchronous code.

        In a thread, until it is done. In an event loop's own thread nothing can wait: there it is late, and runs as soon as
        the test awaits something.
        """
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            self._run_from_thread(handling)
        else:
            self._loop.call_soon_threadsafe(self._begin, handling)

    def _begin(self, handling: Coroutine[Any, Any, None]) -> None:
        self._late.append(self._loop.create_task(handling))

    def _run_from_thread(self, handling: Coroutine[Any, Any, None]) -> None:
        try:
            from_thread.run(_awaited, handling)
        except RuntimeError:
            if getcoroutinestate(handling) != CORO_CREATED:
                raise
            asyncio.run_coroutine_threadsafe(handling, self._loop).result()  # no thread of anyio's


async def _awaited(handling: Coroutine[Any, Any, None]) -> None:
    await handling


@dataclass(frozen=True, slots=True)
class Published:
    """`OnCommit`: messages whose transaction is still open."""

    rehearsal: Rehearsal
    deliveries: Sequence[Delivery]

    async def run(self) -> None:
        if not self.rehearsal.over:
            await self.rehearsal.handle(self.deliveries)

    def run_sync(self) -> None:
        if not self.rehearsal.over:
            self.rehearsal.run_sync(self.run())


class RehearsalProducer(OutboxProducer):
    """Has messages handled instead of inserting rows."""

    def __init__(self, config: "OutboxBrokerConfig", rehearsal: Rehearsal) -> None:
        super().__init__(config)
        self._rehearsal = rehearsal

    async def publish_batch(self, cmd: OutboxPublishCommand) -> list[int | None]:
        published = await self._published(cmd)
        session = self._session(cmd)
        if self._is_no_transaction(session):
            await published.run()
        else:
            await self._store.after_commit(session, published)
        return [delivery.id for delivery in published.deliveries]

    async def request(self, cmd: OutboxPublishCommand) -> Any:
        subscriber = self._rehearsal.subscriber(cmd.destination)
        if subscriber is None:
            raise SubscriberNotFound(f"no subscriber of {cmd.destination!r}")
        published = await self._published(cmd)
        async with asyncio.timeout(cmd.timeout):
            response = await self._rehearsal.handle_by(subscriber, published.deliveries)
        answer = OutboxPublishCommand(
            response.body, queue=cmd.destination, headers=response.headers, correlation_id=response.correlation_id
        )
        return (await self._published(answer)).deliveries[0]

    async def _published(self, cmd: OutboxPublishCommand) -> Published:
        messages = await self.compose(cmd)
        return Published(self._rehearsal, [self._rehearsal.delivery(message) for message in messages])

    def _session(self, cmd: OutboxPublishCommand) -> object | None:
        return open_session(self._rehearsal.rowless(self._config.store)) if cmd.session is None else cmd.session

    def _is_no_transaction(self, session: object | None) -> bool:
        """None of a broker without a database, and a mock, which never tells that it has committed."""
        return isinstance(session, NonCallableMock) or (session is None and self._config.store is None)


class SyncRehearsalProducer(RehearsalProducer):
    """The same on a synchronous session."""

    async def publish_batch(self, cmd: OutboxPublishCommand) -> list[int | None]:
        published = await self._published(cmd)
        if self._is_no_transaction(cmd.session):
            published.run_sync()
        else:
            self._store.after_commit_sync(cmd.session, published)
        return [delivery.id for delivery in published.deliveries]


class RowlessStore:
    """What a transactional handler needs of its broker's store, where messages have no rows to be completed."""

    def __init__(self, store: Store | None) -> None:
        self._store = store

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[object]:
        async with AsyncExitStack() as stack:
            try:
                if self._store is None:
                    raise NotStarted("there is no store")
                session = await stack.enter_async_context(self._store.transaction())
            except NotStarted as error:
                raise NotStarted(
                    "a transactional handler needs a database in tests too; create its broker with an engine, which is "
                    "connected only if the handler uses message.session"
                ) from error
            yield session

    async def complete(self, deliveries: Sequence[Delivery], session: object) -> set[int]:
        return {delivery.id for delivery in deliveries}

    def is_conflict(self, error: Exception) -> bool:
        return self._store is not None and self._store.is_conflict(error)
