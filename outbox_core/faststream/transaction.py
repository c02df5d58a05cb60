"""`TransactionMiddleware`: handlers in a transaction that the user's own factory opens, which completes their message.

    begin --> FastStream's pipeline: middlewares, handler, its replies --> vote --> delete the row --> commit

It stands among the middlewares of a broker or router, because that is where FastStream's users say what is around their
handlers. But FastStream publishes replies outside of `consume_scope`, and the vote is known after that; so the subscriber
reads the factory here and opens the transaction around all of it, as it does for `transactional=True`
(`outbox_core.completion`).
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any

from faststream import BaseMiddleware

from outbox_core.errors import OptionError
from outbox_core.faststream._compat import ContextRepo
from outbox_core.message import Delivery
from outbox_core.store import Store


class TransactionMiddleware(ABC):
    """What an adapter's middleware of that name is to its subscribers."""

    def __call__(self, msg: Any, /, *, context: ContextRepo) -> BaseMiddleware:
        return BaseMiddleware(msg, context=context)

    @abstractmethod
    def open(self, batch: Sequence[Delivery], /) -> AbstractAsyncContextManager[object]:
        """The transaction in which *batch* is handled; it commits on a normal exit, otherwise it rolls back and raises."""

    @abstractmethod
    def check(self, store: Store | None) -> None:
        """Raise what is wrong with its transactions for a broker on *store*; None: it has no database."""


def transaction_middleware(middlewares: Sequence[Any], name: str) -> TransactionMiddleware | None:
    """The one among *middlewares*; `OptionError` if there are several. *name*: of whose they are."""
    found = [one for one in middlewares if isinstance(one, TransactionMiddleware)]
    if len(found) > 1:
        raise OptionError(
            f"{name} has {len(found)} TransactionMiddlewares, of its broker and of the routers around it, and a message is "
            "completed in one transaction; keep one of them"
        )
    return found[0] if found else None
