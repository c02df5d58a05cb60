"""Exactly-once effect: what a handler writes, what it publishes and the end of its own message are one transaction.

    begin --> handler --> ack? --yes--> delete the row, if its lease is ours --> commit
                           \\--no---------------------------\\--no--> roll back

A message that is rolled back goes the way of every other: its outcome is settled, or its new owner handles it. But if it
was the database that ended the transaction, for the sake of others (a serialization failure, a deadlock), nothing has
failed: all of it is run again, here and at once (docs/decisions/0009-retry-as-a-whole.md).
"""

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from itertools import count
from time import monotonic
from typing import TypeAlias

from outbox_core.message import Completion, Delivery
from outbox_core.outcome import Ack, Snooze
from outbox_core.store import Store

logger = logging.getLogger("outbox")

TRIES = 10  # runs at least that end in a conflict before that counts as a failure of the handler's
PATIENCE = 5.0  # seconds for which they go on at least: where many want the same row, short runs lose more often
TURN_AFTER = 3  # lost runs; then nobody else of the same consumer begins before this one has come through
DEADLINE = 10.0  # seconds for a transaction to end after its handler has
PAUSE = 0.01  # seconds at most between two runs; whoever waits longer loses to those that begin meanwhile

# Opens the transaction in which a batch is handled. It commits on a normal exit, otherwise it rolls back and raises.
Transaction: TypeAlias = Callable[[Sequence[Delivery]], AbstractAsyncContextManager[object]]


class _RolledBack(Exception):
    """Ends the transaction without anything having failed."""


@dataclass(slots=True)
class _Open:
    """The transaction of the handler that runs here. A task that outlives the handler finds no session in it any more."""

    store: Store
    session: object | None


_open: ContextVar[_Open | None] = ContextVar("outbox_transaction", default=None)


def open_session(store: Store) -> object | None:
    """The session of the transactional handler that runs here, if its transaction is one of *store*."""
    found = _open.get()
    return found.session if found is not None and found.store is store else None


async def in_transaction(
    store: Store,
    batch: Sequence[Delivery],
    handle: Callable[[Sequence[Delivery]], Awaitable[object]],
    transaction: Transaction | None = None,
    turn: asyncio.Lock | None = None,
) -> None:
    """Run *handle*, which votes, in a transaction of *store* that completes *batch*; raises what it or the commit raises.

    *transaction* opens it where the handler has one of its own; None: the store does.
    A run that ends in a conflict with other transactions (`Store.is_conflict`) is undone and forgotten, votes included, and
    begins again in a new transaction. One of many such in a row raises (`TRIES`, `PATIENCE`). *turn* is shared by all that
    may get into each other's way here.
    """
    began = monotonic()
    async with AsyncExitStack() as stack:
        if turn is not None and turn.locked():
            async with turn:
                pass
        for run in count(1):
            try:
                await _run(store, batch, handle, transaction)
            except Exception as error:
                if not store.is_conflict(error):
                    raise
                if run >= TRIES and monotonic() - began > PATIENCE:
                    _warn(batch, run, error)
                    raise
            else:
                return
            _forget_run(batch)
            await asyncio.sleep(random.uniform(0, PAUSE))  # noqa: S311  no secret
            if turn is not None and run == TURN_AFTER:
                await stack.enter_async_context(turn)
            if any(delivery.lease_lost for delivery in batch):
                _give_back(batch)
                return


async def _run(
    store: Store,
    batch: Sequence[Delivery],
    handle: Callable[[Sequence[Delivery]], Awaitable[object]],
    transaction: Transaction | None,
) -> None:
    """One run in one transaction.

    Rolls back unless every message is acked and still ours; then an ack no longer counts, because what it stood for is
    undone: the message comes back at once, and nothing has failed. A commit that fails, or whose answer is lost, counts as
    a failure of the handler; if it took place after all, the rows are gone, so that nothing is repeated.
    """
    end = _End(store)
    try:
        async with store.transaction() if transaction is None else transaction(batch) as session:
            try:
                with _opened(store, session, batch):
                    await handle(batch)
            except asyncio.CancelledError:  # in the middle of a statement, perhaps
                await end.begin(session)
                raise
            await end.begin(session)
            if not await _complete(store, batch, session):
                raise _RolledBack
    except _RolledBack:
        _withdraw_acks(batch, Snooze(0.0))
        _mark(batch, None)
    except BaseException:
        if any(delivery.completion == "asked" for delivery in batch):  # the commit failed, or what follows it
            _withdraw_acks(batch, None)
            _mark(batch, "unknown")
        raise
    else:
        _mark(batch, "committed")
    finally:
        end.over()


class _End:
    """What is left of a transaction when its handler has ended is ours, and has a deadline as every statement of ours.

    A statement that is cancelled does not end on a connection that is silent, nor does a rollback; so that is cut off.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._timer: asyncio.TimerHandle | None = None

    async def begin(self, session: object) -> None:
        try:
            cut = await self._store.cutter(session)
        except Exception:  # it has no connection any more, on which anything could wait
            return
        self._timer = asyncio.get_running_loop().call_later(DEADLINE, cut)

    def over(self) -> None:
        if self._timer is not None:
            self._timer.cancel()


@contextmanager
def _opened(store: Store, session: object, batch: Sequence[Delivery]) -> Iterator[None]:
    """Meanwhile the handler finds *session* with its message, and what it publishes without one is published on it."""
    here = _Open(store, session)
    token = _open.set(here)
    for delivery in batch:
        delivery.session = session
    try:
        yield
    finally:
        here.session = None
        _open.reset(token)


async def _complete(store: Store, batch: Sequence[Delivery], session: object) -> bool:
    """Delete the rows in the transaction; False if it must not be committed."""
    if not all(isinstance(delivery.vote, Ack) for delivery in batch):
        return False
    _mark(batch, "asked")  # from now on a missing row is our own doing
    ours = await store.complete(batch, session)
    return len(ours) == len(batch)


def _withdraw_acks(batch: Sequence[Delivery], instead: Snooze | None) -> None:
    for delivery in batch:
        if isinstance(delivery.vote, Ack):
            delivery.vote = instead


def _mark(batch: Sequence[Delivery], completion: Completion | None) -> None:
    for delivery in batch:
        delivery.completion = completion


def _forget_run(batch: Sequence[Delivery]) -> None:
    """What was decided in it was decided on what a transaction saw that never was."""
    for delivery in batch:
        delivery.vote = None
        delivery.completion = None
        delivery.session = None


def _give_back(batch: Sequence[Delivery]) -> None:
    for delivery in batch:
        delivery.vote = Snooze(0.0)


def _warn(batch: Sequence[Delivery], runs: int, error: Exception) -> None:
    logger.warning(
        "the transaction of message %s in %r has conflicted with others %d times in a row; that counts as a failed attempt",
        ", ".join(str(delivery.id) for delivery in batch),
        batch[0].queue,
        runs,
        exc_info=error,
    )
