"""An application that is served for real: uvicorn on a port of its own, in the test's event loop, and a client for it."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import httpx
import uvicorn
from starlette.types import ASGIApp, Receive, Scope, Send

from tests.places import PATIENCE, until


@asynccontextmanager
async def serving(app: ASGIApp, patience: float = 4 * PATIENCE) -> AsyncIterator[httpx.AsyncClient]:
    """A client of *app*, started before and stopped after; no test waits longer than *patience* seconds.

    Raises what the application raises when it starts or stops, which uvicorn only logs.
    """
    watched = _Watched(app)
    server = uvicorn.Server(uvicorn.Config(watched, port=0, lifespan="on", log_config=None, ws="none"))
    async with asyncio.timeout(patience):
        served = asyncio.create_task(_serve(server))
        try:
            await until(lambda: server.started or served.done(), True, patience)
            watched.raise_failure()
            host, port = server.servers[0].sockets[0].getsockname()
            async with httpx.AsyncClient(base_url=f"http://{host}:{port}", trust_env=False) as client:
                yield client
        finally:
            server.should_exit = True
            await served
        watched.raise_failure()


async def _serve(server: uvicorn.Server) -> None:
    with suppress(SystemExit):  # of a start that failed; raised in a task, it would end the event loop
        await server.serve()


class _Watched:
    """*app*, and what its lifespan raised."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._failure: BaseException | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await self._app(scope, receive, send)
        except BaseException as error:
            if scope["type"] == "lifespan":
                self._failure = error
            raise

    def raise_failure(self) -> None:
        if self._failure is not None:
            raise self._failure
