"""What a broker hands down to its subscribers and publishers, in FastStream's own form."""

import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from faststream.message import StreamMessage, gen_cor_id
from faststream.middlewares import AckPolicy

from outbox_core.completion import Transaction
from outbox_core.envelope import MAX_PAYLOAD_BYTES
from outbox_core.faststream._compat import (
    EMPTY,
    BrokerConfig,
    ContextRepo,
    DefaultLoggerStorage,
    LoggerState,
    PublisherSpecificationConfig,
    PublisherUsecaseConfig,
    SubscriberSpecificationConfig,
    SubscriberUsecaseConfig,
    get_broker_logger,
    make_logger_state,
)
from outbox_core.faststream.producer import ProducerSlot, SyncProducer, TransactionPolicy
from outbox_core.options import ConsumerOptions
from outbox_core.quoting import indent_traceback, one_line
from outbox_core.slots import Lane
from outbox_core.store import Store
from outbox_core.worker import Worker


class Injection(Protocol):
    """How another framework finds the arguments of handlers, in FastDepends' place."""

    def bind(self, call: Callable[..., Any], /) -> Callable[[StreamMessage[Any]], Awaitable[Any]]:
        """The handler *call* as a function of its message."""

    def describe(self, bound: Any, dependencies: Sequence[Any], /) -> Any:
        """Give what `bind` made the *dependencies* of its subscriber and routers; its parameters, for AsyncAPI."""

    def transaction(self, calls: Sequence[Callable[..., Any]], /) -> Transaction | None:
        """What opens the transaction on which the handlers *calls* depend; None: nothing of theirs."""


def _all_queues(queue: str) -> bool:
    return True


@dataclass(kw_only=True)
class OutboxBrokerConfig(BrokerConfig):
    """FastStream's options of a broker, and ours."""

    store: Store | None = None
    worker: Worker | None = None
    require_transaction: TransactionPolicy = "ignore"
    lane: Lane | None = None
    injection: Injection | None = None
    max_workers: int = 1
    max_payload_bytes: int = MAX_PAYLOAD_BYTES
    last_exception_renderer: Callable[[BaseException], str] | None = None
    serves: Callable[[str], bool] = _all_queues
    producer = ProducerSlot()
    sync_producer = ProducerSlot()

    def __post_init__(self) -> None:
        super().__post_init__()
        self.sync_producer = SyncProducer(self)

    def new_correlation_id(self) -> str | None:
        """The user's generator's; the default one's random id says less than the message's own, which None stands for."""
        return None if self.id_generator is gen_cor_id else self.id_generator()


@dataclass(kw_only=True)
class OutboxSubscriberConfig(SubscriberUsecaseConfig):
    """One subscriber. The acknowledgement policy is its own, then the broker's, then NACK_ON_ERROR."""

    _outer_config: OutboxBrokerConfig
    options: ConsumerOptions
    propagate_inbound_headers: bool = False
    transactional: bool = False
    max_workers: int | None = None
    call_decorators: Sequence[Callable[..., Any]] = ()

    @property
    def auto_ack_disabled(self) -> bool:
        """Upstream's middleware is not entered; see `outbox_core.faststream.acknowledgement`."""
        return True

    @property
    def ack_policy(self) -> AckPolicy:
        for policy in (self._ack_policy, self._outer_config.ack_policy):
            if policy is not EMPTY:
                return policy
        return AckPolicy.NACK_ON_ERROR


@dataclass(kw_only=True)
class OutboxSubscriberSpecificationConfig(SubscriberSpecificationConfig):
    queues: tuple[str, ...]


@dataclass(kw_only=True)
class OutboxPublisherConfig(PublisherUsecaseConfig):
    _outer_config: OutboxBrokerConfig
    queue: str
    headers: dict[str, str]
    key: str | None
    priority: int
    reply_to: str
    batch: bool


@dataclass(kw_only=True)
class OutboxPublisherSpecificationConfig(PublisherSpecificationConfig):
    queue: str


class OutboxLoggerStorage(DefaultLoggerStorage):
    """The default logger: queue and message id beside each record."""

    __slots__ = ("_longest_queue",)

    def __init__(self) -> None:
        super().__init__()
        self._longest_queue = 4

    def set_level(self, level: int) -> None:
        self.logger_log_level = level

    def register_subscriber(self, params: dict[str, str]) -> None:
        self._longest_queue = max(self._longest_queue, len(params.get("queue", "")))

    def get_logger(self, *, context: ContextRepo) -> logging.Logger:
        logger = self._get_logger_ref()
        if logger is None:
            logger = get_broker_logger(
                name="outbox",
                default_context={"queue": ""},
                message_id_ln=10,
                fmt=(
                    f"%(asctime)s %(levelname)-8s - %(queue)-{self._longest_queue}s | %(message_id)-10s - %(message)s"
                ),
                context=context,
                log_level=self.logger_log_level,
            )
            logger.addFilter(indent_traceback)
            self._logger_ref.add(logger)
        return logger


class OutboxLoggerState(LoggerState):
    """FastStream's records, of which those about failures repeat what an exception says, each on one line."""

    __slots__ = ()

    def log(self, message: str, *args: Any, **options: Any) -> None:
        super().log(one_line(message), *args, **options)


def make_outbox_logger_state(logger: Any, log_level: int) -> LoggerState:
    made = make_logger_state(logger=logger, log_level=log_level, default_storage_cls=OutboxLoggerStorage)
    return OutboxLoggerState(made.log_level, made.params_storage)
