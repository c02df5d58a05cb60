"""A publisher: a queue with fixed headers, called by itself or stacked on a subscriber whose replies it publishes."""

from collections.abc import Iterable, Mapping
from typing import Any, Unpack, cast

from faststream.response import PublishCommand, PublishType
from faststream.specification.asyncapi.utils import resolve_payloads
from faststream.specification.schema import Message, Operation, PublisherSpec

from outbox_core.envelope import Envelope, PublishOptions, check_queue
from outbox_core.faststream._compat import FakePublisher, PublisherSpecification, PublisherUsecase
from outbox_core.faststream.config import (
    OutboxBrokerConfig,
    OutboxPublisherConfig,
    OutboxPublisherSpecificationConfig,
)
from outbox_core.faststream.producer import OutboxProducer
from outbox_core.faststream.response import OutboxPublishCommand


class OutboxPublisherSpecification(PublisherSpecification[Any, OutboxPublisherSpecificationConfig]):
    """How a publisher appears in the AsyncAPI document."""

    @property
    def queue(self) -> str:
        return f"{self._outer_config.prefix}{self.config.queue}"

    @property
    def name(self) -> str:
        return self.config.title_ or f"{self.queue}:Publisher"

    def get_schema(self) -> dict[str, PublisherSpec]:
        payload = resolve_payloads(self.get_payloads(), "Publisher")
        return {
            self.name: PublisherSpec(
                address=self.queue,
                description=self.config.description_,
                operation=Operation(message=Message(title=f"{self.name}:Message", payload=payload), bindings=None),
                bindings=None,
            )
        }


class OutboxPublisher(PublisherUsecase):
    """Publishes to one queue; its headers, key, priority and `reply_to` stand where a call gives none."""

    _outer_config: OutboxBrokerConfig

    def __init__(self, config: OutboxPublisherConfig, specification: OutboxPublisherSpecification) -> None:
        super().__init__(config, cast("Any", specification))  # upstream's generics are invariant
        self._queue = check_queue(config.queue)
        # What it adds to every message is refused here and not at the first of them.
        Envelope(
            self._queue, headers=config.headers, key=config.key, priority=config.priority, reply_to=config.reply_to
        )
        self.headers = config.headers
        self.key = config.key
        self.priority = config.priority
        self.reply_to = config.reply_to
        self.batch = config.batch

    @property
    def queue(self) -> str:
        return f"{self._outer_config.prefix}{self._queue}"

    async def publish(
        self,
        message: Any,
        queue: str = "",
        *,
        session: object | None = None,
        standalone: bool = False,
        headers: Mapping[str, str] | None = None,
        **options: Unpack[PublishOptions],
    ) -> int | None:
        """Publish *message*; see `OutboxBroker.publish`."""
        command = self._command(
            message, queue=queue, session=session, standalone=standalone, headers=headers, **options
        )
        row_id: int | None = await self._basic_publish(
            command, producer=self._outer_config.producer, _extra_middlewares=()
        )
        return row_id

    async def _publish(self, cmd: PublishCommand, *, _extra_middlewares: Iterable[Any]) -> None:
        """Called with a handler's reply, unless it was published on the handler's session."""
        command = self.completed(OutboxPublishCommand.from_cmd(cmd))
        if command.published or not command.batch_bodies:
            return
        await self._basic_publish(command, producer=self._outer_config.producer, _extra_middlewares=_extra_middlewares)

    async def request(
        self,
        message: Any,
        queue: str = "",
        *,
        timeout: float | None = None,
        headers: Mapping[str, str] | None = None,
        **options: Unpack[PublishOptions],
    ) -> Any:
        """Refused outside tests: see `OutboxProducer.request`."""
        command = self._command(message, queue=queue, headers=headers, _publish_type=PublishType.REQUEST, **options)
        command.timeout = timeout
        return await self._basic_request(command, producer=self._outer_config.producer)

    def _command(self, message: Any, **options: Any) -> OutboxPublishCommand:
        command = OutboxPublishCommand(message, **options)
        if command.correlation_id is None:
            command.correlation_id = self._outer_config.new_correlation_id()
        return self._complete(command)

    def completed(self, reply: OutboxPublishCommand) -> OutboxPublishCommand:
        """A handler's *reply* on its way to this publisher's queue, wherever else it goes."""
        reply.destination = ""
        reply.standalone = True
        return self._complete(OutboxPublishCommand.from_cmd(reply, batch=self.batch))

    def _complete(self, command: OutboxPublishCommand) -> OutboxPublishCommand:
        command.destination = command.destination or self.queue
        if self.headers and isinstance(command.headers, Mapping):
            command.headers = {**self.headers, **command.headers}
        if command.key is None:
            command.key = self.key
        if "priority" not in command.given:
            command.priority = self.priority
        if command.reply_to in ("", None):
            command.reply_to = self.reply_to
        return command


class ReplyPublisher(FakePublisher):
    """Publishes a handler's answer to the queue that the message's `reply_to` names."""

    _producer: OutboxProducer

    def __init__(self, producer: OutboxProducer, queue: str) -> None:
        super().__init__(producer=producer)
        self._queue = queue

    def patch_command(self, cmd: PublishCommand) -> OutboxPublishCommand:
        command = OutboxPublishCommand.from_cmd(super().patch_command(cmd))
        command.destination = self._queue
        command.standalone = True
        return command

    async def _publish(self, cmd: PublishCommand, *, _extra_middlewares: Iterable[Any]) -> None:
        if not getattr(cmd, "published", False):
            await super()._publish(cmd, _extra_middlewares=_extra_middlewares)
