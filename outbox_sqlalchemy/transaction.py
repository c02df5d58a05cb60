"""`TransactionMiddleware`: handlers in sessions of the user's own factory.

new_session = async_sessionmaker(engine, expire_on_commit=False)
broker = OutboxBroker(engine, middlewares=[TransactionMiddleware(new_session)])
"""

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from inspect import isasyncgenfunction, iscoroutinefunction, isgeneratorfunction

from sqlalchemy import Engine
from sqlalchemy.ext.asyncio import (
    AsyncConnection,
    AsyncEngine,
    AsyncSession,
    async_scoped_session,
    async_sessionmaker,
)
from sqlalchemy.orm import Session, scoped_session, sessionmaker

from outbox_core.errors import OptionError, WrongType
from outbox_core.faststream.transaction import TransactionMiddleware as CoreTransactionMiddleware
from outbox_core.message import Delivery
from outbox_core.store import Store
from outbox_sqlalchemy.sessions import check_engine
from outbox_sqlalchemy.store import SqlAlchemyStore

_FACTORY = "an async_sessionmaker, or a function that returns a new AsyncSession"


class TransactionMiddleware(CoreTransactionMiddleware):
    """Makes each subscriber of its broker or router transactional, in sessions that *session_factory* makes.

    As with `transactional=True`, which has plain sessions on the broker's engine: the handler finds its session as
    `message.session` or as an argument annotated `OutboxSession`; what it writes there, what is published meanwhile, and the
    end of its message are committed together, or none of them. *session_factory*: an `async_sessionmaker` on the outbox's
    database, or a function that returns a new `AsyncSession`. `OptionError` at the start where there is a second opinion:
    `transactional=True`, another such middleware, `AckPolicy.ACK_FIRST`, another database, or a broker on Django.
    """

    def __init__(self, session_factory: Callable[[], AsyncSession]) -> None:
        _check_factory(session_factory)
        self._session_factory = session_factory

    def open(self, batch: Sequence[Delivery], /) -> AbstractAsyncContextManager[AsyncSession]:
        return self._opened()

    @asynccontextmanager
    async def _opened(self) -> AsyncIterator[AsyncSession]:
        session = self._session_factory()
        if not isinstance(session, AsyncSession):
            raise WrongType("what session_factory returns", "an AsyncSession", session)
        async with session, session.begin():
            yield session

    def check(self, store: Store | None) -> None:
        if store is not None and not isinstance(store, SqlAlchemyStore):
            raise OptionError(
                f"TransactionMiddleware opens SQLAlchemy sessions, and this broker is on a {type(store).__name__}; use "
                "transactional=True, which opens what that is on"
            )
        bind = self._session_factory.kw.get("bind") if isinstance(self._session_factory, async_sessionmaker) else None
        if isinstance(bind, AsyncEngine):
            check_engine(bind.sync_engine, None if store is None else store.engine)


def _check_factory(given: object) -> None:
    if isinstance(given, sessionmaker | scoped_session | Session | Engine):
        raise WrongType("session_factory", _FACTORY, given, "handlers are awaited, and their session with them")
    if isinstance(given, AsyncEngine):
        raise WrongType("session_factory", _FACTORY, given, "pass async_sessionmaker(engine)")
    if isinstance(given, AsyncSession | AsyncConnection):
        raise WrongType("session_factory", _FACTORY, given, "each message has a session of its own")
    if isinstance(given, async_scoped_session):
        raise WrongType("session_factory", _FACTORY, given, "pass its session_factory; its sessions are shared")
    if isasyncgenfunction(given) or isgeneratorfunction(given) or iscoroutinefunction(given):
        raise WrongType("session_factory", _FACTORY, given, "pass what it makes its sessions with")
    if not callable(given):
        raise WrongType("session_factory", _FACTORY, given)
