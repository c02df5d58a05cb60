"""`OutboxRouter`: FastAPI's router, with a broker of its own that starts and stops with the application.

    app.include_router(router)      its routes are served, its handlers consume

It is an `APIRouter` in every respect. FastStream's FastAPI plugin has no part in it.
"""

from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import timedelta
from enum import Enum
from inspect import isawaitable, signature
from typing import Any, TypedDict, TypeVar, Unpack, cast

from fastapi import APIRouter, Depends, FastAPI, params
from fastapi.routing import APIRoute
from faststream.specification import AsyncAPI
from sqlalchemy import Table
from sqlalchemy.ext.asyncio import AsyncEngine
from starlette.requests import HTTPConnection
from starlette.responses import Response
from starlette.routing import BaseRoute
from starlette.types import ASGIApp, Lifespan

from outbox_core.errors import OptionError, UnknownOption, WrongType
from outbox_core.faststream import OutboxPublisher, OutboxSubscriber
from outbox_core.faststream._compat import ContextRepo
from outbox_core.faststream.broker import SharedOptions
from outbox_core.faststream.registrator import OutboxRegistrator
from outbox_core.faststream.router import PublisherOptions, RouteOptions
from outbox_fastapi.documents import Documents
from outbox_fastapi.injection import BackgroundTasksMiddleware, FastAPIInjection
from outbox_fastapi.parameters import name_of
from outbox_fastapi.request import BROKER
from outbox_fastapi.responses import ResponseModel, ResponseOptions
from outbox_sqlalchemy import OutboxBroker, OutboxTables
from outbox_sqlalchemy.tables import names_of

Hook = TypeVar("Hook", bound=Callable[[Any], Mapping[str, Any] | Awaitable[Mapping[str, Any] | None] | None])


class ApiRouterOptions(TypedDict, total=False):
    """The keyword arguments of FastAPI's `APIRouter`, but for `lifespan`. The last three are newer than FastAPI 0.115."""

    prefix: str
    tags: list[str | Enum] | None
    dependencies: Sequence[params.Depends] | None
    default_response_class: type[Response]
    responses: dict[int | str, dict[str, Any]] | None
    callbacks: list[BaseRoute] | None
    routes: list[BaseRoute] | None
    redirect_slashes: bool
    default: ASGIApp | None
    dependency_overrides_provider: Any | None
    route_class: type[APIRoute]
    on_startup: Sequence[Callable[[], Any]] | None
    on_shutdown: Sequence[Callable[[], Any]] | None
    deprecated: bool | None
    include_in_schema: bool
    generate_unique_id_function: Callable[[APIRoute], str]
    strict_content_type: bool
    max_body_size: int | None
    form_limits: Any


class RouterOptions(ApiRouterOptions, SharedOptions, total=False):
    """The keyword arguments of `OutboxRouter` that are FastAPI's or the broker's."""


class HandlerOptions(RouteOptions, ResponseOptions, total=False):
    """The keyword arguments of `router.subscriber`."""


