"""Annotated shortcuts that FastAPI resolves, in handlers and in routes alike, without a thread.

In a handler they read FastStream's context of the message; in a route what the broker and the router have.
"""

import logging
from collections.abc import Callable
from typing import Annotated, Any, cast

from fastapi import Depends
from starlette.requests import HTTPConnection

from outbox_core.faststream import OutboxMessage as Message
from outbox_core.faststream._compat import EMPTY, ContextRepo, resolve_context_by_name
from outbox_fastapi.errors import NoMessage, NoRouter
from outbox_fastapi.request import BROKER, CONTEXT
from outbox_sqlalchemy import OutboxBroker as Broker


def Context(name: str, *, default: Any = EMPTY, initial: Callable[[], Any] | None = None) -> Any:  # noqa: N802  a marker
    """What FastStream's context has under *name*, such as "message.headers" or a global of the application's.

    *default*: where there is nothing of that name; *initial* makes it, once for all. Raises `NoMessage` in a route for
    what only a message has.
    """

    async def resolve(connection: HTTPConnection) -> Any:
        context = connection.scope.get(CONTEXT)
        if context is None:
            return _resolve_in_route(connection, name, default, initial)
        return _found(name, resolve_context_by_name(name, default, initial, context))

    return Depends(resolve)


def _resolve_in_route(connection: HTTPConnection, name: str, default: Any, initial: Callable[[], Any] | None) -> Any:
    if name.partition(".")[0] in ("message", "log_context", "handler_"):
        if default is not EMPTY:
            return default
        raise NoMessage(f"{name!r} is part of a message, and a route has none; ask for it in a handler")
    broker = broker_of(connection)
    here = (("broker", broker), ("logger", broker.config.logger.logger.logger))
    with broker.context.scopes(here):
        return _found(name, resolve_context_by_name(name, default, initial, broker.context))


def _found(name: str, value: Any) -> Any:
    if value is EMPTY:
        raise NoMessage(
            f"the context has no {name!r}; set it with router.broker.context.set_global({name!r}, …), or give a default"
        )
    return value


def broker_of(connection: HTTPConnection) -> Broker:
    """The broker of the router around this route, or that of the application's only router."""
    broker = connection.scope.get(BROKER) or getattr(connection.state, "broker", None)
    if broker is None:
        raise NoRouter(
            "no OutboxRouter serves this route; declare it on one, or include one into the application, with "
            "setup_state=True, so that its broker is in request.state"
        )
    return cast("Broker", broker)


Logger = Annotated[logging.Logger, Context("logger")]
ContextRepository = Annotated[ContextRepo, Context("context")]
OutboxBroker = Annotated[Broker, Context("broker")]
OutboxMessage = Annotated[Message, Context("message")]
