"""One ASGI application: the site, a worker that lives as long as the server, health and documentation.

    # asgi.py
    application = OutboxASGI(health_path="/health", asyncapi_path="/asyncapi")

Django's own ASGI application knows no lifespan, so something in front of it has to start and stop the worker.
"""

import logging
import signal
from typing import TYPE_CHECKING

from django.core.asgi import get_asgi_application
from faststream.asgi import AsgiFastStream, AsyncAPIRoute, make_ping_asgi

from outbox_django.handlers import load_handlers
from outbox_django.settings import outbox_settings

if TYPE_CHECKING:
    from faststream.asgi.types import ASGIApp, Receive, Scope, Send
    from faststream.specification.base import SpecificationFactory

logger = logging.getLogger("outbox")

PING_TIMEOUT = 5.0  # seconds


class OutboxASGI(AsgiFastStream):
    """The project's broker as FastStream's ASGI application, with the site wherever it has no route.

    *site*: what serves the site; None: Django's `get_asgi_application()`. *health_path*: answers with 204 while the worker
    makes progress and its database answers within 5 seconds, and with 500 otherwise. *asyncapi_path*: where the AsyncAPI
    document is; try-it-out, a POST for anybody, is there only if an `AsyncAPIRoute` says so. *specification*: the document's
    title and so on. Paths are exact, and come before the site's; None: no such path. `mount` adds more.

    Making one sets up Django, for which `DJANGO_SETTINGS_MODULE` must be known, and loads the handlers of all apps.
    """

    def __init__(
        self,
        site: "ASGIApp | None" = None,
        *,
        health_path: str | None = None,
        asyncapi_path: str | AsyncAPIRoute | None = None,
        specification: "SpecificationFactory | None" = None,
    ) -> None:
        django = get_asgi_application()
        self._site: ASGIApp = django if site is None else site  # type: ignore[assignment]  # Django's types are its own
        broker = load_handlers()
        if not broker.subscribers:
            logger.warning(
                "there are no handlers in any module %r of an installed app; this process only publishes",
                outbox_settings().autodiscover,
            )
        if isinstance(asyncapi_path, str):
            asyncapi_path = AsyncAPIRoute(asyncapi_path, try_it_out_path=None)
        super().__init__(broker, asyncapi_path=asyncapi_path, specification=specification, logger=logger)
        if health_path is not None:
            self.mount(health_path, make_ping_asgi(broker, timeout=PING_TIMEOUT, include_in_schema=False))

    async def not_found(self, scope: "Scope", receive: "Receive", send: "Send") -> None:
        """Where FastStream would answer with 404, the site answers."""
        await self._site(scope, receive, send)

    def exit(self) -> None:
        """A handler called `sys.exit()`: have the server stop, which drains; FastStream's own does nothing here."""
        logger.error("a handler raised SystemExit; stopping this process")
        signal.raise_signal(signal.SIGTERM)
