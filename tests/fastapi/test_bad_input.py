"""Whatever is passed wrongly: which error, what it says, when it comes, and that no message is lost by it."""

import functools
import logging
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, Any

import faststream
import pytest
from fastapi import APIRouter, Depends, FastAPI, Header, HTTPException, WebSocket
from faststream.exceptions import AckMessage, SetupError
from pydantic import BaseModel, NonNegativeFloat
from sqlalchemy import MetaData
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import Session

import outbox_sqlalchemy
from outbox_core.errors import (
    InvalidMessage,
    NotStarted,
    OptionError,
    OutboxError,
    UnknownOption,
    WrongType,
)
from outbox_fastapi import Context, Logger, OutboxBroker, OutboxMessage, OutboxRouter, TestOutboxBroker
from outbox_fastapi.errors import HandlerError, NoMessage, NoRouter
from outbox_sqlalchemy import NoRetry, make_dlq_table, make_outbox_table
from tests.fastapi.serving import serving
from tests.places import Place, until


class Order(BaseModel):
    id: int
    price: NonNegativeFloat


def router_with(place: Place, handler: Callable[..., Any], **options: Any) -> OutboxRouter:
    """With one try for each message of "orders"."""
    router = OutboxRouter(place.engine, outbox_table=place.tables, logger=None)
    router.subscriber("orders", retry_strategy=NoRetry(), **options)(handler)
    return router


def application(*routers: APIRouter) -> FastAPI:
    app = FastAPI()
    for router in routers:
        app.include_router(router)
    return app


async def buried(place: Place, router: OutboxRouter, *bodies: Any, headers: dict[str, str] | None = None) -> list[str]:
    """The errors that are with the dead letters, once *bodies* have been handled."""
    for body in bodies:
        await place.broker().publish(body, "orders", headers=headers)
    async with serving(application(router)):
        await until(place.rows, [])
    return [grave.last_exception for grave in place.rows(place.tables.dead_letters)]


async def refusal_at_start(place: Place, router: OutboxRouter) -> BaseException:
    """What the start raises; what was published before it stays as it was."""
    await place.broker().publish(5, "orders")
    with pytest.raises(Exception) as caught:  # noqa: PT011  the caller looks at it
        async with serving(application(router)):
            raise AssertionError("it started")
    (row,) = place.rows()
    assert (row.payload, row.deliveries_count, row.acquired_token) == (b"5", 0, None)
    assert not router.broker.running
    return caught.value


# Messages that do not fit their handler


async def test_a_body_that_does_not_validate_is_buried_with_every_reason(both: Place) -> None:
    handled: list[object] = []

    async def handle(order: Order) -> None:
        handled.append(order)

    wrong, text = await buried(both, router_with(both, handle), {"id": "x", "price": -1}, "text")

    assert wrong.startswith("RequestValidationError: ")
    for words in ("('body', 'id')", "valid integer", "('body', 'price')", "greater than or equal to 0"):
        assert words in wrong
    assert text.startswith("RequestValidationError: ")
    assert "'loc': ('body',)" in text
    assert handled == []


async def test_a_body_that_does_not_validate_is_in_the_log(place: Place, caplog: pytest.LogCaptureFixture) -> None:
    router = OutboxRouter(place.engine, outbox_table=place.tables, logger=logging.getLogger("shop"))

    @router.subscriber("orders", retry_strategy=NoRetry())
    async def handle(order: Order) -> None: ...

    await buried(place, router, {"id": 7})

    (failure,) = (record for record in caplog.records if record.name == "shop" and record.levelno == logging.ERROR)
    assert failure.getMessage().startswith("RequestValidationError: ")
    assert "'loc': ('body', 'price'), 'msg': 'Field required'" in failure.getMessage()
    assert failure.exc_info is not None


async def test_missing_fields_and_headers_are_named(place: Place) -> None:
    async def handle(id: int, name: str, tenant: Annotated[str, Header()]) -> None: ...

    (error,) = await buried(place, router_with(place, handle), {"id": 7})

    assert error.startswith("RequestValidationError: ")
    assert "'loc': ('header', 'tenant'), 'msg': 'Field required'" in error
    assert "'loc': ('body', 'name'), 'msg': 'Field required'" in error


