"""What a publish is made of: bodies, headers, names and schedules, and every way in which they are refused."""

import json
import sys
from collections import namedtuple
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from enum import Enum, IntEnum, StrEnum
from pathlib import PurePosixPath
from typing import Any, Literal
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.baggage import set_baggage
from opentelemetry.context import attach, detach
from opentelemetry.sdk.trace import TracerProvider
from pydantic import BaseModel, RootModel

from outbox_core.envelope import check_delay, check_queue, compose, decode, encode, new_message_id, trace_headers
from outbox_core.errors import CannotEncode, InvalidMessage, OutboxError, WrongType

ONE = UUID("0197a3c0-0000-7000-8000-000000000001")
NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)


class Color(Enum):
    RED = "red"


class Level(IntEnum):
    HIGH = 3


class Mood(StrEnum):
    GOOD = "good"


@dataclass
class Line:
    product: str
    price: Decimal


@dataclass
class Order:
    id: UUID
    lines: list[Line]
    color: Color = Color.RED


class Customer(BaseModel):
    name: str
    born: date
    height: Decimal = Decimal("1.80")


class Names(RootModel[list[str]]):
    pass


Point = namedtuple("Point", "x y")


@pytest.mark.parametrize(
    ("body", "payload", "content_type"),
    [
        (b"raw \x00\xff", b"raw \x00\xff", None),
        (bytearray(b"raw"), b"raw", None),
        (memoryview(b"raw"), b"raw", None),
        (b"", b"", None),
        ("text 🚲", "text 🚲".encode(), "text/plain"),
        ("", b"", "text/plain"),
        (None, b"null", "application/json"),
        (True, b"true", "application/json"),
        (0, b"0", "application/json"),
        (2**70, b"1180591620717411303424", "application/json"),
        (1.5, b"1.5", "application/json"),
        ({"a": 1, "ü": "🚲"}, '{"a":1,"ü":"🚲"}'.encode(), "application/json"),
        ({}, b"{}", "application/json"),
        ({1: "a"}, b'{"1":"a"}', "application/json"),
        ({"nul": "\x00"}, b'{"nul":"\\u0000"}', "application/json"),
        ([1, "a", None, [2]], b'[1,"a",null,[2]]', "application/json"),
        ((1, 2), b"[1,2]", "application/json"),
        (Point(1, 2), b"[1,2]", "application/json"),
        (ONE, b'"0197a3c0-0000-7000-8000-000000000001"', "application/json"),
        (NOON, b'"2026-01-01T12:00:00+00:00"', "application/json"),
        (datetime(2026, 1, 1, 12), b'"2026-01-01T12:00:00"', "application/json"),  # noqa: DTZ001  naive is plain data
        (date(2026, 1, 2), b'"2026-01-02"', "application/json"),
        (time(12, 30), b'"12:30:00"', "application/json"),
        (timedelta(minutes=1, milliseconds=500), b"60.5", "application/json"),
        (Decimal("0.10"), b'"0.10"', "application/json"),
        (Color.RED, b'"red"', "application/json"),
        (Level.HIGH, b"3", "application/json"),
        ([Mood.GOOD], b'["good"]', "application/json"),
        (PurePosixPath("/tmp/a"), b'"/tmp/a"', "application/json"),
        (Line("tea", Decimal("2.50")), b'{"product":"tea","price":"2.50"}', "application/json"),
        (
            Order(ONE, [Line("tea", Decimal(2))]),
            b'{"id":"0197a3c0-0000-7000-8000-000000000001","lines":[{"product":"tea","price":"2"}],"color":"red"}',
            "application/json",
        ),
        (
            Customer(name="Zoë", born=date(2000, 1, 2)),
            '{"name":"Zoë","born":"2000-01-02","height":"1.80"}'.encode(),
            "application/json",
        ),
        (Names(["a", "b"]), b'["a","b"]', "application/json"),
        (
            {"customer": Customer(name="Al", born=date(2000, 1, 2)), "at": NOON, "id": ONE},
            (
                b'{"customer":{"name":"Al","born":"2000-01-02","height":"1.80"},'
                b'"at":"2026-01-01T12:00:00+00:00","id":"0197a3c0-0000-7000-8000-000000000001"}'
            ),
            "application/json",
        ),
        (
            [Customer(name="Al", born=date(2000, 1, 2))],
            b'[{"name":"Al","born":"2000-01-02","height":"1.80"}]',
            "application/json",
        ),
    ],
)
def test_a_body_becomes_bytes_and_a_content_type(body: object, payload: bytes, content_type: str | None) -> None:
    assert encode(body) == (payload, content_type)


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
        max_leaves=20,
    )
)
def test_plain_data_survives_the_trip(body: Any) -> None:
    try:
        payload, content_type = encode(body)
    except CannotEncode:  # a lone surrogate, which is no Unicode
        with pytest.raises(UnicodeEncodeError):
            json.dumps(body, ensure_ascii=False).encode()
        return

    assert decode(payload, content_type) == body