class OutboxRouter(APIRouter):
    """Routes and handlers on one outbox.

    *engine*, *outbox_table*, *dlq_table*, *notify*, *listen_dsn*, *insert_only*, *dead_letter_retention* and most other
    options are those of `outbox_sqlalchemy.OutboxBroker`; *prefix*, *tags*, *dependencies* and their like are `APIRouter`'s,
    and dependencies are FastAPI's. Without an engine it publishes on sessions, and consumes under `TestOutboxBroker`.

    *setup_state*: put the broker, and what `lifespan` and `after_startup` return, into `request.state`. *schema_url*: where
    the AsyncAPI document is; None: nowhere. *try_it_out*: add a form to it that publishes; everybody who reaches it may,
    unless *dependencies* say otherwise. *specification*: the document's own title and so on, in place of the
    application's. *specification_tags*: those of the document's server.
    """

    def __init__(
        self,
        engine: AsyncEngine | None = None,
        *,
        outbox_table: Table | OutboxTables | None = None,
        dlq_table: Table | None = None,
        notify: bool = True,
        listen_dsn: str | None = None,
        insert_only: bool = False,
        dead_letter_retention: timedelta | None = None,
        lifespan: Lifespan[Any] | None = None,
        setup_state: bool = True,
        schema_url: str | None = "/asyncapi",
        try_it_out: bool = False,
        specification: AsyncAPI | None = None,
        specification_tags: Sequence[Any] = (),
        **options: Unpack[RouterOptions],
    ) -> None:
        _refuse_unknown("OutboxRouter", options, _ROUTER_OPTIONS, _OWN_OPTIONS)
        api_options, broker_options = _split(options, ApiRouterOptions)
        if lifespan is not None and (options.get("on_startup") or options.get("on_shutdown")):
            raise OptionError("lifespan takes the place of on_startup and on_shutdown; put what they do into it")
        if not isinstance(schema_url, str | None):
            raise WrongType("schema_url", "a str or None", schema_url)
        if schema_url is not None and not schema_url.startswith("/"):
            raise OptionError(f"schema_url must start with '/', got {schema_url!r}; None for no document")
        dependencies = _checked(api_options.pop("dependencies", None))
        super().__init__(dependencies=[Depends(self._bind), *dependencies], lifespan=lifespan, **api_options)
        self._user_lifespan = self.lifespan_context
        self.lifespan_context = cast("Lifespan[Any]", self._lifespan)
        context = broker_options.setdefault("context", None) or ContextRepo()
        broker_options["context"] = context
        broker_options["middlewares"] = (*broker_options.get("middlewares", ()), BackgroundTasksMiddleware)
        self._injection = FastAPIInjection(context, api_options.get("dependency_overrides_provider"))
        self._own_broker = OutboxBroker(
            engine,
            outbox_table=outbox_table,
            dlq_table=dlq_table,
            notify=notify,
            listen_dsn=listen_dsn,
            insert_only=insert_only,
            dead_letter_retention=dead_letter_retention,
            dependencies=dependencies,
            injection=self._injection,
            tags=specification_tags,
            **broker_options,
        )
        self._tables = names_of(outbox_table, dlq_table)
        self._has_tables = outbox_table is not None
        self._around: OutboxRouter | None = None
        self._nested: list[OutboxRouter] = []
        self._entered = 0
        self._setup_state = setup_state
        self._after_startup: list[Callable[[Any], Any]] = []
        self._on_shutdown: list[Callable[[Any], Any]] = []
        self._documents = Documents(self, schema_url or "", specification)
        if self.include_in_schema and schema_url is not None:
            self._documents.add_routes(try_it_out=try_it_out)

    @property
    def broker(self) -> OutboxBroker:
        """This router's broker; a nested router's is that of the router around it."""
        return self._own_broker if self._around is None else self._around.broker

    @property
    def context(self) -> ContextRepo:
        """FastStream's context of the broker."""
        return self.broker.context

    @property
    def schema(self) -> AsyncAPI:
        """The AsyncAPI document's source, as `faststream docs` looks for it."""
        return self._documents.specification(self._injection.app)

    @property
    def documents_path(self) -> str:
        return f"{self.prefix}{self._documents.path}"

    # Handlers

    def subscriber(self, queues: str | Sequence[str], **options: Unpack[HandlerOptions]) -> OutboxSubscriber:
        """Subscribe to one queue or several; decorate a handler with the result.

        *dependencies* are FastAPI's, beside the router's own. *response_model* and its relatives shape the reply, as they
        shape a route's response. *transactional*: the session that the handler depends on (`session: AsyncSession =
        Depends(…)`) is the transaction that completes its message; without one it is `message.session`. The other options
        are those of the broker's `subscriber`.
        """
        _refuse_unknown("subscriber", options, _HANDLER_OPTIONS)
        responses, others = _split(options, ResponseOptions)
        others["dependencies"] = _checked(others.get("dependencies"))
        if responses.get("response_model") is not None:
            others["call_decorators"] = (*others.get("call_decorators", ()), ResponseModel(responses))
        elif responses:
            raise OptionError(f"{min(responses)} needs response_model=…, which says what is returned")
        return self._own_broker.subscriber(queues, **others)

    def publisher(self, queue: str, **options: Unpack[PublisherOptions]) -> OutboxPublisher:
        """A publisher to one queue; decorate a handler with it to publish what the handler returns.

        The options are those of the broker's `publisher`.
        """
        return self._own_broker.publisher(queue, **options)

    def include_router(self, router: APIRouter | OutboxRegistrator, **options: Any) -> None:
        """Include a router of FastAPI's, one of the broker's (`outbox_sqlalchemy.OutboxRouter`), or another `OutboxRouter`.

        Another OutboxRouter's handlers and routes use this one's broker from now on, so it must have no engine of its own.
        The options are those of `APIRouter.include_router`; a broker's router has `prefix` (of its queues),
        `dependencies`, `middlewares` and `include_in_schema`.
        """
        if isinstance(router, OutboxRegistrator):
            self._own_broker.include_router(router, **options)
            return
        if not isinstance(router, APIRouter):
            raise WrongType("router", "an APIRouter, an OutboxRouter or a broker's router", router)
        dependencies = _checked(options.get("dependencies"))
        if isinstance(router, OutboxRouter):
            self._check_nested(router)
        super().include_router(router, **options)
        if isinstance(router, OutboxRouter):
            self._nest(router, dependencies)

    def _check_nested(self, router: "OutboxRouter") -> None:
        if router in (self, *self._routers_around()):
            raise OptionError("an OutboxRouter cannot include itself")
        if router._around not in (None, self):
            raise OptionError(
                "this OutboxRouter is nested in another one, whose broker serves its handlers; make a second"
            )
        theirs = router._own_broker.engine
        if theirs is not None and theirs is not self.broker.engine:
            raise OptionError(
                "a nested OutboxRouter uses the connection of the one around it, and this one has an engine of its own; "
                "create it without, or include both into the application"
            )
        outermost = [self, *self._routers_around()][-1]
        if router._has_tables and router._tables != outermost._tables:
            raise OptionError(
                f"a nested OutboxRouter uses the tables of the one around it, and this one has {router._tables.outbox!r}; "
                "create it without, or include both into the application"
            )

    def _nest(self, router: "OutboxRouter", dependencies: Sequence[params.Depends]) -> None:
        self._own_broker.include_router(router._own_broker, dependencies=cast("Any", dependencies))
        router._around = self
        if router not in self._nested:
            self._nested.append(router)

    def _routers_around(self) -> Iterator["OutboxRouter"]:
        if self._around is not None:
            yield self._around
            yield from self._around._routers_around()

    def _family(self) -> Iterator["OutboxRouter"]:
        yield self
        for nested in self._nested:
            yield from nested._family()

    # Routes

    async def _bind(self, connection: HTTPConnection) -> None:
        """A dependency of every route: tells `outbox_fastapi.OutboxBroker` whose broker is meant."""
        connection.scope[BROKER] = self.broker

    # Life

    def after_startup(self, hook: Hook) -> Hook:
        """Call *hook* with the application once the broker runs; a mapping that it returns goes into `request.state`."""
        self._after_startup.append(hook)
        return hook

    def on_broker_shutdown(self, hook: Hook) -> Hook:
        """Call *hook* with the application before the broker stops."""
        self._on_shutdown.append(hook)
        return hook

    @asynccontextmanager
    async def _lifespan(self, app: FastAPI) -> AsyncIterator[Mapping[str, Any] | None]:
        """Runs the broker; entered again meanwhile, or for a router inside another, it does nothing."""
        if self._around is not None:
            yield None
            return
        self._entered += 1
        try:
            if self._entered > 1:
                yield self._state
            else:
                async with self._running(app):
                    yield self._state
        finally:
            self._entered -= 1

    @property
    def _state(self) -> Mapping[str, Any] | None:
        return self._injection.state if self._setup_state else None

    @asynccontextmanager
    async def _running(self, app: FastAPI) -> AsyncIterator[None]:
        state: dict[str, Any] = {"broker": self.broker}
        self._injection.app, self._injection.state = app, state
        self._documents.started(app)
        async with AsyncExitStack() as stack:
            for router in self._family():
                extra: Mapping[str, Any] | None = await stack.enter_async_context(router._user_lifespan(app))
                state.update(extra or {})
            stack.push_async_callback(self.broker.stop)
            await self.broker.start()
            for router in self._family():
                for hook in router._after_startup:
                    state.update(_mapping(hook, await _called(hook, app)))
            try:
                yield
            finally:
                for router in self._family():
                    for hook in router._on_shutdown:
                        await _called(hook, app)