async def test_a_reply_that_is_not_the_response_model_is_a_failure(place: Place) -> None:
    router = OutboxRouter(place.engine, outbox_table=place.tables, logger=None)

    @router.subscriber("orders", retry_strategy=NoRetry(), response_model=Order)
    @router.publisher("invoices")
    async def handle(body: int) -> Any:
        return {"id": body}

    (error,) = await buried(place, router, 7)

    assert error.startswith("ResponseValidationError: ")
    assert "'loc': ('price',), 'msg': 'Field required'" in error
    assert place.rows() == []


async def test_an_http_exception_is_a_failure_like_any_other(place: Place) -> None:
    async def user() -> str:
        raise HTTPException(403, "go away")

    async def handle(body: int, user: Annotated[str, Depends(user)]) -> None: ...

    assert await buried(place, router_with(place, handle), 7) == ["HTTPException: 403: go away"]


# Handlers that cannot be called


def faststream_depends(x: Any = faststream.Depends(lambda: 1)) -> None: ...
def faststream_depends_annotated(x: Annotated[int, faststream.Depends(lambda: 1)]) -> None: ...
def faststream_context(x: Any = faststream.Context("broker")) -> None: ...
def faststream_header(x: str = faststream.Header()) -> None: ...
def faststream_path(x: str = faststream.Path()) -> None: ...
def faststream_logger(x: faststream.Logger) -> None: ...
def annotation_of_the_broker(x: outbox_sqlalchemy.OutboxMessage) -> None: ...
def dependency(y: Any = faststream.Context("broker")) -> None: ...
def in_a_dependency(x: Annotated[None, Depends(dependency)]) -> None: ...


DEPENDS = "faststream's Depends cannot be resolved for 'x' of {}(), whose arguments FastAPI finds; use fastapi.Depends"
CONTEXT = (
    "faststream's Context, Header or Path cannot be resolved for {!r} of {}(), whose arguments FastAPI finds; "
    "use outbox_fastapi's Context and annotations, fastapi.Header or fastapi.Path"
)


@pytest.mark.parametrize(
    ("handler", "message"),
    [
        (faststream_depends, DEPENDS.format("faststream_depends")),
        (faststream_depends_annotated, DEPENDS.format("faststream_depends_annotated")),
        (faststream_context, CONTEXT.format("x", "faststream_context")),
        (faststream_header, CONTEXT.format("x", "faststream_header")),
        (faststream_path, CONTEXT.format("x", "faststream_path")),
        (faststream_logger, CONTEXT.format("x", "faststream_logger")),
        (annotation_of_the_broker, CONTEXT.format("x", "annotation_of_the_broker")),
        (in_a_dependency, CONTEXT.format("y", "dependency")),
    ],
)
async def test_faststreams_markers_are_refused_when_the_application_starts(
    place: Place, handler: Callable[..., Any], message: str
) -> None:
    error = await refusal_at_start(place, router_with(place, handler))

    assert (type(error), str(error)) == (HandlerError, message)
    assert isinstance(error, OutboxError)
    assert isinstance(error, SetupError)


class Opaque:
    """Nothing that pydantic knows."""


def opaque(body: Opaque) -> None: ...
def unknown(body: "Nowhere") -> None: ...  # type: ignore[name-defined]  # noqa: F821  the mistake
def positional(body: int, /) -> None: ...
def socket(body: int, socket: WebSocket) -> None: ...


def careless(call: Callable[..., Any]) -> Callable[..., Any]:
    def handler(*args: Any, **kwargs: Any) -> Any:
        return call(*args, **kwargs)

    return handler


@pytest.mark.parametrize(
    ("handler", "message"),
    [
        (
            opaque,
            (
                "FastAPI cannot find the arguments of opaque(): Invalid args for response field! Hint: check that "
                "<class 'tests.fastapi.test_bad_input.Opaque'> is a valid Pydantic field type"
            ),
        ),
        (
            unknown,
            (
                "the annotation 'Nowhere' of 'body' of unknown() names nothing in its module; define or import it at the "
                "top level"
            ),
        ),
        (
            positional,
            (
                "'body: int' of positional() cannot be passed by name, as FastAPI does; a decorator around the handler "
                "needs functools.wraps"
            ),
        ),
        (
            careless(opaque),
            (
                "'*args: Any' of handler() cannot be passed by name, as FastAPI does; a decorator around the handler "
                "needs functools.wraps"
            ),
        ),
        (socket, "'socket' of socket() is a WebSocket, and a message has none; use fastapi.Request"),
    ],
)
async def test_a_handler_that_cannot_be_called_is_refused_when_the_application_starts(
    place: Place, handler: Callable[..., Any], message: str
) -> None:
    error = await refusal_at_start(place, router_with(place, handler))

    assert (type(error), str(error)) == (HandlerError, message)