@given(st.binary())
def test_bytes_survive_the_trip(body: bytes) -> None:
    assert decode(*encode(body)) == body


@pytest.mark.parametrize(
    ("payload", "content_type", "body"),
    [
        (b'{"a":1}', "application/json", {"a": 1}),
        (b'{"a":1}', "application/json; charset=utf-8", {"a": 1}),
        ("ü".encode(), "text/plain", "ü"),
        ("ü".encode(), "text/csv", "ü"),
        (b"\xff", None, b"\xff"),
        (b"\xff", "application/octet-stream", b"\xff"),
    ],
)
def test_a_payload_is_decoded_as_its_content_type_says(payload: bytes, content_type: str | None, body: object) -> None:
    assert decode(payload, content_type) == body


def test_a_composed_message_is_ready_for_a_store() -> None:
    message = compose(
        {"a": 1},
        "orders",
        headers={"tenant": "t1"},
        correlation_id="c1",
        reply_to="answers",
        message_id=ONE,
        key="k",
        priority=-5,
        activate_in=timedelta(seconds=1.5),
        timer_id="t",
        timer_conflict="replace",
    )

    assert message.message_id == ONE
    assert message.queue == "orders"
    assert message.payload == b'{"a":1}'
    assert json.loads(message.headers) == {
        "tenant": "t1",
        "content-type": "application/json",
        "correlation_id": "c1",
        "reply_to": "answers",
    }
    assert (message.key, message.priority) == ("k", -5)
    assert (message.delay, message.available_at) == (1.5, None)
    assert (message.timer_id, message.timer_conflict) == ("t", "replace")


def test_nothing_needs_to_be_said_but_body_and_queue() -> None:
    message = compose(b"a", "orders")

    assert json.loads(message.headers) == {"correlation_id": str(message.message_id)}
    assert (message.key, message.priority, message.timer_id) == (None, 0, None)
    assert (message.delay, message.available_at, message.timer_conflict) == (None, None, "ignore")


def test_the_same_call_makes_the_same_bytes() -> None:
    def once() -> object:
        return compose({"b": 1, "a": [NOON]}, "orders", headers={"z": "1", "a": "2"}, message_id=ONE)

    assert once() == once()


def test_a_message_id_may_be_text() -> None:
    assert compose("a", "orders", message_id=str(ONE)).message_id == ONE


def test_the_content_type_is_the_encoders_to_say() -> None:
    text = compose("a", "orders", headers={"content-type": "application/xml"})
    raw = compose(b"a", "orders", headers={"content-type": "application/xml"})

    assert json.loads(text.headers)["content-type"] == "text/plain"
    assert json.loads(raw.headers)["content-type"] == "application/xml"


def test_what_a_framework_encoded_is_taken_as_it_is() -> None:
    message = compose(object(), "orders", encoded=(b"\x01", "application/avro"))

    assert message.payload == b"\x01"
    assert json.loads(message.headers)["content-type"] == "application/avro"


def test_without_a_timer_id_there_is_no_timer_conflict() -> None:
    assert compose("a", "orders", timer_conflict="replace").timer_conflict == "ignore"


def test_an_instant_is_kept_in_utc() -> None:
    message = compose("a", "orders", activate_at=datetime(2026, 1, 1, 14, tzinfo=timezone(timedelta(hours=2))))

    assert message.available_at == NOON
    assert message.available_at.utcoffset() == timedelta(0)
    assert message.delay is None


@pytest.mark.parametrize("priority", [-32_768, 0, 32_767])
def test_every_smallint_is_a_priority(priority: int) -> None:
    assert compose("a", "orders", priority=priority).priority == priority


