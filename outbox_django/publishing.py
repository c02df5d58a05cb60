"""Publishing from Django code: one INSERT on the connection of the current transaction, without an event loop.

The same envelope as everywhere, byte for byte; FastStream is not imported, and its publish middlewares do not run
(`broker.publish_sync` runs them).
"""

import warnings
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, Unpack

from django.core.signals import setting_changed
from django.db.backends.base.base import BaseDatabaseWrapper

from outbox_core.envelope import Envelope, PublishOptions, check_options, check_queue, refuse_for_batches
from outbox_core.message import NewMessage
from outbox_django.errors import NotInTransaction
from outbox_django.lanes import in_thread
from outbox_django.settings import TransactionPolicy, outbox_settings
from outbox_django.store import DjangoStore, in_atomic


def publish(
    message: Any,
    queue: str,
    *,
    using: str | None = None,
    standalone: bool = False,
    headers: Mapping[str, str] | None = None,
    **options: Unpack[PublishOptions],
) -> int | None:
    """Insert *message* in the current transaction; the row's id, or None if a live timer has the same id.

    *using*: the alias of the database; None: `OUTBOX["DATABASE"]`, or where the database routers write the outbox.
    *standalone*: this message belongs to no transaction, so none is asked for. The other options are those of
    `OutboxBroker.publish`.

    Raises `NotInTransaction` outside `atomic()`, `InvalidMessage`, `WrongType`, `CannotEncode` or `PayloadTooLarge` before
    anything is sent, and `SchemaMismatch` or `ReadOnlyDatabase` where the database has no such table or takes no writes.
    """
    return _insert(_compose([message], queue, headers, options), queue, using, standalone)[0]


def publish_batch(
    *messages: Any,
    queue: str,
    using: str | None = None,
    standalone: bool = False,
    headers: Mapping[str, str] | None = None,
    **options: Unpack[PublishOptions],
) -> list[int | None]:
    """Insert all *messages* in one statement or none of them; their row ids, in order. See `publish`."""
    return _insert(_compose_all(messages, queue, headers, options), queue, using, standalone)


async def apublish(
    message: Any,
    queue: str,
    *,
    using: str | None = None,
    standalone: bool = False,
    headers: Mapping[str, str] | None = None,
    **options: Unpack[PublishOptions],
) -> int | None:
    """`publish` from asynchronous code, in the thread of its database connection.

    Django has no transactions around asynchronous code, so outside a transactional handler this needs `standalone=True`;
    to publish with other writes, put both into one function under `atomic()` and call that with `sync_to_async`.
    """
    return (await in_thread(_insert, _compose([message], queue, headers, options), queue, using, standalone))[0]


async def apublish_batch(
    *messages: Any,
    queue: str,
    using: str | None = None,
    standalone: bool = False,
    headers: Mapping[str, str] | None = None,
    **options: Unpack[PublishOptions],
) -> list[int | None]:
    """`publish_batch` from asynchronous code; see `apublish`."""
    return await in_thread(_insert, _compose_all(messages, queue, headers, options), queue, using, standalone)


def _compose_all(
    messages: Sequence[Any], queue: str, headers: Mapping[str, str] | None, options: PublishOptions
) -> list[NewMessage]:
    check_queue(queue)
    refuse_for_batches(options)
    return _compose(messages, queue, headers, options)


def _compose(
    messages: Sequence[Any], queue: str, headers: Mapping[str, str] | None, options: PublishOptions
) -> list[NewMessage]:
    check_options(options)
    shared: dict[str, Any] = {**options}
    message_id = shared.pop("message_id", None)
    envelope = Envelope(queue, headers=headers, max_payload_bytes=outbox_settings().max_payload_bytes, **shared)
    return [envelope.seal(message, message_id) for message in messages]


def _insert(messages: Sequence[NewMessage], queue: str, using: str | None, standalone: bool) -> list[int | None]:
    if not messages:
        return []
    store = publishing_store()
    if not standalone:
        check_transaction(store.connection(using), queue, outbox_settings().require_transaction, stacklevel=4)
    return store.insert_sync(messages, using)


@cache
def publishing_store() -> DjangoStore:
    """The store of `settings.OUTBOX`, for publishing; nothing is connected by it."""
    settings = outbox_settings()
    return DjangoStore(settings.database, settings.tables, notify=settings.notify, insert_only=settings.insert_only)


def check_transaction(
    connection: BaseDatabaseWrapper, queue: str, policy: TransactionPolicy, *, stacklevel: int = 2
) -> None:
    """Apply *policy* to a publish on *connection*: `NotInTransaction`, a warning, or nothing."""
    if policy == "ignore" or in_transaction(connection):
        return
    text = (
        f"publish to {queue!r} is outside a transaction on database {connection.alias!r}, so it would stay even if what "
        f'it tells of is rolled back; wrap both in "with transaction.atomic(using={connection.alias!r}):", '
        "or pass standalone=True if that is what you want"
    )
    if policy == "error":
        raise NotInTransaction(text, connection.alias)
    warnings.warn(text, RuntimeWarning, stacklevel=stacklevel)


def in_transaction(connection: BaseDatabaseWrapper) -> bool:
    """Whether a rollback could still take the message back; the transaction that Django's TestCase opens does not count."""
    if connection.in_atomic_block:
        return in_atomic(connection)
    return not connection.get_autocommit()


def _forget(*, setting: str, **_: object) -> None:
    if setting == "OUTBOX":
        publishing_store.cache_clear()


setting_changed.connect(_forget, dispatch_uid="outbox_django.publishing")