async def test_the_annotation_of_a_dependency_may_name_nothing(place: Place) -> None:
    handled: list[object] = []

    async def call() -> int:
        return 1

    async def handle(body: int, x: "Nowhere" = Depends(call)) -> None:  # type: ignore[name-defined]  # noqa: F821
        handled.append((body, x))

    assert await buried(place, router_with(place, handle), 7) == []
    assert handled == [(7, 1)]


async def test_a_decorator_with_wraps_is_no_obstacle(place: Place) -> None:
    handled: list[Order] = []

    async def handle(order: Order) -> None:
        handled.append(order)

    @functools.wraps(handle)
    async def around(*args: Any, **kwargs: Any) -> None:
        await handle(*args, **kwargs)

    assert await buried(place, router_with(place, around), {"id": 7, "price": 1}) == []
    assert handled == [Order(id=7, price=1)]


async def test_a_handler_of_a_brokers_router_is_judged_as_well(place: Place) -> None:
    router = OutboxRouter(place.engine, outbox_table=place.tables, logger=None)
    brokers = outbox_sqlalchemy.OutboxRouter()
    brokers.subscriber("orders")(faststream_depends)
    router.include_router(brokers)

    error = await refusal_at_start(place, router)

    assert (type(error), str(error)) == (HandlerError, DEPENDS.format("faststream_depends"))


# Dependencies with yield


async def swallowing() -> AsyncIterator[None]:
    try:
        yield
    except Exception:
        logging.getLogger("shop").info("never mind")


def swallowing_in_a_thread() -> Iterator[None]:
    try:
        yield
    except Exception:
        logging.getLogger("shop").info("never mind")


@pytest.mark.parametrize("dependency", [swallowing, swallowing_in_a_thread])
@pytest.mark.parametrize("raised", [LookupError("no such article"), AckMessage()], ids=["error", "AckMessage"])
@pytest.mark.parametrize("transactional", [False, True], ids=["plain", "transactional"])
async def test_a_dependency_that_swallows_an_exception_is_a_failure(
    place: Place, dependency: Callable[..., Any], raised: Exception, transactional: bool
) -> None:
    async def handle(body: int, nothing: Annotated[None, Depends(dependency)]) -> None:
        raise raised

    assert await buried(place, router_with(place, handle, transactional=transactional), 7) == [
        (
            "DependencyError: a dependency of handle() caught what was raised, and did not raise it again; "
            'in a dependency with yield, "except" must end with "raise"'
        )
    ]


async def test_a_dependency_that_fails_while_it_closes_is_a_failure(place: Place) -> None:
    async def closing() -> AsyncIterator[None]:
        yield
        raise LookupError("no such file")

    async def handle(body: int, nothing: Annotated[None, Depends(closing)]) -> None: ...

    assert await buried(place, router_with(place, handle), 7) == ["LookupError: no such file"]


# Transactional subscribers


@pytest.fixture
def get_session(place: Place) -> Callable[[], AsyncIterator[AsyncSession]]:
    factory = async_sessionmaker(place.engine)

    async def get_session() -> AsyncIterator[AsyncSession]:
        async with factory() as session, session.begin():
            yield session

    return get_session


async def test_two_sessions_cannot_both_complete_a_message(place: Place, get_session: Callable[..., Any]) -> None:
    async def get_another() -> AsyncIterator[AsyncConnection]:
        async with place.engine.begin() as connection:
            yield connection

    async def handle(
        body: int,
        one: Annotated[AsyncSession, Depends(get_session)],
        another: Annotated[AsyncConnection, Depends(get_another)],
    ) -> None: ...

    error = await refusal_at_start(place, router_with(place, handle, transactional=True))

    assert (type(error), str(error)) == (
        HandlerError,
        (
            "a transactional subscriber completes its message in one session, and there are 2 (get_another, get_session) in "
            "handle(); open the others in the handler"
        ),
    )


async def test_a_synchronous_session_cannot_complete_a_message(place: Place) -> None:
    def get_session() -> Iterator[Session]:
        with Session(place.sync_engine) as session, session.begin():
            yield session

    def handle(body: int, session: Annotated[Session, Depends(get_session)]) -> None: ...

    error = await refusal_at_start(place, router_with(place, handle, transactional=True))

    assert (type(error), str(error)) == (
        HandlerError,
        (
            "handle() depends on a synchronous Session, 'session', which a transactional subscriber cannot complete its "
            "message in; depend on an AsyncSession"
        ),
    )


