"""Doing something once a transaction of the caller's has committed.

    todo, with the savepoint around it --release--> with what is around that --commit--> run
                   \\--roll back--> forgotten           \\--roll back--> forgotten

A session is heard by its own events, so it need not have a connection. A connection tells before it commits and never
afterwards, so its transaction is made one that does.
"""

from collections.abc import Iterable, Iterator
from functools import cache
from weakref import WeakKeyDictionary

from sqlalchemy import Connection, NestedTransaction, RootTransaction, event
from sqlalchemy.orm import Session, SessionTransaction
from sqlalchemy.util import await_only
from sqlalchemy.util.concurrency import in_greenlet

from outbox_core.store import OnCommit

_INFO = "outbox.commits"  # in `Session.info`


def after_commit(session: Session | Connection, todo: OnCommit) -> None:
    """Do *todo* after the commit of the transaction in which *session* is; it raises there what it raises."""
    if isinstance(session, Connection):
        _add(session, todo)
        return
    if _INFO not in session.info:
        session.info[_INFO] = _SessionCommits(session)
    session.info[_INFO].add(session, todo)


def _run(todos: Iterable[OnCommit]) -> None:
    """In the commit: awaited, if that is awaited itself."""
    for todo in todos:
        if in_greenlet():
            await_only(todo.run())
        else:
            todo.run_sync()


# Sessions


class _SessionCommits:
    """What waits for the transactions of one session."""

    def __init__(self, session: Session) -> None:
        self._waiting: list[tuple[SessionTransaction, OnCommit]] = []
        self._committed: SessionTransaction | None = None
        event.listen(session, "after_commit", self._commit)
        event.listen(session, "after_transaction_end", self._end)

    def add(self, session: Session, todo: OnCommit) -> None:
        self._waiting.append((_innermost(session), todo))

    def _commit(self, session: Session) -> None:
        """The session cannot be used yet, and an exception would leave it like that for ever."""
        self._committed = _innermost(session)

    def _end(self, session: Session, ended: SessionTransaction) -> None:
        committed = ended is self._committed
        its = [todo for transaction, todo in self._waiting if transaction is ended]
        self._waiting = [waiting for waiting in self._waiting if waiting[0] is not ended]
        if committed and ended.parent is not None:
            self._waiting += [(ended.parent, todo) for todo in its]
        elif committed:
            _run(its)


def _innermost(session: Session) -> SessionTransaction:
    transaction = session.get_nested_transaction() or session.get_transaction()
    assert transaction is not None, "it has begun"
    return transaction


# Connections

_waiting: WeakKeyDictionary[RootTransaction, list[tuple[frozenset[str], OnCommit]]] = WeakKeyDictionary()


def _add(connection: Connection, todo: OnCommit) -> None:
    root = connection.get_transaction()
    assert root is not None, "it has begun"
    if root not in _waiting:
        _waiting[root] = []
        root.__class__ = _telling(type(root))  # type: ignore[arg-type]  # a class is hashable, whatever its instances are
        event.listen(connection, "rollback_savepoint", _forget)
    _waiting[root].append((frozenset(_savepoints(connection)), todo))


@cache
def _telling(kind: type[RootTransaction]) -> type[RootTransaction]:
    """*kind*, running what waits for it after its commit."""

    def commit(self: RootTransaction) -> None:
        kind.commit(self)
        _run(todo for _, todo in _waiting.pop(self, []))

    def rollback(self: RootTransaction) -> None:
        if (
            self.connection.get_transaction() is self
        ):  # "with" calls it after a commit that raised, but this one took place
            kind.rollback(self)

    return type(f"Telling{kind.__name__}", (kind,), {"__slots__": (), "commit": commit, "rollback": rollback})


def _forget(connection: Connection, name: str, context: None) -> None:
    """What was published since the savepoint *name*."""
    root = connection.get_transaction()
    if root is not None and root in _waiting:
        _waiting[root] = [(names, todo) for names, todo in _waiting[root] if name not in names]


def _savepoints(connection: Connection) -> Iterator[str]:
    """The names of those that are open; SQLAlchemy gives each another one."""
    nested: NestedTransaction | None = connection.get_nested_transaction()
    while nested is not None:
        yield nested._savepoint
        nested = nested._previous_nested
