"""Messages from elsewhere, each received once, in the `atomic()` of its handler's writes.

    with transaction.atomic():
        if receive(message_id, "billing"):
            ...  # the handler's own writes

The record of a message and the writes that it causes are committed together or not at all. Needs no event loop and no
FastStream, so that a webhook's view can use it.
"""

from uuid import UUID

from outbox_core.envelope import check_consumer, check_foreign_id
from outbox_django.errors import NotInTransaction
from outbox_django.lanes import in_thread
from outbox_django.publishing import in_transaction, publishing_store


def receive(message_id: str | UUID, consumer: str, *, using: str | None = None) -> bool:
    """Record the message in the current transaction: True if it is new to *consumer*, False if it is to be skipped.

    *consumer*: the name of who handles the message; two consumers each handle it once. *using*: the alias of the database
    to which the handler writes; None: `OUTBOX["DATABASE"]`, or where the database routers write the outbox. If another
    transaction that received the message is open, this waits for its end: False once that has committed, True if it was
    rolled back. At REPEATABLE READ and SERIALIZABLE, PostgreSQL reports a serialization failure instead of False; run the
    transaction again, as for any.

    Raises `InvalidMessage` or `WrongType` before anything is sent, `NotInTransaction` outside `atomic()`, whatever
    `OUTBOX["REQUIRE_TRANSACTION"]` says of publishing, and `SchemaMismatch` where the database has no such table.
    """
    return _receive(check_foreign_id(message_id), check_consumer(consumer), using)


async def areceive(message_id: str | UUID, consumer: str, *, using: str | None = None) -> bool:
    """`receive` from asynchronous code, in the thread of its database connection: in a transactional handler.

    Elsewhere Django has no transactions around asynchronous code; put `receive` and the writes into one function under
    `atomic()`, and call that with `sync_to_async`.
    """
    return await in_thread(_receive, check_foreign_id(message_id), check_consumer(consumer), using)


def _receive(message_id: str, consumer: str, using: str | None) -> bool:
    store = publishing_store()
    connection = store.connection(using)
    if not in_transaction(connection):
        raise NotInTransaction(
            f"receive by {consumer!r} is outside a transaction on database {connection.alias!r}, so the message would "
            "count as received even if what it causes is rolled back; wrap both in "
            f'"with transaction.atomic(using={connection.alias!r}):"',
            connection.alias,
        )
    return store.receive_sync(message_id, consumer, using)
