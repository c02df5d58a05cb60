"""Gauges of what lies in the queues, for Prometheus; needs the extra `prometheus` and no FastStream.

    gauges = QueueGauges(registry=registry)

    async def metrics() -> bytes:
        gauges.show(await broker.stats())
        return generate_latest(registry)

Counting reads the whole table, so it is done when the application says so, and a scrape by itself counts nothing.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from outbox_core.message import OutboxStats

try:
    from prometheus_client.core import GaugeMetricFamily
    from prometheus_client.registry import Collector
except ImportError as error:
    raise ImportError(f"{error}; pip install 'shared-outbox[prometheus]'") from error

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

STATES = ("ready", "scheduled", "leased", "dead")


class QueueGauges(Collector):
    """What was last shown, by `queue`; nothing before that.

    `outbox_queue_messages`, also by `state`: ready, scheduled, leased or dead. `outbox_queue_blocked_keys`: keys whose first
    message keeps others waiting. `outbox_queue_oldest_seconds`: the age of the oldest message that is ready, 0 if none is.
    `outbox_queue_paused`: 0 or 1. A queue that has nothing is gone.

    *registry*: where the gauges are kept. *metrics_prefix*: of each gauge's name; two outboxes in one registry need two.
    """

    def __init__(self, *, registry: "CollectorRegistry", metrics_prefix: str = "outbox") -> None:
        self._prefix = metrics_prefix
        self._stats = OutboxStats({})
        registry.register(self)

    def show(self, stats: OutboxStats) -> None:
        """Show *stats* from now on; callable from any thread, and a scrape sees all of the old figures or all of the new."""
        self._stats = stats

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """What the registry asks for."""
        messages = self._gauge("messages", "Messages of the queue by state", "state")
        blocked = self._gauge("blocked_keys", "Keys whose first message keeps others waiting")
        oldest = self._gauge("oldest_seconds", "Age of the oldest message that is ready")
        paused = self._gauge("paused", "Whether no worker may claim from the queue")
        for name, queue in self._stats.queues.items():
            for state in STATES:
                messages.add_metric([name, state], getattr(queue, state))
            blocked.add_metric([name], queue.blocked_keys)
            oldest.add_metric([name], queue.oldest_age or 0.0)
            paused.add_metric([name], queue.paused)
        yield from (messages, blocked, oldest, paused)

    def _gauge(self, name: str, help: str, *labels: str) -> GaugeMetricFamily:
        return GaugeMetricFamily(f"{self._prefix}_queue_{name}", help, labels=("queue", *labels))
