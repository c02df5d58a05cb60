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


class ContextValue:
    """A dependency: what FastStream's context has under a name."""

    def __init__(self, name: str, default: Any, initial: Callable[[], Any] | None) -> None:
        self._name = name
        self._default = default
        self._initial = initial

    async def __call__(self, connection: HTTPConnection) -> Any:
        context = connection.scope.get(CONTEXT)
        return self._read_in_route(connection) if context is None else self.read(context)

    def read(self, context: ContextRepo) -> Any:
        """What *context* has; `NoMessage` if that is nothing."""
        value = resolve_context_by_name(self._name, self._default, self._initial, context)
        if value is EMPTY:
            raise NoMessage(
                f"the context has no {self._name!r}; set it with router.context.set_global({self._name!r}, …), "
                "or give a default"
            )
        return value

    def _read_in_route(self, connection: HTTPConnection) -> Any:
        root = self._name.partition(".")[0]
        if root in ("message", "log_context", "handler_"):
            if self._default is not EMPTY:
                return self._default
            raise NoMessage(f"{self._name!r} is part of a message, and a route has none; ask for it in a handler")
        broker = broker_of(connection)
        here: dict[str, Any] = {"broker": broker}
        if root == "logger":
            broker._setup_logger()  # does nothing once the broker is connected
            here["logger"] = broker.config.logger.logger.logger
        with broker.context.scopes(here.items()):
            return self.read(broker.context)


def Context(name: str, *, default: Any = EMPTY, initial: Callable[[], Any] | None = None) -> Any:  # noqa: N802  a marker
    """What FastStream's context has under *name*, such as "message.headers" or a global of the application's.

    *default*: where there is nothing of that name; *initial* makes it, once for all. Raises `NoMessage` in a route for
    what only a message has.
    """
    return Depends(ContextValue(name, default, initial))


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
