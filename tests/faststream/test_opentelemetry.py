"""Spans and metrics of handlers and publishes: one trace from the publish to what the handler publishes in turn."""

from collections.abc import Iterator
from typing import Any

import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from sqlalchemy.orm import Session

from outbox_core.faststream.opentelemetry import OutboxTelemetryMiddleware
from outbox_core.retry import NoRetry
from outbox_sqlalchemy import OutboxResponse
from tests.places import Place, running, until


@pytest.fixture
def spans() -> Iterator["Spans"]:
    spans = Spans()
    yield spans
    spans.provider.shutdown()


class Spans:
    """What a tracer provider of the test's own has exported."""

    def __init__(self) -> None:
        self._exporter = InMemorySpanExporter()
        self.provider = TracerProvider()
        self.provider.add_span_processor(SimpleSpanProcessor(self._exporter))

    def middleware(self, **options: Any) -> OutboxTelemetryMiddleware:
        return OutboxTelemetryMiddleware(tracer_provider=self.provider, **options)

    def names(self) -> list[str]:
        return sorted(span.name for span in self._exporter.get_finished_spans())

    def of(self, name: str) -> ReadableSpan:
        (span,) = [span for span in self._exporter.get_finished_spans() if span.name == name]
        return span

    def traces(self) -> int:
        return len({span.context.trace_id for span in self._exporter.get_finished_spans()})


async def test_a_handler_and_what_it_publishes_are_in_the_trace_of_the_publish(both: Place, spans: Spans) -> None:
    broker = both.broker(middlewares=[spans.middleware()])

    @broker.subscriber("orders")
    @broker.publisher("letters")
    async def handle(body: int) -> OutboxResponse:
        await broker.publish(body, "mails")
        return OutboxResponse(body, queue="chosen")

    async with running(broker):
        await broker.publish(7, "orders", correlation_id="c")
        await until(lambda: sorted(row.queue for row in both.rows()), ["chosen", "letters", "mails"])
        await until(lambda: "orders process" in spans.names(), True)

    assert spans.traces() == 1
    trace_id = f"{spans.of('orders publish').context.trace_id:032x}"
    assert [row.headers["traceparent"].split("-")[1] for row in both.rows()] == [trace_id] * 3
    attributes = dict(spans.of("orders process").attributes or {})
    assert attributes["messaging.system"] == "outbox"
    assert attributes["messaging.message.conversation_id"] == "c"
    assert attributes["messaging.message.payload_size_bytes"] == 1
    assert (spans.of("orders publish").attributes or {})["messaging.destination.name"] == "orders"


async def test_messages_without_a_correlation_id_and_synchronous_publishes_have_spans(
    place: Place, spans: Spans, caplog: pytest.LogCaptureFixture
) -> None:
    broker = place.broker(middlewares=[spans.middleware()])

    with Session(place.sync_engine) as session, session.begin():
        broker.publish_sync(1, "orders", session=session)

    assert spans.names() == ["orders create", "orders publish"]
    assert spans.of("orders publish").attributes == {
        "messaging.system": "outbox",
        "messaging.destination.name": "orders",
        "messaging.operation": "publish",
    }
    assert caplog.records == []  # an attribute of None is a warning of the SDK's


async def test_a_callers_headers_are_left_alone(place: Place, spans: Spans) -> None:
    broker = place.broker(middlewares=[spans.middleware()])
    headers = {"tenant": "acme"}

    await broker.publish(1, "orders", headers=headers)

    assert headers == {"tenant": "acme"}
    assert {"tenant", "traceparent"} <= place.rows()[0].headers.keys()


async def test_a_batch_links_to_the_traces_of_its_messages(place: Place, spans: Spans) -> None:
    broker = place.broker(middlewares=[spans.middleware()])
    handled: list[int] = []

    @broker.subscriber("orders", batch=True)
    async def handle(bodies: list[int]) -> None:
        handled.extend(bodies)

    for body in (1, 2):
        await broker.publish(body, "orders", correlation_id=str(body))
    async with running(broker):
        await until(lambda: (handled, place.rows()), ([1, 2], []))

    process = spans.of("orders process")
    assert (process.attributes or {})["messaging.batch.message_count"] == 2
    published = [span for span in spans._exporter.get_finished_spans() if span.name == "orders publish"]
    (create,) = [span for span in spans._exporter.get_finished_spans() if span.links]
    assert {link.context.trace_id for link in create.links} == {span.context.trace_id for span in published}


async def test_a_failed_handlers_span_says_so(place: Place, spans: Spans) -> None:
    broker = place.broker(middlewares=[spans.middleware()])

    @broker.subscriber("orders", retry_strategy=NoRetry())
    async def handle(body: int) -> None:
        raise ValueError(body)

    async with running(broker):
        await broker.publish(7, "orders")
        await until(lambda: len(place.rows(place.tables.dead_letters)), 1)

    assert [event.name for event in spans.of("orders process").events] == ["exception"]
    assert spans.of("orders process").status.description == "ValueError: 7"


async def test_durations_and_counts_are_measured(place: Place, spans: Spans) -> None:
    reader = InMemoryMetricReader()
    meters = MeterProvider(metric_readers=[reader])
    broker = place.broker(middlewares=[spans.middleware(meter_provider=meters)])

    @broker.subscriber("orders")
    async def handle(body: int) -> None: ...

    async with running(broker):
        await broker.publish_batch(1, 2, queue="orders")
        await until(place.rows, [])

    data = reader.get_metrics_data()
    assert data is not None
    metrics = {
        one.name: one.data for many in data.resource_metrics for each in many.scope_metrics for one in each.metrics
    }
    meters.shutdown()
    assert sum(point.value for point in metrics["messaging.publish.messages"].data_points) == 2  # type: ignore[union-attr]
    assert sum(point.value for point in metrics["messaging.process.messages"].data_points) == 2  # type: ignore[union-attr]
    assert metrics.keys() >= {"messaging.publish.duration", "messaging.process.duration"}
