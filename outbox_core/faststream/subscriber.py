"""A subscriber: FastStream's consume pipeline as the handler of one consumer of the engine.

    Delivery --process_message--> vote | exception --> engine

Without a handler nothing is consumed, and messages are there to be pulled: `get_one`, `async for`.

The pipeline is upstream's, or where that is known to be the same `outbox_core.faststream.pipeline`, which takes half of its
time; what FastStream changes about middlewares, parsing or dependencies holds for us on the day it is released.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from inspect import isasyncgenfunction, isgeneratorfunction, unwrap
from typing import Any, cast

from faststream.exceptions import HandlerException, StopConsume
from faststream.message import StreamMessage
from faststream.middlewares import AckPolicy
from faststream.response import Response, ensure_response
from faststream.specification.asyncapi.utils import resolve_payloads
from faststream.specification.schema import Message, Operation, SubscriberSpec

from outbox_core.completion import Transaction, in_transaction
from outbox_core.errors import CannotPull, InvalidHandler, NotStarted, OptionError, WrongType
from outbox_core.faststream._compat import (
    CallsCollection,
    SubscriberSpecification,
    SubscriberUsecase,
    pipeline_is_known,
    process_msg,
)
from outbox_core.faststream.acknowledgement import vote_after_failure, vote_after_return, vote_of_exception
from outbox_core.faststream.config import (
    OutboxBrokerConfig,
    OutboxSubscriberConfig,
    OutboxSubscriberSpecificationConfig,
)
from outbox_core.faststream.conflicts import Conflicted, ConflictMiddleware
from outbox_core.faststream.message import OutboxMessage, decode_batch, decode_body, parse_batch, parse_message
from outbox_core.faststream.pipeline import process
from outbox_core.faststream.publisher import ReplyPublisher
from outbox_core.faststream.replies import HeaderPropagation, Replies
from outbox_core.faststream.transaction import transaction_middleware
from outbox_core.message import Delivery
from outbox_core.options import check_timeout
from outbox_core.pull import Puller
from outbox_core.slots import Consumer


class OutboxSubscriberSpecification(SubscriberSpecification[Any, OutboxSubscriberSpecificationConfig]):
    """How a subscriber appears in the AsyncAPI document: a channel for each queue."""

    @property
    def channel_labels(self) -> list[str]:
        return [f"{self._outer_config.prefix}{queue}" for queue in self.config.queues]

    def get_schema(self) -> dict[str, SubscriberSpec]:
        payload = resolve_payloads(self.get_payloads())
        several = len(self.channel_labels) > 1
        channels = {}
        for queue in self.channel_labels:
            name = self._channel_key(queue, split=several)
            channels[name] = SubscriberSpec(
                address=queue,
                description=self.description,
                operation=Operation(message=Message(title=f"{name}:Message", payload=payload), bindings=None),
                bindings=None,
            )
        return channels


class Handlers(CallsCollection[Any]):
    """The handlers of one subscriber. Upstream takes anything, and would only call it: of a generator no line would run."""

    def add_call(self, call: Any) -> None:
        handler = call.handler._declared_call
        if not callable(handler):
            raise InvalidHandler(f"a handler must be a function, got {type(handler).__name__}")
        called = unwrap(handler)
        if isgeneratorfunction(called) or isasyncgenfunction(called):
            name = getattr(called, "__qualname__", "a handler")
            raise InvalidHandler(f"{name}() yields, so that calling it runs none of it; return one reply, or publish")
        super().add_call(call)


class OutboxSubscriber(SubscriberUsecase[Any]):
    """Consumes one queue or several, or has them pulled."""

    _outer_config: OutboxBrokerConfig

    def __init__(
        self,
        config: OutboxSubscriberConfig,
        specification: OutboxSubscriberSpecification,
        calls: CallsCollection[Any],
    ) -> None:
        self.options = config.options
        config.parser = parse_batch if self.options.batch else parse_message
        config.decoder = decode_batch if self.options.batch else decode_body
        super().__init__(config, cast("Any", specification), calls)  # upstream's generics are invariant
        self._config = config
        self._consumer: Consumer | Puller | None = None
        self._stopping: asyncio.Task[None] | None = None
        self.transactional = config.transactional
        self._transaction: Transaction | None = None
        self._turn: asyncio.Lock | None = None  # of those whose transactions have lost against others
        self._built = 0  # handlers that are ready to be called

    @property
    def queues(self) -> tuple[str, ...]:
        """The queues with the prefixes of the routers around them."""
        return tuple(f"{self._outer_config.prefix}{queue}" for queue in self.options.queues)

    @property
    def served_queues(self) -> tuple[str, ...]:
        """Those from which this process consumes; see `OutboxBroker.serve`."""
        return tuple(queue for queue in self.queues if self._outer_config.serves(queue))

    # Life

    async def start(self) -> None:
        """Begin to consume, or without a handler to be pulled; does nothing if it has begun already."""
        if self._consumer is not None or not self.served_queues:
            return
        worker = self._outer_config.worker
        if worker is None:
            raise NotStarted(f"{self._name} has no database; create the broker with an engine")
        await worker.start(self.served_queues)
        consumer = self.make_consumer() if self.calls else self._make_puller()
        await super().start()
        self.lock = nullcontext()  # upstream counts what is in flight; here the slots know
        # Records for each message are at the broker's log_level; that it starts is worth INFO.
        if self._outer_config.logger.log_level < logging.INFO:
            started = f"`{self.specification.call_name}` waiting for messages"
            self._log(logging.INFO, started, self.get_log_context(None))
        worker.add(consumer)
        self._consumer = consumer
        self._post_start()

    def make_consumer(self) -> Consumer:
        """Its handlers as the engine sees them, ready to be called; nothing is consumed yet."""
        self.ack_policy = self._config.ack_policy  # again, since routers are included after their subscribers are made
        self._build_fastdepends_model()
        self._turn = asyncio.Lock()
        if self.transactional and self.ack_policy is AckPolicy.ACK_FIRST:
            raise OptionError(
                f"{self._name} cannot be transactional with AckPolicy.ACK_FIRST, which completes a message before its "
                "handler runs; choose one"
            )
        return Consumer(
            replace(
                self.options,
                queues=self.served_queues,
                max_workers=self._config.max_workers or self._outer_config.max_workers,
                last_exception_renderer=self._outer_config.last_exception_renderer,
            ),
            self._handle,
            silence="retry" if self.ack_policy is AckPolicy.MANUAL else "ack",
            ack_first=self.ack_policy is AckPolicy.ACK_FIRST,
            lane=self._outer_config.lane,
            functions=[call.handler._declared_call for call in self.calls],
        )

    def _build_fastdepends_model(self) -> None:
        injection = self._outer_config.injection
        bind = () if injection is None else (injection.bind,)
        self._call_decorators = (*bind, self._publish_replies_inside, *self._config.call_decorators)
        super()._build_fastdepends_model()
        self._built = len(self.calls)
        for call in self.calls:  # called as a plain function, a handler is what its author wrote
            call.handler._composed_call = call.handler._declared_call
        self._find_transaction()

    def _find_transaction(self) -> None:
        """Whether its handlers run in a transaction, and what opens that, if it is not the store."""
        middleware = transaction_middleware(self._outer_config.broker_middlewares, self._name)
        if middleware is not None and self._config.transactional:
            raise OptionError(f"{self._name} has transactional=True and a TransactionMiddleware; choose one")
        self.transactional = self._config.transactional or middleware is not None
        self._transaction = self._dependency()
        if middleware is None:
            return
        if self._transaction is not None:
            raise OptionError(
                f"the handlers of {self._name} depend on a session, and a TransactionMiddleware opens another one; keep the "
                "dependency, with transactional=True, or the middleware"
            )
        middleware.check(self._outer_config.store)
        self._transaction = middleware.open

    def _dependency(self) -> Transaction | None:
        """What the handlers depend on, and have opened where their arguments are found."""
        injection = self._outer_config.injection
        if injection is None or not self.transactional:
            return None
        return injection.transaction([call.handler._declared_call for call in self.calls])

    @property
    def _name(self) -> str:
        return f"subscriber of {', '.join(self.queues)}"

    async def stop(self) -> None:
        """Drain: give back what has not begun, and wait for the rest up to the broker's `graceful_timeout`."""
        stopping, self._stopping = self._stopping, None
        if stopping is not None:
            await stopping
        await self._drain()

    async def _drain(self) -> None:
        consumer, self._consumer = self._consumer, None
        self.running = False
        if consumer is not None and self._outer_config.worker is not None:
            await self._outer_config.worker.remove(consumer, timeout=self._outer_config.graceful_timeout or 0)

    # Handling

    async def process_message(self, msg: Any) -> Response:
        """The pipeline, and what it means for the message."""
        deliveries: Sequence[Delivery] = msg if self.options.batch else (msg,)
        if len(self.calls) != self._built:  # a handler was added since the start
            self._build_fastdepends_model()
        conflict: Exception | None = None
        try:
            response = await (process(self, msg) if pipeline_is_known() else super().process_message(msg))
        except HandlerException as raised:
            vote_of_exception(self.ack_policy, raised, deliveries)
            return ensure_response(None)
        except Conflicted as conflicted:
            conflict = conflicted.error
        except BaseException:  # of a timeout too; a handler that is cut by a stop is given back, whatever its vote
            vote_after_failure(self.ack_policy, deliveries)
            raise
        if conflict is not None:
            vote_after_failure(self.ack_policy, deliveries)
            raise conflict
        vote_after_return(self.ack_policy, deliveries)
        return response

    async def _handle(self, batch: Sequence[Delivery]) -> None:
        process = self._process_in_transaction if self.transactional else self._process
        try:
            await process(batch)
        except StopConsume:
            self._stop_soon("StopConsume")
        except SystemExit:
            self._stop_soon("SystemExit")
            if app := self._outer_config.context.get("app"):
                app.exit()

    async def _process(self, batch: Sequence[Delivery]) -> None:
        await self.process_message(batch if self.options.batch else batch[0])

    async def _process_in_transaction(self, batch: Sequence[Delivery]) -> None:
        """Handler, what it publishes, and the end of its message are committed together, or none of them."""
        assert self._outer_config.store is not None, "a consumer has a store"
        await in_transaction(self._outer_config.store, batch, self._process, self._transaction, self._turn)

    def _stop_soon(self, raised: str) -> None:
        """Start nothing more, and drain from outside: a slot that waited for its own end would wait for ever."""
        self._log(
            logging.WARNING, f"{', '.join(self.queues)}: a handler raised {raised}; nothing more is consumed here"
        )
        if self._consumer is not None:
            self._consumer.halt()
            if self._stopping is None or self._stopping.done():
                self._stopping = asyncio.create_task(self._drain())

    @property
    def _broker_middlewares(self) -> Sequence[Any]:
        middlewares = self._outer_config.broker_middlewares
        if self._config.propagate_inbound_headers:
            middlewares = [HeaderPropagation, *middlewares]
        store = self._outer_config.store
        if self.transactional and store is not None:
            middlewares = [partial(ConflictMiddleware, is_conflict=store.is_conflict), *middlewares]
        return middlewares

    def _publish_replies_inside(self, call: Callable[..., Any]) -> Callable[..., Any]:
        """FastStream publishes a reply after the handler's dependencies have closed, and its session with them."""
        return Replies(self, propagate_headers=self._config.propagate_inbound_headers).around(call)

    def _make_response_publisher(self, message: StreamMessage[Any]) -> Iterable[Any]:
        return (ReplyPublisher(self._outer_config.producer, message.reply_to),)  # type: ignore[arg-type]  # ours

    # Pulling

    async def get_one(self, *, timeout: float | None = 5) -> OutboxMessage | None:
        """The next message, leased until you vote; None after *timeout* seconds, or once the subscriber stops.

        For subscribers without a handler. The lease is extended for as long as the process has the message. `ack()`,
        `nack()`, `reject()` and `snooze()` are written when they return; if `message.lease_lost` by then, they had no
        effect, and another worker may have the message. There is no acknowledgement policy: without a vote the message is
        given back when the subscriber stops. A *timeout* of None waits for ever. Cancelling it loses nothing.

        Middlewares, parser and decoder are the subscriber's; if one of them raises, that is raised here, and the message is
        tried again when the retry strategy says. A body is decoded by `await message.decode()`.
        """
        puller = self._pulled()
        delivery = await puller.pull(check_timeout(timeout))
        return None if delivery is None else await self._receive(delivery, puller)

    def __aiter__(self) -> AsyncIterator[OutboxMessage]:
        """Every message as `get_one` gives it, until the subscriber stops."""
        return self._each_message(self._pulled())

    async def _each_message(self, puller: Puller) -> AsyncIterator[OutboxMessage]:
        while (delivery := await puller.pull(None)) is not None:
            yield await self._receive(delivery, puller)

    def _make_puller(self) -> Puller:
        renderer = self._outer_config.last_exception_renderer
        return Puller(replace(self.options, queues=self.served_queues, last_exception_renderer=renderer))

    def _pulled(self) -> Puller:
        name = self._name
        if self.calls:
            raise CannotPull(f"{name} has handlers, which get its messages; pull from one without a handler")
        if self.options.batch or self._config.transactional:
            option = "batch" if self.options.batch else "transactional"
            raise CannotPull(f"{name} has {option}=True, which is for handlers; pull from one without it")
        if isinstance(self._consumer, Puller):
            return self._consumer
        if self.running:  # as TestOutboxBroker pretends
            raise CannotPull(
                f"{name} has nothing to pull under TestOutboxBroker, which keeps no messages; use with_real=True"
            )
        raise NotStarted(f"{name} is not started; start it, or its broker, before pulling")

    async def _receive(self, delivery: Delivery, puller: Puller) -> OutboxMessage:
        """Through upstream's pipeline of pulled messages. Header propagation is no part of it, since there is no reply."""

        async def parse(raw: Delivery) -> OutboxMessage:
            message = await parser(raw)
            if not isinstance(message, OutboxMessage):
                raise WrongType("what a parser returns", "an OutboxMessage", message)
            message.settle = puller.settle
            return message

        context = self._outer_config.context
        try:
            parser, decoder = self._get_parser_and_decoder()
            message = await process_msg(
                delivery,
                middlewares=[one(delivery, context=context) for one in self._outer_config.broker_middlewares],
                parser=parse,
                decoder=decoder,
            )
            if not isinstance(message, OutboxMessage):
                raise WrongType("what a middleware's consume_scope returns", "what call_next returned", message)
        except Exception as error:
            await puller.settle(delivery, error)
            raise
        except BaseException:
            puller.pass_on(delivery)
            raise
        return message

    def get_log_context(self, message: StreamMessage[Any] | None) -> dict[str, str]:
        if message is None:
            return {"queue": ",".join(self.queues), "message_id": ""}
        first = message.raw_message[0] if self.options.batch else message.raw_message
        return {"queue": first.queue, "message_id": message.message_id}
