"""Endpoints collected without a broker, to be included into one, with a prefix if wanted."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypedDict, Unpack

from faststream.middlewares import AckPolicy

from outbox_core.envelope import check_name
from outbox_core.faststream._compat import EMPTY, ArgsContainer, BrokerRouter, SubscriberRoute
from outbox_core.faststream.config import OutboxBrokerConfig
from outbox_core.faststream.registrator import OutboxRegistrator, check_ack_policy
from outbox_core.options import SubscriberOptions


class RouteOptions(SubscriberOptions, total=False):
    """The keyword arguments of `router.subscriber`."""

    dependencies: Sequence[Any]
    parser: Any
    decoder: Any
    codec: Any
    ack_policy: AckPolicy
    no_reply: bool
    propagate_inbound_headers: bool
    transactional: bool
    call_decorators: Sequence[Callable[..., Any]]
    persistent: bool
    title: str | None
    description: str | None
    include_in_schema: bool


class PublisherOptions(TypedDict, total=False):
    """The keyword arguments of `router.publisher`."""

    headers: dict[str, str] | None
    key: str | None
    priority: int
    reply_to: str
    batch: bool
    persistent: bool
    title: str | None
    description: str | None
    schema: Any
    include_in_schema: bool


class OutboxPublisherArgs(ArgsContainer):
    """A publisher of an `OutboxRoute`, as arguments of `router.publisher`."""

    def __init__(self, queue: str, **options: Unpack[PublisherOptions]) -> None:
        super().__init__(queue, **options)


class OutboxRoute(SubscriberRoute):
    """A handler with its subscriber's arguments, for `OutboxRouter(handlers=[...])`."""

    def __init__(
        self,
        call: Callable[..., Any],
        queues: str | Sequence[str],
        *,
        publishers: Iterable[OutboxPublisherArgs] = (),
        **options: Unpack[RouteOptions],
    ) -> None:
        super().__init__(call, queues, publishers=publishers, **options)


class OutboxRouter(OutboxRegistrator, BrokerRouter[Any, OutboxBrokerConfig]):
    """Collects endpoints; `broker.include_router(router)` gives them a database."""

    def __init__(
        self,
        prefix: str = "",
        handlers: Iterable[OutboxRoute] = (),
        *,
        dependencies: Sequence[Any] = (),
        middlewares: Sequence[Any] = (),
        routers: Iterable["OutboxRouter"] = (),
        parser: Any = None,
        decoder: Any = None,
        codec: Any = None,
        ack_policy: AckPolicy = EMPTY,
        include_in_schema: bool | None = None,
    ) -> None:
        if prefix != "":
            check_name("prefix", prefix)
        super().__init__(
            config=OutboxBrokerConfig(
                prefix=prefix,
                broker_dependencies=dependencies,
                broker_middlewares=middlewares,
                broker_parser=parser,
                broker_decoder=decoder,
                broker_codec=codec,
                ack_policy=check_ack_policy(ack_policy),
                include_in_schema=include_in_schema,
            ),
            handlers=handlers,
            routers=routers,
        )
