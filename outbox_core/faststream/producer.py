"""From a publish command to a row: the end of FastStream's publish pipeline.

It never waits but for the database, so a pipeline whose middlewares do not wait either can be driven without an event
loop (`outbox_core.waiting.drive`): that is how a synchronous publish runs the same middlewares.
"""

import warnings
from collections import ChainMap
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Literal, NoReturn, TypeAlias, cast

from faststream.exceptions import FeatureNotSupportedException

from outbox_core.completion import open_session
from outbox_core.envelope import Envelope, cannot_encode, check_encoded
from outbox_core.errors import NoTransaction, NotStarted
from outbox_core.faststream._compat import EMPTY, DefaultCodec, ProducerProto
from outbox_core.faststream.message import decode_body, parse_message
from outbox_core.faststream.response import OutboxPublishCommand
from outbox_core.message import NewMessage
from outbox_core.store import Store

if TYPE_CHECKING:
    from outbox_core.faststream.config import OutboxBrokerConfig

TransactionPolicy: TypeAlias = Literal["ignore", "warn", "error"]

_NO_TRANSACTION = (
    "publish to {queue!r} has no session, so it is not atomic with anything; pass session=… to publish in your "
    "transaction, or standalone=True if that is what you want"
)


_stand_ins: ContextVar[Mapping[object, "OutboxProducer"] | None] = ContextVar("outbox_producers", default=None)


class ProducerSlot:
    """Where a broker's config keeps a producer. A task may have another in its place, for itself; see `standing_in`."""

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    def __get__(self, config: Any, owner: type) -> ProducerProto[Any]:
        own: ProducerProto[Any] = config.__dict__[self._name]
        stand_ins = _stand_ins.get()
        return own if stand_ins is None else stand_ins.get(own, own)

    def __set__(self, config: Any, producer: object) -> None:
        config.__dict__[self._name] = producer


@contextmanager
def standing_in(producers: "Iterable[tuple[OutboxBrokerConfig, OutboxProducer, OutboxProducer]]") -> Iterator[None]:
    """Within, the current task and what it starts publish by these producers, asynchronously and synchronously.

    All others publish by their own, and so does, once this is over, a task that was started within.
    """
    mine: dict[object, OutboxProducer] = {}
    for config, producer, sync_producer in producers:
        mine |= {vars(config)["producer"]: producer, vars(config)["sync_producer"]: sync_producer}
    before = _stand_ins.get()
    here = ChainMap(mine, cast("dict[object, OutboxProducer]", before or {}))
    _stand_ins.set(here)
    try:
        yield
    finally:
        mine.clear()
        if _stand_ins.get() is here:  # a fixture may be left in another context than it was entered in
            _stand_ins.set(before)


class OutboxProducer(ProducerProto[OutboxPublishCommand]):
    """Inserts rows through the broker's store."""

    _parser = staticmethod(parse_message)
    _decoder = staticmethod(decode_body)

    def __init__(self, config: "OutboxBrokerConfig") -> None:
        self._config = config

    @property
    def codec(self) -> Any:  # type: ignore[override]  # upstream declares an attribute; ours follows the broker's
        return self._config.broker_codec or DefaultCodec()

    async def publish(self, cmd: OutboxPublishCommand) -> int | None:
        return next(iter(await self.publish_batch(cmd)), None)

    async def publish_batch(self, cmd: OutboxPublishCommand) -> list[int | None]:
        session = self._session(cmd)
        self.check_transaction(cmd, session)
        messages = await self.compose(cmd)
        return await self._store.insert(messages, session) if messages else []

    async def request(self, cmd: OutboxPublishCommand) -> NoReturn:
        raise FeatureNotSupportedException(
            "an outbox has no request(): a row is invisible until its transaction commits, so waiting for an answer "
            "inside it would wait for ever; publish with reply_to=… and subscribe to the answers"
        )

    @property
    def _store(self) -> Store:
        if self._config.store is None:
            raise NotStarted("this broker has no store; give it an engine, or publish with session=…")
        return self._config.store

    def _session(self, cmd: OutboxPublishCommand) -> object | None:
        """The caller's, or that of the transactional handler which publishes."""
        return open_session(self._store) if cmd.session is None else cmd.session

    def check_transaction(self, cmd: OutboxPublishCommand, session: object | None) -> None:
        """Apply `require_transaction` to a publish without a session."""
        if session is not None or cmd.standalone or self._config.require_transaction == "ignore":
            return
        text = _NO_TRANSACTION.format(queue=cmd.destination)
        if self._config.require_transaction == "error":
            raise NoTransaction(text)
        warnings.warn(text, RuntimeWarning, stacklevel=2)

    async def compose(self, cmd: OutboxPublishCommand) -> list[NewMessage]:
        """Check and encode everything before anything is sent."""
        envelope = Envelope(
            cmd.destination,
            headers=cmd.headers,
            correlation_id=cmd.correlation_id,
            reply_to=cmd.reply_to,
            key=cmd.key,
            priority=cmd.priority,
            activate_in=cmd.activate_in,
            activate_at=cmd.activate_at,
            timer_id=cmd.timer_id,
            timer_conflict=cmd.timer_conflict,
            max_payload_bytes=self._config.max_payload_bytes,
        )
        if self._config.broker_codec is None and self._config.fd_config.serializer in (EMPTY, None):
            return [envelope.seal(body, cmd.message_id) for body in cmd.batch_bodies]
        return [envelope.seal(body, cmd.message_id, await self._encode(body)) for body in cmd.batch_bodies]

    async def _encode(self, body: object) -> tuple[bytes, str | None]:
        """By the user's codec or serializer."""
        try:
            encoded = await self.codec.encode(body, self._config.fd_config._serializer)
        except (TypeError, ValueError) as error:
            raise cannot_encode(body, error) from error
        return check_encoded(encoded)


class SyncProducer(OutboxProducer):
    """The same on a synchronous session."""

    async def publish_batch(self, cmd: OutboxPublishCommand) -> list[int | None]:
        messages = await self.compose(cmd)
        return self._store.insert_sync(messages, cmd.session) if messages else []
