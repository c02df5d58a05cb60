"""The project's handlers on the caller's own connection, without a worker: `outbox_core.inline` on Django.

What handlers write is in the caller's transaction, if there is one, and so are the outcomes of their messages.
"""

from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, contextmanager
from typing import TYPE_CHECKING, cast

from django.db import DatabaseError, connections

from outbox_core import inline
from outbox_core.events import Handled
from outbox_core.slots import Consumer
from outbox_django.expressions import Now
from outbox_django.handlers import load_handlers
from outbox_django.lanes import in_thread, in_threads
from outbox_django.models import OutboxMessage
from outbox_django.store import DjangoStore, InlineStore

if TYPE_CHECKING:
    from outbox_core.faststream.subscriber import OutboxSubscriber
    from outbox_django.faststream import OutboxBroker


async def drain(alias: str, queues: Sequence[str], *, delayed: bool) -> AsyncGenerator[Handled, None]:
    """Handle what is due in *queues*, or in all that have handlers, until nothing is; each run, once it is settled.

    *delayed*: then what is scheduled next, as if its time had come, and so on; but no message that has been handled here.
    """
    broker = load_handlers()
    await broker.connect()  # nothing is opened by it: FastStream makes its loggers ready
    store = InlineStore(alias, notify=False)
    with _consumers(broker, store, queues) as consumers:
        link = store.borrowed_link()
        every = [queue for consumer in consumers for queue in consumer.options.queues]
        seen: set[int] = set()
        while True:
            async for handled in inline.drain(link, consumers):
                seen.add(handled.delivery.id)
                yield handled
            if not delayed or (hastened := await in_thread(_hasten, alias, every, seen)) is None:
                return
            seen.add(hastened)


@contextmanager
def _consumers(broker: "OutboxBroker", store: DjangoStore, queues: Sequence[str]) -> Iterator[list[Consumer]]:
    """The broker's handlers of *queues*, on *store*, and in the caller's thread instead of in lanes."""
    config = broker.config.broker_config
    before = config.store, config.lane, config.serves

    def lane() -> AbstractAsyncContextManager[None]:
        return in_threads(_undoing_what_broke(store.alias))

    try:
        config.store, config.lane = store, lane
        broker.serve(queues or None)
        subscribers = cast("list[OutboxSubscriber]", broker.subscribers)
        yield [one.make_consumer() for one in subscribers if one.served_queues and one.calls]
    finally:
        config.store, config.lane, config.serves = before


@contextmanager
def _undoing_what_broke(alias: str) -> Iterator[None]:
    """Around a handler: a statement that fails takes this handler's writes with it, and not the caller's transaction.

    In a worker, a handler has a connection of its own, and its message is settled on another one. This is a savepoint
    without `atomic()`, which `publish` would take for the handler's.
    """
    connection = connections[alias]
    savepoint = cast("str", connection.savepoint())  # None in autocommit, with which the others do nothing
    try:
        yield
    finally:
        try:
            connection.savepoint_commit(savepoint)
        except DatabaseError:
            # PostgreSQL refuses everything after a statement that failed; Django, after an inner atomic() without savepoint.
            connection.needs_rollback = False
            connection.savepoint_rollback(savepoint)


def _hasten(alias: str, queues: Sequence[str], seen: set[int]) -> int | None:
    """Make the message due that is scheduled next, except those *seen*; its id, or None if there is none."""
    scheduled = OutboxMessage.objects.using(alias).filter(
        queue__in=queues, failure_reason__isnull=True, leased_until__isnull=True
    )
    message = scheduled.exclude(id__in=seen).order_by("next_attempt_at", "id").first()
    if message is None:
        return None
    scheduled.filter(id=message.id).update(next_attempt_at=Now())
    return int(message.id)
