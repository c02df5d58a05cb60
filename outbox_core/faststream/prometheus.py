"""FastStream's Prometheus metrics of handlers and publishes, with `broker="outbox"`; needs the extra `prometheus`.

    registry = CollectorRegistry()
    broker = OutboxBroker(engine, middlewares=[OutboxPrometheusMiddleware(registry=registry)])

Names and labels are those that FastStream's other brokers have, so one dashboard shows them all.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from faststream.message import StreamMessage

from outbox_core.faststream._compat import EMPTY
from outbox_core.faststream.response import OutboxPublishCommand

try:
    from faststream.prometheus import ConsumeAttrs, MetricsSettingsProvider, PrometheusMiddleware
except ImportError as error:
    raise ImportError(f"{error}; pip install 'shared-outbox[prometheus]'") from error

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry


class OutboxPrometheusMiddleware(PrometheusMiddleware[Any, OutboxPublishCommand]):
    """Counts, measures and times messages by queue.

    *registry*: where the metrics are kept. *app_name*: the label of that name, the prefix by default. *metrics_prefix*:
    of each metric's name. *received_messages_size_buckets*: in bytes. *custom_labels*: more labels, each a text or a
    function of the delivery, which is None for a publish.
    """

    def __init__(
        self,
        *,
        registry: "CollectorRegistry",
        app_name: str = EMPTY,
        metrics_prefix: str = "faststream",
        received_messages_size_buckets: Sequence[float] | None = None,
        custom_labels: dict[str, str | Callable[[Any], str]] | None = None,
    ) -> None:
        settings = _Settings()
        super().__init__(
            settings_provider_factory=lambda message: settings,
            registry=registry,
            app_name=app_name,
            metrics_prefix=metrics_prefix,
            received_messages_size_buckets=received_messages_size_buckets,
            custom_labels=custom_labels,
        )


class _Settings(MetricsSettingsProvider[Any, OutboxPublishCommand]):
    messaging_system = "outbox"

    def get_consume_attrs_from_message(self, msg: StreamMessage[Any]) -> ConsumeAttrs:
        deliveries = msg.raw_message if isinstance(msg.raw_message, Sequence) else [msg.raw_message]
        return {
            "destination_name": deliveries[0].queue,
            "message_size": sum(len(delivery.payload) for delivery in deliveries),
            "messages_count": len(deliveries),
        }

    def get_publish_destination_name_from_cmd(self, cmd: OutboxPublishCommand) -> str:
        return cmd.destination
