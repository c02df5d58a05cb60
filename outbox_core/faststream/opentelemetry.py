"""FastStream's OpenTelemetry spans and metrics of handlers and publishes; needs the extra `opentelemetry`.

    broker = OutboxBroker(engine, middlewares=[OutboxTelemetryMiddleware(tracer_provider=provider)])

Each message carries the context of the span that published it, so a handler's span is in the trace of the publish, and
what the handler publishes is in that trace too. Without this middleware the core still puts the current span's context into
the headers (`outbox_core.envelope.trace_headers`).
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from faststream.message import StreamMessage

from outbox_core.faststream.response import OutboxPublishCommand

try:
    from faststream.opentelemetry import TelemetryMiddleware, TelemetrySettingsProvider
    from faststream.opentelemetry.consts import MESSAGING_DESTINATION_PUBLISH_NAME
    from opentelemetry.semconv.trace import SpanAttributes
except ImportError as error:
    raise ImportError(f"{error}; pip install 'shared-outbox[opentelemetry]'") from error

if TYPE_CHECKING:
    from opentelemetry.metrics import Meter, MeterProvider
    from opentelemetry.trace import TracerProvider


class OutboxTelemetryMiddleware(TelemetryMiddleware[OutboxPublishCommand]):
    """Spans for publishes and handler runs, and how long they took.

    *tracer_provider*, *meter_provider*: the global ones by default; *meter*: instead of a provider.
    *include_messages_counters*: count messages as well.
    """

    def __init__(
        self,
        *,
        tracer_provider: "TracerProvider | None" = None,
        meter_provider: "MeterProvider | None" = None,
        meter: "Meter | None" = None,
        include_messages_counters: bool = True,
    ) -> None:
        settings = _Settings()
        super().__init__(
            settings_provider_factory=lambda message: settings,
            tracer_provider=tracer_provider,
            meter_provider=meter_provider,
            meter=meter,
            include_messages_counters=include_messages_counters,
        )


class _Settings(TelemetrySettingsProvider[Any, OutboxPublishCommand]):
    messaging_system = "outbox"

    def get_consume_attrs_from_message(self, msg: StreamMessage[Any]) -> dict[str, Any]:
        attributes = {
            SpanAttributes.MESSAGING_SYSTEM: self.messaging_system,
            SpanAttributes.MESSAGING_MESSAGE_ID: msg.message_id,
            SpanAttributes.MESSAGING_MESSAGE_CONVERSATION_ID: msg.correlation_id,
            SpanAttributes.MESSAGING_MESSAGE_PAYLOAD_SIZE_BYTES: sum(len(one.payload) for one in _deliveries(msg)),
            MESSAGING_DESTINATION_PUBLISH_NAME: self.get_consume_destination_name(msg),
        }
        if isinstance(msg.raw_message, Sequence):
            attributes[SpanAttributes.MESSAGING_BATCH_MESSAGE_COUNT] = len(msg.raw_message)
        return attributes

    def get_consume_destination_name(self, msg: StreamMessage[Any]) -> str:
        queue: str = _deliveries(msg)[0].queue
        return queue

    def get_publish_attrs_from_cmd(self, cmd: OutboxPublishCommand) -> dict[str, Any]:
        attributes = {
            SpanAttributes.MESSAGING_SYSTEM: self.messaging_system,
            SpanAttributes.MESSAGING_DESTINATION_NAME: cmd.destination,
        }
        if cmd.correlation_id is not None:  # None: the message's id, which is made later
            attributes[SpanAttributes.MESSAGING_MESSAGE_CONVERSATION_ID] = cmd.correlation_id
        return attributes

    def get_publish_destination_name(self, cmd: OutboxPublishCommand) -> str:
        return cmd.destination


def _deliveries(msg: StreamMessage[Any]) -> Sequence[Any]:
    return msg.raw_message if isinstance(msg.raw_message, Sequence) else [msg.raw_message]