async def test_a_session_without_an_annotation_is_found_out_before_anything_is_written(
    place: Place, get_session: Callable[..., Any]
) -> None:
    handled: list[int] = []

    async def handle(body: int, session=Depends(get_session)) -> None:  # type: ignore[no-untyped-def]  # the mistake
        handled.append(body)

    assert await buried(place, router_with(place, handle, transactional=True), 7) == [
        (
            "HandlerError: 'session' of handle() is a session of its own, and what is written in it would not be committed "
            "with the message; annotate it (session: AsyncSession), so that it is found, or use message.session"
        )
    ]
    assert handled == []


@pytest.mark.parametrize("given", [None, 5])
async def test_a_session_dependency_must_give_a_session(place: Place, given: object) -> None:
    handled: list[int] = []

    async def get_session() -> object:
        return given

    async def handle(body: int, session: Annotated[AsyncSession, Depends(get_session)]) -> None:
        handled.append(body)

    (error,) = await buried(place, router_with(place, handle, transactional=True), 7)

    assert error == (
        f"WrongType: what get_session() gives must be an AsyncSession or AsyncConnection, got {type(given).__name__}"
    )
    assert handled == []


async def test_a_session_of_another_database_cannot_complete_a_message(place: Place, tmp_path: Path) -> None:
    elsewhere = create_async_engine(f"sqlite+aiosqlite:///{tmp_path / 'elsewhere.db'}")

    async def get_session() -> AsyncIterator[AsyncSession]:
        async with AsyncSession(elsewhere) as session, session.begin():
            yield session

    async def handle(body: int, session: Annotated[AsyncSession, Depends(get_session)]) -> None: ...

    (error,) = await buried(place, router_with(place, handle, transactional=True), 7)

    assert error.startswith(f"WrongDatabase: the session is on sqlite:///{tmp_path / 'elsewhere.db'}, the broker on ")
    await elsewhere.dispose()


# Routers


async def test_handlers_need_an_engine_when_the_application_starts(place: Place) -> None:
    router = OutboxRouter(outbox_table=place.tables)

    @router.subscriber("orders")
    async def handle(body: int) -> None: ...

    error = await refusal_at_start(place, router)

    assert (type(error), str(error)) == (
        NotStarted,
        "subscribers of orders have no database; create the broker with an engine, or the OutboxRouter that has it",
    )


async def test_handlers_need_no_engine_in_memory() -> None:
    router = OutboxRouter()

    @router.subscriber("orders")
    async def handle(body: int) -> None: ...

    async with TestOutboxBroker(router.broker), serving(application(router)):
        await router.broker.publish(7, "orders")
        handle.mock.assert_called_once_with(7)


async def test_a_router_without_handlers_needs_no_engine(place: Place) -> None:
    router = OutboxRouter(outbox_table=place.tables)

    async with serving(application(router)), place.engine.begin() as connection:
        await router.broker.publish(7, "orders", session=connection)

    assert [row.payload for row in place.rows()] == [b"7"]


async def test_publishing_needs_an_engine_but_no_start(place: Place) -> None:
    await OutboxRouter(place.engine, outbox_table=place.tables).broker.publish(7, "orders")
    assert [row.payload for row in place.rows()] == [b"7"]

    with pytest.raises(NotStarted) as caught:
        await OutboxRouter(outbox_table=place.tables).broker.publish(7, "orders")
    assert str(caught.value) == "without a session this needs a database; create the broker with an engine"


@pytest.mark.parametrize(
    ("queue", "error", "message"),
    [
        ("", InvalidMessage, "queue must not be empty, got ''"),
        (" ", InvalidMessage, "queue must not be blank, got ' '"),
        (["orders", ""], InvalidMessage, "queue must not be empty, got ''"),
        ([], OptionError, "subscriber needs at least one queue, got none"),
        (None, WrongType, "queues must be a str or a list of them, got NoneType"),
    ],
)
def test_a_subscriber_needs_a_queue(queue: Any, error: type[OutboxError], message: str) -> None:
    with pytest.raises(error) as caught:
        OutboxRouter().subscriber(queue)
    assert str(caught.value) == message


def test_a_publisher_needs_a_queue() -> None:
    with pytest.raises(InvalidMessage, match=r"^queue must not be empty, got ''$"):
        OutboxRouter().publisher("")


