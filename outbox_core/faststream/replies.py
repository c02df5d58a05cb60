"""What a handler returned, published while its dependencies are still open.

FastStream publishes a reply after the handler's dependencies have closed. A session among them is committed and closed by
then, and a row inserted on it would never be: the domain's writes stay and their follow-on is lost. So an `OutboxResponse`
that chose its queue or its session is published here, around the handler itself.
"""

from collections.abc import Callable, Iterator
from functools import partial, wraps
from inspect import unwrap
from typing import TYPE_CHECKING, Any, cast

from anyio import from_thread
from fast_depends.utils import is_coroutine_callable
from faststream import BaseMiddleware
from faststream.message import StreamMessage
from faststream.response import Response, ensure_response

from outbox_core.envelope import CONTENT_TYPE, CORRELATION_ID, REPLY_TO
from outbox_core.faststream._compat import ProducerProto
from outbox_core.faststream.message import OutboxMessage
from outbox_core.faststream.producer import OutboxProducer
from outbox_core.faststream.publisher import OutboxPublisher, ReplyPublisher
from outbox_core.faststream.response import OutboxPublishCommand, OutboxResponse
from outbox_core.waiting import drive

if TYPE_CHECKING:
    from outbox_core.faststream.config import OutboxBrokerConfig
    from outbox_core.faststream.subscriber import OutboxSubscriber


class Replies:
    """The replies of one subscriber's handlers."""

    def __init__(self, subscriber: "OutboxSubscriber", *, propagate_headers: bool) -> None:
        self._subscriber = subscriber
        self._propagate_headers = propagate_headers

    def around(self, call: Callable[..., Any]) -> Callable[..., Any]:
        """*call*, publishing what it returns where that cannot wait; as asynchronous or synchronous as it is."""
        if is_coroutine_callable(call):

            @wraps(call)
            async def handler(*args: Any, **kwargs: Any) -> Any:
                result = await call(*args, **kwargs)
                if isinstance(result, OutboxResponse):
                    await self._publish(call, result)
                return result

            return handler

        @wraps(call)
        def sync_handler(*args: Any, **kwargs: Any) -> Any:
            result = call(*args, **kwargs)
            if isinstance(result, OutboxResponse):
                self._publish_from_thread(call, result)
            return result

        return sync_handler

    async def _publish(self, call: Callable[..., Any], response: OutboxResponse) -> None:
        for command, config in self._commands(call, response):
            await self._through_middlewares(command, config.producer)

    def _publish_from_thread(self, call: Callable[..., Any], response: OutboxResponse) -> None:
        """A synchronous handler's session is synchronous too, and stays in its thread."""
        for command, config in self._commands(call, response):
            if command.session is None:
                from_thread.run(self._through_middlewares, command, config.producer)
            else:
                drive(self._through_middlewares(command, config.sync_producer))

    def _commands(
        self, call: Callable[..., Any], response: OutboxResponse
    ) -> Iterator[tuple[OutboxPublishCommand, "OutboxBrokerConfig"]]:
        """What to publish and whose producer does it. Nothing, if *call* was called as a plain function."""
        message = self._message
        if message is None:
            return
        response.correlation_id = response.correlation_id or message.correlation_id
        if self._propagate_headers:
            take_headers(response, message)
        ours = self._subscriber._outer_config
        if response.queue:
            yield response.as_publish_command(), ours
        if response.session is not None:
            if message.reply_to and not self._subscriber._no_reply:
                answer = ReplyPublisher(cast("OutboxProducer", ours.producer), message.reply_to)
                yield answer.patch_command(response.as_publish_command()), ours
            for publisher in self._stacked_on(call):
                command = publisher.completed(response.as_publish_command())
                if command.batch_bodies:
                    yield command, publisher._outer_config
            response.published = True

    @property
    def _message(self) -> OutboxMessage | None:
        message: OutboxMessage | None = self._subscriber._outer_config.context.get_local("message")
        return message

    def _stacked_on(self, call: Callable[..., Any]) -> list[OutboxPublisher]:
        for item in self._subscriber.calls:
            if unwrap(item.handler._original_call) is unwrap(call):
                return [one for one in item.handler._publishers if isinstance(one, OutboxPublisher)]
        return []

    async def _through_middlewares(self, command: OutboxPublishCommand, producer: ProducerProto[Any]) -> None:
        context = self._subscriber._outer_config.context
        publish: Callable[..., Any] = producer.publish
        for middleware in self._subscriber._broker_middlewares[::-1]:
            publish = partial(middleware(None, context=context).publish_scope, publish)
        await publish(command)


class HeaderPropagation(BaseMiddleware):
    """With `propagate_inbound_headers`, a reply without headers takes those of its message, whoever publishes it."""

    async def consume_scope(self, call_next: Callable[..., Any], msg: StreamMessage[Any]) -> Response:
        response = ensure_response(await call_next(msg))
        take_headers(response, msg)
        return response


def take_headers(response: Response, message: StreamMessage[Any]) -> None:
    """Those of *message* that are not about its own body and way."""
    response.headers = response.headers or {
        name: value for name, value in message.headers.items() if name not in (CONTENT_TYPE, CORRELATION_ID, REPLY_TO)
    }
