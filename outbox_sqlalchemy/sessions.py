"""What a caller may pass as *session*, and what is wrong with it if it cannot be used.

Nothing here opens, flushes or commits anything of the caller's.
"""

from collections.abc import Callable
from typing import TypeVar

from sqlalchemy import URL, Connection
from sqlalchemy.exc import InvalidRequestError, ResourceClosedError, UnboundExecutionError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, AsyncSession, async_scoped_session
from sqlalchemy.orm import Session, scoped_session

from outbox_core.errors import NoTransaction, WrongDatabase, WrongType

T = TypeVar("T")

_ASYNC = "an AsyncSession or AsyncConnection"
_SYNC = "a Session or Connection"


async def use_async(session: object, work: Callable[[Connection], T]) -> T:
    """Run *work* on the session's own connection and transaction."""
    if isinstance(session, async_scoped_session):
        session = session()
    if isinstance(session, AsyncSession):
        return await session.run_sync(lambda sync: work(connection_of(sync)))
    if isinstance(session, AsyncConnection):
        return await _started(session).run_sync(lambda sync: work(_usable(sync)))
    if isinstance(session, Session | Connection | scoped_session):
        raise WrongType("session", _ASYNC, session, "use publish_sync(...) with a synchronous session")
    if isinstance(session, AsyncEngine):
        raise WrongType("session", _ASYNC, session, "pass a session or connection of it, in your transaction")
    raise WrongType("session", f"{_ASYNC}, or None", session)


def use_sync(session: object, work: Callable[[Connection], T]) -> T:
    """The same for synchronous code."""
    if isinstance(session, scoped_session):
        session = session()
    if isinstance(session, Session | Connection):
        return work(connection_of(session))
    if isinstance(session, AsyncSession | AsyncConnection):
        raise WrongType("session", _SYNC, session, "use await publish(...) with an asynchronous session")
    raise WrongType("session", _SYNC, session)


def connection_of(session: Session | Connection) -> Connection:
    """The connection on which the session's transaction is open; the session begins one by itself, as for any query."""
    if isinstance(session, Connection):
        return _usable(session)
    try:
        return _usable(session.connection())
    except UnboundExecutionError as error:
        raise NoTransaction(
            f"the session is bound to no engine: {error}; if it has one for each table, pass its connection instead"
        ) from error
    except (InvalidRequestError, ResourceClosedError) as error:
        raise NoTransaction(f"the session cannot be used, so nothing was published: {error}") from error


def _started(connection: AsyncConnection) -> AsyncConnection:
    if connection.sync_connection is None:
        raise NoTransaction('the connection was never opened; publish inside "async with engine.begin() as connection"')
    return connection


def _usable(connection: Connection) -> Connection:
    if connection.closed:
        raise NoTransaction("the connection is closed, so nothing was published; publish before you close it")
    if connection.invalidated:
        raise NoTransaction("the connection was lost and its transaction with it, so nothing was published")
    if _is_autocommit(connection):
        raise NoTransaction(
            "the connection is in AUTOCOMMIT, so the message would not be atomic with anything; "
            "publish in a transaction, or without a session"
        )
    return connection


def _is_autocommit(connection: Connection) -> bool:
    if connection.get_execution_options().get("isolation_level") == "AUTOCOMMIT":
        return True
    # An engine in autocommit says so nowhere, but every driver of PostgreSQL has the attribute. SQLite's own is no proof:
    # SQLAlchemy's recipe for its savepoints switches it to autocommit and begins by hand.
    driver = connection.connection.dbapi_connection
    return connection.dialect.name == "postgresql" and getattr(driver, "autocommit", False) is True


def check_same_database(connection: Connection, engine: AsyncEngine | None) -> None:
    """`WrongDatabase` if the broker's engine is for another database than the session's."""
    if engine is None or connection.engine is engine.sync_engine:
        return
    ours, theirs = _place(engine.url), _place(connection.engine.url)
    if ours != theirs:
        raise WrongDatabase(
            f"the session is on {describe(connection.engine.url)}, the broker on {describe(engine.url)}; "
            "publish on a session of the broker's database, or make a broker for this one"
        )


def describe(url: URL) -> str:
    """Where a database is, without user and password."""
    host = f"{url.host}:{url.port}" if url.host and url.port else url.host or ""
    return f"{url.get_backend_name()}://{host}/{url.database or ''}"


def _place(url: URL) -> tuple[str, str, int | None, str | None]:
    host = url.host or str(url.query.get("host", "localhost"))
    host = "localhost" if host in ("127.0.0.1", "::1") else host
    port = url.port or (5432 if url.get_backend_name() == "postgresql" else None)
    return url.get_backend_name(), host, port, url.database