@pytest.mark.parametrize("name", ["o", "q" * 255, "Ümläut", "with space", "a/b.c:d-e_f", "🚲" * 255, "%s", "'\""])
def test_a_printable_name_is_a_name(name: str) -> None:
    message = compose("a", name, key=name, timer_id=name, correlation_id=name, reply_to=name)

    assert (message.queue, message.key, message.timer_id) == (name, name, name)


def test_64_headers_are_not_too_many() -> None:
    assert len(json.loads(compose(b"", "orders", headers={f"h{n}": "" for n in range(63)}).headers)) == 64


@pytest.mark.parametrize("name", ["a", "X-Tenant", "traceparent", "content-type", "a_b", "!#$%&'*+-.^_`|~9"])
def test_a_token_is_a_header_name(name: str) -> None:
    assert name in json.loads(compose(b"", "orders", headers={name: "1"}).headers)


def test_a_long_name_is_not_repeated_whole() -> None:
    with pytest.raises(InvalidMessage) as refused:
        check_queue("q" * 100_000)

    assert len(str(refused.value)) < 200


@pytest.mark.parametrize(
    ("seconds", "checked"),
    [(0, 0.0), (5, 5.0), (1.5, 1.5), (timedelta(minutes=1), 60.0), (3_660 * 86_400, 316_224_000.0)],
)
def test_a_delay_is_seconds_or_a_timedelta(seconds: float | timedelta, checked: float) -> None:
    assert check_delay("delay", seconds) == checked


@pytest.mark.parametrize(
    ("seconds", "error"),
    [
        (-1, InvalidMessage),
        (float("nan"), InvalidMessage),
        (float("inf"), InvalidMessage),
        (316_224_001, InvalidMessage),
        (timedelta(seconds=-1), InvalidMessage),
        ("5", WrongType),
        (None, WrongType),
        (True, WrongType),
    ],
)
def test_a_bad_delay_is_refused(seconds: Any, error: type[OutboxError]) -> None:
    with pytest.raises(error, match="delay must be"):
        check_delay("delay", seconds)


def test_message_ids_are_of_version_7() -> None:
    id = new_message_id()

    assert id.version == 7
    assert id.variant == "specified in RFC 4122"


def test_message_ids_of_later_milliseconds_are_greater() -> None:
    ids = [new_message_id()]
    while len(ids) < 20:
        if (id := new_message_id()).int >> 80 > ids[-1].int >> 80:
            ids.append(id)

    assert ids == sorted(ids)


def test_a_message_id_tells_when_it_was_made() -> None:
    before = datetime.now(UTC).timestamp()
    made = (new_message_id().int >> 80) / 1_000

    assert before - 0.002 <= made <= datetime.now(UTC).timestamp() + 0.002


def test_message_ids_of_one_moment_are_different() -> None:
    assert len({new_message_id() for _ in range(10_000)}) == 10_000


@pytest.mark.parametrize("conflict", ["ignore", "extend", "replace"])
def test_every_timer_conflict_is_taken(conflict: Literal["ignore", "extend", "replace"]) -> None:
    assert compose("a", "orders", timer_id="t", timer_conflict=conflict).timer_conflict == conflict


# Traces

TRACER = TracerProvider().get_tracer("tests")


def headers_of(**options: Any) -> dict[str, str]:
    composed: dict[str, str] = json.loads(compose("a", "orders", **options).headers)
    return composed


def test_without_opentelemetry_no_header_is_added(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "opentelemetry.trace")

    with TRACER.start_as_current_span("request"):
        assert trace_headers() == {}
        assert set(headers_of()) == {"content-type", "correlation_id"}


def test_without_a_span_no_header_is_added() -> None:
    assert trace_headers() == {}
    assert set(headers_of()) == {"content-type", "correlation_id"}


def test_the_current_span_is_in_the_headers() -> None:
    with TRACER.start_as_current_span("request") as span:
        headers = headers_of(headers={"x": "y"})

    context = span.get_span_context()
    assert headers["traceparent"] == f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"
    assert headers["x"] == "y"


def test_baggage_travels_too() -> None:
    token = attach(set_baggage("tenant", "7"))
    try:
        assert headers_of()["baggage"] == "tenant=7"
    finally:
        detach(token)


def test_a_header_of_the_callers_wins_over_the_span() -> None:
    given = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"

    with TRACER.start_as_current_span("request"):
        assert headers_of(headers={"traceparent": given})["traceparent"] == given
