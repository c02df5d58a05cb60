"""Our way of a message through FastStream's pipeline beside upstream's own: the same is called, seen, logged and raised."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from importlib.metadata import version
from typing import Any

import pytest
from faststream import BaseMiddleware, ExceptionMiddleware
from faststream.exceptions import AckMessage, StopConsume
from faststream.message import StreamMessage

from outbox_core.faststream._compat import SubscriberUsecase, pipeline_digest, pipeline_is_known
from outbox_core.faststream.pipeline import process
from outbox_core.faststream.subscriber import OutboxSubscriber
from outbox_core.message import UnreadableHeaders
from outbox_sqlalchemy import OutboxBroker
from tests.core.deliveries import delivery
from tests.faststream.telling import telling

Pipeline = Callable[[OutboxSubscriber, Any], Awaitable[Any]]

LOCALS = ("handler_", "logger", "log_context", "message", "tenant")
PLAIN = {"payload": b"1", "headers": {"content-type": "application/json"}}


class Trace(list[object]):
    """What somebody saw, in order."""

    def __init__(self) -> None:
        self.broker: OutboxBroker | None = None

    def note(self, *what: object) -> None:
        """*what*, and all that the context holds for whoever is called here."""
        assert self.broker is not None
        context = self.broker.context
        self.append((*what, *(_shown(context.get_local(name, "nothing")) for name in LOCALS)))


def _shown(value: object) -> object:
    return value if isinstance(value, str | dict) else type(value).__name__


def middleware(name: str, trace: Trace, *, fails: str = "", forgives: bool = False) -> type[BaseMiddleware]:
    """It notes each call, raises at the stage *fails*, and with *forgives* lets no exception out."""

    def reach(stage: str, what: object) -> None:
        trace.note(name, stage, _told(repr(what)) if stage == "exit" else _shown(what))
        if stage == fails:
            raise LookupError(f"{name} {stage}")

    return telling(reach, forgives=forgives)


class Publisher:
    """What a handler is stacked on, of some broker."""

    def __init__(self, trace: Trace) -> None:
        self._trace = trace

    async def _publish(self, command: Any, *, _extra_middlewares: Any) -> None:
        async def publish(command: Any) -> None:
            self._trace.note("published", command.body, command.correlation_id, dict(command.headers or {}))

        call: Callable[..., Awaitable[Any]] = publish
        for scope in _extra_middlewares:
            call = _around(scope, call)
        await call(command)


def _around(scope: Callable[..., Awaitable[Any]], call: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
    async def through(command: Any) -> Any:
        return await scope(call, command)

    return through


class Case:
    """One arrangement. A handler gets 1, answers 2, and is stacked on a publisher."""

    def __init__(
        self,
        *,
        middlewares: Callable[[Trace], list[Any]] = lambda trace: [],
        raises: BaseException | None = None,
        filters: list[Callable[[StreamMessage[Any]], bool]] | None = None,
        values: dict[str, Any] = PLAIN,
        logger: Any = ...,
        log_level: int = logging.DEBUG,
        sync: bool = False,
    ) -> None:
        self.middlewares = middlewares
        self.raises = raises
        self.filters = filters
        self.values = values
        self.options: dict[str, Any] = {"log_level": log_level} | ({} if logger is ... else {"logger": logger})
        self.sync = sync

    async def run(self, pipeline: Pipeline, caplog: pytest.LogCaptureFixture) -> tuple[list[object], object]:
        """What was seen on the way, and what came of it."""
        trace = Trace()
        broker = trace.broker = OutboxBroker(middlewares=self.middlewares(trace), **self.options)
        broker.config.broker_config.extra_context = {"tenant": "acme"}
        subscriber = broker.subscriber("orders")
        for number, takes in enumerate(self.filters or [lambda message: True]):
            subscriber(self._handler(trace, number), filter=takes)
        subscriber._build_fastdepends_model()
        for call in subscriber.calls:
            call.handler._publishers.append(Publisher(trace))
        broker._setup_logger()
        caplog.clear()
        with caplog.at_level(logging.DEBUG if self.options["log_level"] == logging.WARNING else logging.INFO):
            outcome = await self._outcome(pipeline(subscriber, delivery(**self.values)))
        trace.note("afterwards")
        trace += [(one.levelno, _told(one.getMessage()), one.exc_info and one.exc_info[0]) for one in caplog.records]
        return trace, outcome

    def _handler(self, trace: Trace, number: int) -> Callable[..., Any]:
        def handle(body: int) -> int:
            trace.note("handler", number, body)
            if self.raises is not None:
                raise self.raises
            return body + 1

        async def handle_async(body: int) -> int:
            return handle(body)

        return handle if self.sync else handle_async

    async def _outcome(self, answering: Awaitable[Any]) -> object:
        try:
            response = await answering
        except BaseException as error:  # whatever it is, both have to raise it
            return type(error), _told(str(error)), type(error.__cause__)
        return response.body, response.correlation_id, dict(response.headers)


def _told(text: str) -> str:
    """Without what is said of a message that no handler takes, for which each has its own words."""
    return text if "handler" not in text else "SubscriberNotFound"


def _broken(message: StreamMessage[Any]) -> bool:
    raise LookupError("a filter")


def _each(**options: Any) -> Callable[[Trace], list[Any]]:
    """Three, of which the middle one has *options*."""
    return lambda trace: [middleware("a", trace), middleware("b", trace, **options), middleware("c", trace)]


def _rescuing(trace: Trace) -> list[Any]:
    rescue = ExceptionMiddleware()

    @rescue.add_handler(ValueError, publish=True)
    async def answer(error: ValueError) -> int:
        trace.note("rescue", str(error))
        return 7

    return [middleware("a", trace), rescue]


CASES = {
    "plain": Case(),
    "a function in a thread": Case(sync=True),
    "a logger of nobody's": Case(logger=None),
    "a logger of the user's": Case(logger=logging.getLogger("outbox.mine")),
    "records of each message": Case(log_level=logging.WARNING),
    "records and middlewares": Case(log_level=logging.WARNING, middlewares=_each()),
    "records and an error": Case(log_level=logging.WARNING, raises=ValueError("no")),
    "middlewares": Case(middlewares=_each()),
    "an error": Case(raises=ValueError("no")),
    "an error, without a logger": Case(raises=ValueError("no"), logger=None),
    "an error and middlewares": Case(raises=ValueError("no"), middlewares=_each()),
    "a vote": Case(raises=AckMessage()),
    "a vote, records": Case(raises=AckMessage(), log_level=logging.WARNING),
    "an end of all": Case(raises=StopConsume(), middlewares=_each()),
    "a cancellation": Case(raises=asyncio.CancelledError(), middlewares=_each()),
    "an exit": Case(raises=SystemExit(3), middlewares=_each()),
    "a rescue": Case(raises=ValueError("no"), middlewares=_rescuing),
    "forgiven": Case(raises=ValueError("no"), middlewares=_each(forgives=True)),
    "forgiven parsing": Case(values={"headers": UnreadableHeaders()}, middlewares=_each(forgives=True)),
    **{
        f"a middleware that fails, {stage}": Case(middlewares=_each(fails=stage))
        for stage in ("receive", "consume", "consumed", "publish", "exit")
    },
    "unreadable headers": Case(values={"headers": UnreadableHeaders()}, middlewares=_each()),
    "an unreadable body": Case(values={**PLAIN, "payload": b"{"}, middlewares=_each()),
    "a body of another type": Case(values={**PLAIN, "payload": b'"one"'}, middlewares=_each()),
    "the second handler": Case(filters=[lambda message: False, lambda message: True], middlewares=_each()),
    "no handler": Case(filters=[lambda message: False], middlewares=_each()),
    "no handler, forgiven": Case(filters=[lambda message: False], middlewares=_each(forgives=True)),
    "a filter that fails": Case(filters=[_broken, lambda message: True], middlewares=_each()),
    "somebody waits for the answer": Case(
        values={**PLAIN, "headers": {**PLAIN["headers"], "reply_to": "answers", "correlation_id": "c-1"}},
        middlewares=_each(fails="publish"),
    ),
}


if pipeline_is_known():  # otherwise upstream's way is taken, and ours may differ

    @pytest.mark.parametrize("case", CASES.values(), ids=CASES)
    async def test_a_message_goes_upstreams_way(case: Case, caplog: pytest.LogCaptureFixture) -> None:
        upstream = await case.run(SubscriberUsecase.process_message, caplog)

        assert await case.run(process, caplog) == upstream


def test_the_pipeline_of_this_version_is_known() -> None:
    """If not, upstream has changed it: compare, mend ours, and add its digest."""
    installed = tuple(int(part) for part in version("faststream").split(".")[:3])

    assert (installed >= (0, 7, 8)) == pipeline_is_known(), pipeline_digest()