_OWN_OPTIONS = ("lifespan", "setup_state", "schema_url", "try_it_out", "specification", "specification_tags")
_NEWER_OPTIONS = ApiRouterOptions.__annotations__.keys() - signature(APIRouter).parameters.keys()
_ROUTER_OPTIONS = RouterOptions.__annotations__.keys() - _NEWER_OPTIONS
_HANDLER_OPTIONS = HandlerOptions.__annotations__.keys()


def _refuse_unknown(call: str, options: Collection[str], known: Collection[str], others: Collection[str] = ()) -> None:
    for option in options:
        if option not in known:
            raise UnknownOption(call, option, [*known, *others])


def _checked(dependencies: Any) -> list[params.Depends]:
    """FastStream's, and what FastAPI would stumble over, are refused where they are given."""
    if not isinstance(dependencies, Sequence | None):
        raise WrongType("dependencies", "a list of fastapi.Depends(…)", dependencies)
    for one in dependencies or ():
        if not isinstance(one, params.Depends):
            raise WrongType("each of dependencies", "fastapi.Depends(…)", one)
    return list(dependencies or ())


def _split(options: Any, kind: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """The *options* that *kind*, a TypedDict, has, and the others."""
    others = {**options}
    return {name: others.pop(name) for name in kind.__annotations__ if name in others}, others


def _mapping(hook: Callable[[Any], Any], state: Any) -> Mapping[str, Any]:
    if not isinstance(state, Mapping | None):
        raise WrongType(f"what {name_of(hook)}() returns", "a mapping for request.state, or None", state)
    return state or {}


async def _called(hook: Callable[[Any], Any], app: FastAPI) -> Any:
    result = hook(app)
    return await result if isawaitable(result) else result