@pytest.mark.parametrize("option", ["apply_types", "provider", "lane", "injection", "call_decorators", "serialiser"])
def test_the_router_has_no_option(option: str) -> None:
    with pytest.raises(UnknownOption) as caught:
        OutboxRouter(**{option: None})
    assert str(caught.value).startswith(f"OutboxRouter has no option {option!r}; ")
    assert caught.value.option == option


def test_an_option_that_is_misspelt_is_told_its_name() -> None:
    with pytest.raises(UnknownOption, match=r"^OutboxRouter has no option 'lifespam'; did you mean 'lifespan'\?$"):
        OutboxRouter(lifespam=None)  # type: ignore[call-arg]  # the mistake
    with pytest.raises(UnknownOption, match=r"^subscriber has no option 'maxworkers'; did you mean 'max_workers'\?$"):
        OutboxRouter().subscriber("orders", maxworkers=2)  # type: ignore[call-arg]  # the mistake


@pytest.mark.parametrize(
    "wrong", [faststream.Depends(lambda: 1), lambda: 1, "user"], ids=["faststream", "function", "str"]
)
@pytest.mark.parametrize("where", ["router", "subscriber", "include_router"])
def test_dependencies_are_fastapis(wrong: object, where: str) -> None:
    router = OutboxRouter()
    calls: dict[str, Callable[[Any], object]] = {
        "router": lambda given: OutboxRouter(dependencies=given),
        "subscriber": lambda given: router.subscriber("orders", dependencies=given),
        "include_router": lambda given: router.include_router(OutboxRouter(), dependencies=given),
    }

    with pytest.raises(WrongType) as caught:
        calls[where]([wrong])
    kind = type(wrong).__name__
    assert str(caught.value) == f"each of dependencies must be fastapi.Depends(…), got {kind}"
    with pytest.raises(WrongType, match=r"^dependencies must be a list of fastapi.Depends\(…\), got Depends$"):
        calls[where](Depends(lambda: 1))


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    yield


@pytest.mark.parametrize("hooks", ["on_startup", "on_shutdown"])
def test_a_lifespan_excludes_hooks(hooks: str) -> None:
    with pytest.raises(OptionError) as caught:
        OutboxRouter(lifespan=lifespan, **{hooks: [print]})
    assert str(caught.value) == "lifespan takes the place of on_startup and on_shutdown; put what they do into it"


@pytest.mark.parametrize(
    ("schema_url", "error", "message"),
    [
        ("asyncapi", OptionError, "schema_url must start with '/', got 'asyncapi'; None for no document"),
        ("", OptionError, "schema_url must start with '/', got ''; None for no document"),
        (5, WrongType, "schema_url must be a str or None, got int"),
    ],
)
def test_schema_url_is_a_path(schema_url: Any, error: type[OutboxError], message: str) -> None:
    with pytest.raises(error) as caught:
        OutboxRouter(schema_url=schema_url)
    assert str(caught.value) == message


def test_the_details_of_a_response_need_its_model() -> None:
    with pytest.raises(OptionError) as caught:
        OutboxRouter().subscriber("orders", response_model_exclude_none=True)
    assert str(caught.value) == "response_model_exclude_none needs response_model=…, which says what is returned"


def test_the_model_of_a_response_is_a_type() -> None:
    with pytest.raises(OptionError) as caught:
        OutboxRouter().subscriber("orders", response_model=5)
    assert str(caught.value) == "response_model must be a type that pydantic knows, got 5"


def test_a_router_cannot_be_within_itself() -> None:
    one, two, three = OutboxRouter(), OutboxRouter(), OutboxRouter()
    one.include_router(two)
    two.include_router(three)

    for inner in (one, two, three):
        with pytest.raises(OptionError, match=r"^an OutboxRouter cannot include itself$"):
            three.include_router(inner)


def test_a_nested_router_has_no_engine_of_its_own(place: Place) -> None:
    router = OutboxRouter(place.engine)
    router.include_router(OutboxRouter(place.engine))  # the same

    for around in (router, OutboxRouter()):
        with pytest.raises(OptionError) as caught:
            around.include_router(OutboxRouter(place.another_engine()))
        assert str(caught.value) == (
            "a nested OutboxRouter uses the connection of the one around it, and this one has an engine of its own; "
            "create it without, or include both into the application"
        )


