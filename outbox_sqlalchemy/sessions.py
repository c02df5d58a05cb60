"""What a caller may pass as *session*, to publish or to receive, and what is wrong with it if it cannot be used.

Nothing here opens, flushes or commits anything of the caller's.
"""

from collections.abc import Callable
from typing import TypeVar

from sqlalchemy import URL, Connection, Engine
from sqlalchemy.exc import InvalidRequestError, ResourceClosedError, UnboundExecutionError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, AsyncSession, async_scoped_session
from sqlalchemy.orm import Session, scoped_session

from outbox_core.errors import NoTransaction, WrongDatabase, WrongType

T = TypeVar("T")

_ASYNC = "an AsyncSession or AsyncConnection"
_SYNC = "a Session or Connection"
_AUTOCOMMIT = (
    "the connection is in AUTOCOMMIT, so the message would not be atomic with anything; "
    "use one in a transaction (a publish of its own needs no session)"
)


async def use_async(session: object, work: Callable[[Connection], T]) -> T:
    """Run *work* on the session's own connection and transaction."""
    return await asynchronous(session).run_sync(lambda sync: work(connection_of(sync)))


def use_sync(session: object, work: Callable[[Connection], T]) -> T:
    """The same for synchronous code."""
    return work(connection_of(synchronous(session)))


def asynchronous(session: object) -> AsyncSession | AsyncConnection:
    """*session*, if asynchronous code can publish on it; its `run_sync` leads to a `Session` or `Connection`."""
    if isinstance(session, async_scoped_session):
        session = session()
    if isinstance(session, AsyncSession):
        return session
    if isinstance(session, AsyncConnection):
        return _started(session)
    if isinstance(session, Session | Connection | scoped_session):
        raise WrongType(
            "session", _ASYNC, session, "use publish_sync(...) or receive_sync(...) with a synchronous session"
        )
    if isinstance(session, AsyncEngine):
        raise WrongType("session", _ASYNC, session, "pass a session or connection of it, in your transaction")
    raise WrongType("session", f"{_ASYNC}, or None", session)


def synchronous(session: object) -> Session | Connection:
    """*session*, if synchronous code can publish on it."""
    if isinstance(session, scoped_session):
        session = session()
    if isinstance(session, Session | Connection):
        return session
    if isinstance(session, AsyncSession | AsyncConnection):
        raise WrongType(
            "session", _SYNC, session, "use await publish(...) or receive(...) with an asynchronous session"
        )
    raise WrongType("session", _SYNC, session)


def connection_of(session: Session | Connection) -> Connection:
    """The connection on which the session's transaction is open; the session begins one by itself, as for any query."""
    if isinstance(session, Connection):
        return _usable(session)
    try:
        return _usable(session.connection())
    except (UnboundExecutionError, InvalidRequestError, ResourceClosedError) as error:
        raise _named(error) from error


def in_transaction(session: Session | Connection) -> Session | Connection:
    """*session* in a transaction, as after `connection_of`, but a `Session` is not connected by it."""
    if isinstance(session, Connection):
        connection = _usable(session)
        if not connection.in_transaction():
            connection.begin()
        return connection
    try:
        place_of(session)
        if not session.in_transaction():
            _begin(session)
    except (UnboundExecutionError, InvalidRequestError, ResourceClosedError) as error:
        raise _named(error) from error
    if not session.is_active:
        raise NoTransaction("the session cannot be used after an error, so nothing was written; roll it back first")
    return session


def place_of(session: Session | Connection) -> Connection | Engine:
    """What the session is bound to."""
    bind = session if isinstance(session, Connection) else session.get_bind()
    if isinstance(bind, Connection):
        return _usable(bind)
    _refuse_autocommit(bind)
    return bind


def _begin(session: Session) -> None:
    if not session.autobegin:
        raise NoTransaction('the session begins no transaction by itself; use it inside "async with session.begin()"')
    session.begin()


def _named(error: Exception) -> NoTransaction:
    if isinstance(error, UnboundExecutionError):
        return NoTransaction(
            f"the session is bound to no engine: {error}; if it has one for each table, pass its connection instead"
        )
    return NoTransaction(f"the session cannot be used, so nothing was written: {error}")


def _started(connection: AsyncConnection) -> AsyncConnection:
    if connection.sync_connection is None:
        raise NoTransaction('the connection was never opened; use it inside "async with engine.begin() as connection"')
    return connection


def _usable(connection: Connection) -> Connection:
    if connection.closed:
        raise NoTransaction("the connection is closed, so nothing was written; use it before you close it")
    if connection.invalidated:
        raise NoTransaction("the connection was lost and its transaction with it, so nothing was written")
    if _is_autocommit(connection):
        raise NoTransaction(_AUTOCOMMIT)
    return connection


def _is_autocommit(connection: Connection) -> bool:
    if _is_set_to_autocommit(connection):
        return True
    # An engine in autocommit says so nowhere, but every driver of PostgreSQL has the attribute. SQLite's own is no proof:
    # SQLAlchemy's recipe for its savepoints switches it to autocommit and begins by hand.
    driver = connection.connection.dbapi_connection
    return connection.dialect.name == "postgresql" and getattr(driver, "autocommit", False) is True


def _is_set_to_autocommit(place: Connection | Engine) -> bool:
    return place.get_execution_options().get("isolation_level") == "AUTOCOMMIT"


def check_same_database(connection: Connection | Engine, engine: AsyncEngine | None) -> None:
    """`WrongDatabase` if the broker's engine is for another database than the session's."""
    if engine is None or connection.engine is engine.sync_engine:
        return
    ours, theirs = _place(engine.url), _place(connection.engine.url)
    if ours != theirs:
        raise WrongDatabase(
            f"the session is on {describe(connection.engine.url)}, the broker on {describe(engine.url)}; "
            "publish on a session of the broker's database, or make a broker for this one"
        )


def check_engine(theirs: Engine, ours: AsyncEngine | None) -> None:
    """Whether messages of the broker with the engine *ours* can be completed in sessions on *theirs*, before there is one."""
    _refuse_autocommit(theirs)
    check_same_database(theirs, ours)


def _refuse_autocommit(place: Engine) -> None:
    if _is_set_to_autocommit(place):
        raise NoTransaction(_AUTOCOMMIT)


def describe(url: URL) -> str:
    """Where a database is, without user and password."""
    host = f"{url.host}:{url.port}" if url.host and url.port else url.host or ""
    return f"{url.get_backend_name()}://{host}/{url.database or ''}"


def _place(url: URL) -> tuple[str, str, int | None, str | None]:
    host = url.host or str(url.query.get("host", "localhost"))
    host = "localhost" if host in ("127.0.0.1", "::1") else host
    port = url.port or (5432 if url.get_backend_name() == "postgresql" else None)
    return url.get_backend_name(), host, port, url.database
