"""`subscriber` and `publisher`: where brokers and routers turn decorators into endpoints."""

from collections.abc import Callable, Sequence
from typing import Any, Unpack

from faststream.middlewares import AckPolicy

from outbox_core.errors import WrongType
from outbox_core.faststream._compat import EMPTY, Registrator
from outbox_core.faststream.config import (
    OutboxBrokerConfig,
    OutboxPublisherConfig,
    OutboxPublisherSpecificationConfig,
    OutboxSubscriberConfig,
    OutboxSubscriberSpecificationConfig,
)
from outbox_core.faststream.publisher import OutboxPublisher, OutboxPublisherSpecification
from outbox_core.faststream.subscriber import Handlers, OutboxSubscriber, OutboxSubscriberSpecification
from outbox_core.options import ConsumerOptions, SubscriberOptions


class OutboxRegistrator(Registrator[Any, OutboxBrokerConfig]):
    """Registers endpoints with our options beside FastStream's own."""

    def subscriber(  # type: ignore[override]  # every broker of FastStream's replaces this signature
        self,
        queues: str | Sequence[str],
        *,
        dependencies: Sequence[Any] = (),
        parser: Any = None,
        decoder: Any = None,
        codec: Any = None,
        ack_policy: AckPolicy = EMPTY,
        no_reply: bool = False,
        propagate_inbound_headers: bool = False,
        transactional: bool = False,
        call_decorators: Sequence[Callable[..., Any]] = (),
        persistent: bool = True,
        title: str | None = None,
        description: str | None = None,
        include_in_schema: bool = True,
        **options: Unpack[SubscriberOptions],
    ) -> OutboxSubscriber:
        """Subscribe to one queue or several; decorate a handler with the result.

        *transactional*: the handler runs in a transaction of the outbox's database (`message.session`), which also completes
        its message: what it writes and publishes there is committed with that, or not at all. *call_decorators*: put around
        its handlers, next to them. The engine's options are those of `ConsumerOptions`. Raises at this line what is wrong
        with them.
        """
        consumer_options = ConsumerOptions.of(queues, options)
        check_ack_policy(ack_policy)
        if not isinstance(transactional, bool):
            raise WrongType("transactional", "True or False", transactional)
        config = OutboxSubscriberConfig(
            _outer_config=self.config,  # type: ignore[arg-type]  # a composition that answers for the config
            _ack_policy=ack_policy,
            no_reply=no_reply,
            options=consumer_options,
            propagate_inbound_headers=propagate_inbound_headers,
            transactional=transactional,
            max_workers=options.get("max_workers"),
            call_decorators=call_decorators,
        )
        calls = Handlers()
        specification = OutboxSubscriberSpecification(
            self.config,
            OutboxSubscriberSpecificationConfig(
                queues=consumer_options.queues,
                title_=title,
                description_=description,
                include_in_schema=include_in_schema,
            ),
            calls,
        )
        subscriber = OutboxSubscriber(config, specification, calls)
        super().subscriber(subscriber, persistent=persistent)
        return subscriber.add_call(
            parser_=parser or self._parser,
            decoder_=decoder or self._decoder,
            dependencies_=dependencies,
            codec_=codec,
        )

    def publisher(  # type: ignore[override]  # as above
        self,
        queue: str,
        *,
        headers: dict[str, str] | None = None,
        key: str | None = None,
        priority: int = 0,
        reply_to: str = "",
        batch: bool = False,
        persistent: bool = True,
        title: str | None = None,
        description: str | None = None,
        schema: Any = None,
        include_in_schema: bool = True,
    ) -> OutboxPublisher:
        """A publisher to one queue; decorate a handler with it to publish what the handler returns.

        *headers*, *key*, *priority* and *reply_to* stand where a publish gives none. *batch*: of a list or tuple that the
        handler returns, each item is a message, all of them in one statement; None and an empty one publish nothing.
        """
        config = OutboxPublisherConfig(
            _outer_config=self.config,  # type: ignore[arg-type]  # a composition that answers for the config
            queue=queue,
            headers=headers or {},
            key=key,
            priority=priority,
            reply_to=reply_to,
            batch=batch,
        )
        specification = OutboxPublisherSpecification(
            self.config,
            OutboxPublisherSpecificationConfig(
                queue=queue,
                schema_=schema,
                title_=title,
                description_=description,
                include_in_schema=include_in_schema,
            ),
        )
        publisher = OutboxPublisher(config, specification)
        super().publisher(publisher, persistent=persistent)
        return publisher


def check_ack_policy(policy: object) -> Any:
    """*policy* if it is FastStream's, or none is given."""
    if policy is not EMPTY and not isinstance(policy, AckPolicy):
        raise WrongType("ack_policy", "an AckPolicy", policy, "such as AckPolicy.REJECT_ON_ERROR")
    return policy