def test_a_nested_router_has_no_tables_of_its_own(place: Place) -> None:
    router = OutboxRouter(outbox_table=place.tables)
    router.include_router(OutboxRouter(outbox_table=place.tables))  # the same

    metadata = MetaData()
    other = OutboxRouter(outbox_table=make_outbox_table(metadata, "mails"), dlq_table=make_dlq_table(metadata))
    with pytest.raises(OptionError) as caught:
        router.include_router(other)
    assert str(caught.value) == (
        "a nested OutboxRouter uses the tables of the one around it, and this one has 'mails'; create it without, or "
        "include both into the application"
    )


async def test_a_router_is_nested_once(place: Place) -> None:
    nested = OutboxRouter()
    one, two = (OutboxRouter(place.engine, outbox_table=place.tables, logger=None) for _ in range(2))
    handled: list[int] = []

    @nested.subscriber("orders")
    async def handle(body: int) -> None:
        handled.append(body)

    one.include_router(nested, prefix="/v1")
    one.include_router(nested, prefix="/v2")  # its routes are served twice, its handlers not
    with pytest.raises(OptionError) as caught:
        two.include_router(nested)

    assert str(caught.value) == (
        "this OutboxRouter is nested in another one, whose broker serves its handlers; make a second"
    )
    assert await buried(place, one, 7) == []
    assert handled == [7]


def test_a_router_that_is_refused_is_not_half_included() -> None:
    router, nested = OutboxRouter(), OutboxRouter()

    with pytest.raises(AssertionError, match="A path prefix must start with '/'"):
        router.include_router(nested, prefix="v1")

    assert nested.broker is not router.broker


def test_what_is_included_is_a_router() -> None:
    with pytest.raises(WrongType) as caught:
        OutboxRouter().include_router("orders")  # type: ignore[arg-type]  # the mistake
    assert str(caught.value) == "router must be an APIRouter, an OutboxRouter or a broker's router, got str"


async def test_a_hook_returns_a_mapping(place: Place) -> None:
    router = OutboxRouter(place.engine, outbox_table=place.tables)

    @router.after_startup  # type: ignore[arg-type]  # the mistake
    async def count(app: FastAPI) -> int:
        return 5

    error = await refusal_at_start(place, router)

    assert (type(error), str(error)) == (
        WrongType,
        "what count() returns must be a mapping for request.state, or None, got int",
    )


# Routes


@pytest.mark.parametrize(
    ("path", "error"),
    [
        ("/message", NoMessage("'message' is part of a message, and a route has none; ask for it in a handler")),
        (
            "/headers",
            NoMessage("'message.headers' is part of a message, and a route has none; ask for it in a handler"),
        ),
        (
            "/tenant",
            NoMessage(
                "the context has no 'tenant'; set it with router.context.set_global('tenant', …), or give a default"
            ),
        ),
    ],
    ids=["message", "headers", "tenant"],
)
async def test_a_route_cannot_have_what_only_a_message_has(
    place: Place, caplog: pytest.LogCaptureFixture, path: str, error: NoMessage
) -> None:
    router = OutboxRouter(place.engine, outbox_table=place.tables)

    @router.get("/message")
    async def message(message: OutboxMessage) -> None: ...

    @router.get("/headers")
    async def headers(headers: Annotated[dict[str, str], Context("message.headers")]) -> None: ...

    @router.get("/tenant")
    async def tenant(tenant: Annotated[str, Context("tenant")]) -> None: ...

    async with serving(application(router)) as client:
        assert (await client.get(path)).status_code == 500

    (raised,) = raised_in_routes(caplog)
    assert (type(raised), str(raised)) == (type(error), str(error))


async def test_a_route_that_no_router_serves_has_no_broker(place: Place, caplog: pytest.LogCaptureFixture) -> None:
    hidden = OutboxRouter(place.engine, outbox_table=place.tables, setup_state=False)
    app = application(hidden)

    @app.get("/broker")
    async def publish(broker: OutboxBroker) -> None: ...

    @app.get("/logger")
    async def log(logger: Logger) -> None: ...

    async with serving(app) as client:
        for path in ("/broker", "/logger"):
            assert (await client.get(path)).status_code == 500

    assert [(type(error), str(error)) for error in raised_in_routes(caplog)] == [
        (
            NoRouter,
            (
                "no OutboxRouter serves this route; declare it on one, or include one into the application, with "
                "setup_state=True, so that its broker is in request.state"
            ),
        )
    ] * 2


def raised_in_routes(caplog: pytest.LogCaptureFixture) -> list[BaseException]:
    """What uvicorn was told by the application."""
    infos = [record.exc_info for record in caplog.records if record.name == "uvicorn.error"]
    return [info[1] for info in infos if info is not None and info[1] is not None]
