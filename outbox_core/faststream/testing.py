"""`TestOutboxBroker`: the broker in memory, for tests of handlers and for a rehearsal beside its work.

not running  --> everybody's publishes go to memory, and every handler has its mock
running      --> only those of the task that entered, and of what it starts; the worker goes on as it was
with_real    --> the database, and every handler has its mock
"""

from collections.abc import AsyncGenerator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from typing import Any, cast

from outbox_core.faststream._compat import TestBroker
from outbox_core.faststream.broker import OutboxBroker
from outbox_core.faststream.producer import standing_in
from outbox_core.faststream.publisher import OutboxPublisher
from outbox_core.faststream.rehearsal import Rehearsal, RehearsalProducer
from outbox_core.faststream.subscriber import OutboxSubscriber


class TestOutboxBroker(TestBroker[OutboxBroker, Any], broker=OutboxBroker):
    """Redirects publishes to the brokers' own handlers; `with_real=True` keeps the database and adds the mocks.

    Brokers of which one is running are left as they are: what is published elsewhere meanwhile is inserted, what is
    consumed is handled, and a stop stops. There are no mocks then, since they would record the worker's calls.
    """

    @asynccontextmanager
    async def _create_ctx(self) -> AsyncGenerator[list[OutboxBroker], None]:
        self._rehearsal = Rehearsal(self.brokers)
        async with AsyncExitStack() as stack:
            if not self.with_real and any(map(_is_at_work, self.brokers)):
                configs = [broker.config.broker_config for broker in self.brokers]
                stack.enter_context(standing_in((one, *self._rehearsal.producers_of(one)) for one in configs))
                brokers = list(self.brokers)
            else:
                brokers = await stack.enter_async_context(super()._create_ctx())
            await stack.enter_async_context(self._rehearsal.held())
            yield brokers

    def _fake_start(self, broker: OutboxBroker, *args: Any, **kwargs: Any) -> None:
        super()._fake_start(broker, *args, **kwargs)
        for subscriber in cast("list[OutboxSubscriber]", broker.subscribers):
            if subscriber.served_queues:
                subscriber.make_consumer()  # what is wrong with its options is raised here as by a start

    @staticmethod
    async def _fake_connect(broker: OutboxBroker, *args: Any, **kwargs: Any) -> None:
        return None

    @contextmanager
    def _patch_producer(self, broker: OutboxBroker) -> Iterator[None]:
        config = broker.config.broker_config
        before = config.producer, config.sync_producer
        config.producer, config.sync_producer = self._rehearsal.producers_of(config)
        try:
            yield
        finally:
            config.producer, config.sync_producer = before

    def create_publisher_fake_subscriber(
        self, broker: OutboxBroker, publisher: OutboxPublisher
    ) -> tuple[OutboxSubscriber, bool]:
        found = self._rehearsal.subscriber(publisher.queue)
        return (found, True) if found is not None else (broker.subscriber(publisher.queue, persistent=False), False)


def _is_at_work(broker: OutboxBroker) -> bool:
    """It is running, or it is rehearsing already."""
    config = broker.config.broker_config
    worker = config.worker
    return broker.running or (worker is not None and worker.running) or isinstance(config.producer, RehearsalProducer)
