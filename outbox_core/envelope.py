"""What a publish is made of: body, headers and schedule, checked and encoded before any database sees them.

Pure and synchronous. A refused message costs the caller nothing: an error that came from the database instead would leave
its transaction unusable. The same call makes the same bytes whichever framework makes it.
"""

import dataclasses
import json
import os
import re
import sys
import time
from collections.abc import Mapping
from datetime import UTC, date, datetime, timedelta
from datetime import time as day_time
from decimal import Decimal
from enum import Enum
from importlib import import_module
from pathlib import PurePath
from typing import Any, TypedDict
from uuid import UUID

from outbox_core.errors import (
    CannotEncode,
    InvalidMessage,
    OptionError,
    PayloadTooLarge,
    UnknownOption,
    WrongType,
)
from outbox_core.json_reader import read_json
from outbox_core.message import NewMessage, TimerConflict
from outbox_core.quoting import CONTROL, one_line, quoted
from outbox_core.schema import NAME_LENGTH

CONTENT_TYPE = "content-type"
CORRELATION_ID = "correlation_id"
REPLY_TO = "reply_to"
JSON_TYPE = "application/json"
TEXT_TYPE = "text/plain"

MAX_HEADERS = 64
MAX_HEADER_BYTES = 8_192
# With its headers and key still within 1 MiB, at which Kafka, NATS and SQS refuse a message by default.
MAX_PAYLOAD_BYTES = 1_000_000
MOST_PAYLOAD_BYTES = 256 * 1_048_576  # PostgreSQL's bytea ends at 1 GiB, and a driver needs it several times over
MAX_DELAY = timedelta(days=3_660)
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
MAX_ENCODER_WORDS = 200  # characters of what an encoder says
_SOME_ID = str(UUID(int=0))

_SURROGATE = re.compile(r"[\ud800-\udfff]")
# Header names that every relay's target takes: the token of RFC 9110 §5.6.2.
_TOKEN = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")


class PublishOptions(TypedDict, total=False):
    """What every publish may be told; see `OutboxBroker.publish`."""

    correlation_id: str | None
    reply_to: str | None
    message_id: UUID | str | None
    key: str | None
    priority: int
    activate_in: timedelta | None
    activate_at: datetime | None
    timer_id: str | None
    timer_conflict: TimerConflict


def check_options(options: PublishOptions) -> None:
    """`UnknownOption` for a keyword that no publish has: a type checker sees it, and not everybody has one."""
    if not options.keys() <= _OPTIONS:
        raise UnknownOption("publish", min(options.keys() - _OPTIONS), _OPTIONS)


_OPTIONS = PublishOptions.__annotations__.keys()


def compose(
    body: object,
    queue: str,
    *,
    message_id: UUID | str | None = None,
    encoded: tuple[bytes, str | None] | None = None,
    **shared: Any,
) -> NewMessage:
    """One message ready for a store; see `Envelope`, which has *shared*, and `Envelope.seal`."""
    return Envelope(queue, **shared).seal(body, message_id, encoded)


class Envelope:
    """What all messages of one publish have in common, checked once.

    Raises `WrongType` or `InvalidMessage`, which name the argument and its value; nothing has been sent anywhere.
    """

    def __init__(
        self,
        queue: str,
        *,
        headers: Mapping[str, str] | None = None,
        correlation_id: str | None = None,
        reply_to: str | None = "",
        key: str | None = None,
        priority: int = 0,
        activate_in: timedelta | None = None,
        activate_at: datetime | None = None,
        timer_id: str | None = None,
        timer_conflict: TimerConflict = "ignore",
        max_payload_bytes: int = MAX_PAYLOAD_BYTES,
    ) -> None:
        self._queue = check_queue(queue)
        self._delay, self._available_at = _check_schedule(activate_in, activate_at)
        self._key = None if key is None else check_key(key)
        self._timer_id = None if timer_id is None else check_timer_id(timer_id)
        if timer_conflict not in ("ignore", "extend", "replace"):
            raise InvalidMessage(
                f"timer_conflict must be 'ignore', 'extend' or 'replace', got {quoted(timer_conflict)}"
            )
        self._timer_conflict: TimerConflict = "ignore" if timer_id is None else timer_conflict
        self._priority = _check_priority(priority)
        self._headers = _checked_headers(headers)
        self._correlation_id = None if correlation_id is None else check_name("correlation_id", correlation_id)
        self._reply_to = None if reply_to is None or reply_to == "" else check_name("reply_to", reply_to)
        self._max_payload_bytes = max_payload_bytes
        self._texts: dict[str | None, tuple[str, str]] = {}

    def seal(
        self, body: object, message_id: UUID | str | None = None, encoded: tuple[bytes, str | None] | None = None
    ) -> NewMessage:
        """A message ready for a store; raises `CannotEncode` or `PayloadTooLarge` too.

        *encoded* takes the place of encoding *body* where a framework's own codec has done it: bytes and content type.
        """
        identity = new_message_id() if message_id is None else _check_message_id(message_id)
        payload, content_type = encode(body) if encoded is None else encoded
        if len(payload) > self._max_payload_bytes:
            raise PayloadTooLarge(len(payload), self._max_payload_bytes)
        before, after = self._texts.get(content_type) or self._text(content_type)
        return NewMessage(
            message_id=identity,
            queue=self._queue,
            payload=payload,
            headers=f"{before}{identity}{after}" if after else before,
            key=self._key,
            priority=self._priority,
            delay=self._delay,
            available_at=self._available_at,
            timer_id=self._timer_id,
            timer_conflict=self._timer_conflict,
            has_new_id=message_id is None,
        )

    def _text(self, content_type: str | None) -> tuple[str, str]:
        """The headers of messages of that type as JSON: what is before and after the message id, or all of it and nothing.

        What has an argument of its own may also be among the headers, as when those of a message are passed on. A message
        without a correlation id begins one.
        """
        composed = {**trace_headers(), **self._headers}
        if content_type is not None:
            composed[CONTENT_TYPE] = content_type
        if self._correlation_id is not None:
            composed[CORRELATION_ID] = self._correlation_id
        if self._reply_to is not None:
            composed[REPLY_TO] = self._reply_to
        begins_one = not composed.get(CORRELATION_ID)
        if begins_one:
            composed.pop(CORRELATION_ID, None)
            others = _dumps(composed)[:-1]
            parts = f'{others}{"," if composed else ""}"{CORRELATION_ID}":"', '"}'
        else:
            parts = _dumps(composed), ""
        _check_size(len(composed) + begins_one, "".join(parts) + (_SOME_ID if begins_one else ""))
        self._texts[content_type] = parts
        return parts


def check_max_payload_bytes(value: object) -> int:
    """*value* if it can be the limit of a payload."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise WrongType("max_payload_bytes", "an int", value)
    if not 1 <= value <= MOST_PAYLOAD_BYTES:
        raise OptionError(f"max_payload_bytes must be between 1 and {MOST_PAYLOAD_BYTES:,}, got {quoted(value)}")
    return value


def refuse_for_batches(options: PublishOptions) -> None:
    """`OptionError` for what only one message can have."""
    for name in ("message_id", "timer_id"):
        if options.get(name) is not None:
            raise OptionError(f"{name} cannot be shared by a batch; publish these messages one by one")


def new_message_id() -> UUID:
    """A UUID of version 7 (RFC 9562 §5.7): ordered by time, so that a unique index grows at its end only."""
    milliseconds = time.time_ns() // 1_000_000
    chance = int.from_bytes(os.urandom(10), "big")
    value = (milliseconds & (1 << 48) - 1) << 80 | chance
    return UUID(int=value & ~(0xF << 76) & ~(0x3 << 62) | 0x7 << 76 | 0x2 << 62)


# The body


def encode(body: object) -> tuple[bytes, str | None]:
    """Bytes as they are, text as UTF-8, everything else as JSON; and the content type that says so.

    JSON covers None, numbers, lists, dicts, dataclasses, pydantic models, UUIDs, dates, decimals and enums.
    """
    if isinstance(body, bytes | bytearray | memoryview):
        return bytes(body), None
    try:
        if isinstance(body, str):
            return body.encode(), TEXT_TYPE
        if hasattr(body, "model_dump_json"):  # a pydantic model knows its own JSON best
            return str(body.model_dump_json()).encode(), JSON_TYPE
        return _dumps(body).encode(), JSON_TYPE
    except RecursionError as error:
        raise CannotEncode(f"cannot encode {type(body).__name__}: it is nested too deeply") from error
    except UnicodeEncodeError as error:
        raise CannotEncode(f"cannot encode {type(body).__name__}: not valid Unicode ({error.reason})") from error
    except Exception as error:  # of the encoder, or of what it asks for its JSON
        raise cannot_encode(body, error) from error


def cannot_encode(body: object, error: Exception) -> CannotEncode:
    """What is said of a *body* over which an encoder raised *error*, which may be about anything in it."""
    words = one_line(str(error))
    words = words if len(words) <= MAX_ENCODER_WORDS else words[:MAX_ENCODER_WORDS] + "…"
    if words.startswith("Out of range float values"):
        words = "NaN and Infinity are no JSON; pass None or text instead"
    return CannotEncode(f"cannot encode {type(body).__name__}: {words}")


def check_encoded(encoded: object) -> tuple[bytes, str | None]:
    """What somebody's codec returned, if it can be stored: bytes and their content type."""
    match encoded:
        case (bytes() as payload, str() | None as content_type):
            if content_type is not None:
                _check_text("the content type that a codec returns", content_type)
            return payload, content_type
    raise WrongType("what a codec's encode returns", "bytes and a content type", encoded)


def decode(payload: bytes, content_type: str | None) -> Any:
    """The body that `encode` was given, as plain data; bytes where no content type says what they are."""
    if content_type is None:
        return payload
    if content_type.startswith(JSON_TYPE):
        return read_json(payload)
    if content_type.startswith("text/"):
        return payload.decode()
    return payload


def _plain(value: object) -> object:
    if hasattr(value, "model_dump"):
        return value.model_dump(mode="json")
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    if isinstance(value, datetime | date | day_time):
        return value.isoformat()
    if isinstance(value, timedelta):
        return value.total_seconds()
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, UUID | Decimal | PurePath):
        return str(value)
    if hasattr(value, "__await__"):
        raise TypeError(f"{type(value).__name__} was never awaited; did you forget await?")
    if isinstance(value, set | frozenset):
        raise TypeError("a set has no order and would arrive as a list; pass sorted(...)")
    raise TypeError(f"{type(value).__name__} is not JSON; pass a dict, a dataclass, a pydantic model or bytes")


_dumps = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":"), default=_plain).encode


# Names, headers, schedule


def check_queue(queue: object) -> str:
    """*queue* if it is a usable name: 1 to 255 characters, not blank, no control characters."""
    return check_name("queue", queue)


def check_key(key: object) -> str:
    """*key* if it is a usable one: the same rules as for a queue."""
    return check_name("key", key)


def check_timer_id(timer_id: object) -> str:
    """*timer_id* if it is a usable one: the same rules as for a queue."""
    return check_name("timer_id", timer_id)


def check_consumer(consumer: object) -> str:
    """*consumer*, who receives messages from elsewhere, if it is a usable name: the same rules as for a queue."""
    return check_name("consumer", consumer)


def check_foreign_id(message_id: object) -> str:
    """The id of a message from elsewhere as text: a UUID in its usual form, or a str by the same rules as for a queue."""
    if isinstance(message_id, UUID):
        return str(message_id)
    if not isinstance(message_id, str):
        raise WrongType("message_id", "a str or a UUID", message_id)
    return check_name("message_id", message_id)


def check_name(what: str, value: object) -> str:
    """*value* if it can be a name, by the rules for a queue; otherwise `WrongType` or `InvalidMessage` that says *what*."""
    if not isinstance(value, str):
        raise WrongType(what, "a str", value)
    if not value.strip():
        raise InvalidMessage(f"{what} must not be {'blank' if value else 'empty'}, got {quoted(value)}")
    if len(value) > NAME_LENGTH:
        raise InvalidMessage(f"{what} must be at most {NAME_LENGTH} characters, got {len(value)}: {value[:32] + '…'!r}")
    _check_text(what, value)
    return value


def _check_text(what: str, value: str) -> None:
    if value.isprintable():  # which neither is, and it is the cheapest question
        return
    if found := CONTROL.search(value):
        raise InvalidMessage(
            f"{what} must not contain control characters, got U+{ord(found[0]):04X} at {found.start()} in {quoted(value)}"
        )
    if found := _SURROGATE.search(value):
        raise InvalidMessage(f"{what} must be valid Unicode, got a lone surrogate at {found.start()}")


def _check_message_id(value: UUID | str) -> UUID:
    if isinstance(value, UUID):
        return value
    if not isinstance(value, str):
        raise WrongType("message_id", "a UUID", value)
    try:
        return UUID(value)
    except ValueError:
        raise InvalidMessage(f"message_id must be a UUID, got {quoted(value)}") from None


def _check_priority(value: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise WrongType("priority", "an int", value)
    if not -32_768 <= value <= 32_767:
        raise InvalidMessage(f"priority must be between -32768 and 32767, got {quoted(value)}")
    return value


def _check_schedule(
    activate_in: timedelta | None, activate_at: datetime | None
) -> tuple[float | None, datetime | None]:
    if activate_in is not None and activate_at is not None:
        raise InvalidMessage("activate_in and activate_at exclude each other; pass one")
    if activate_in is not None:
        if not isinstance(activate_in, timedelta):
            raise WrongType("activate_in", "a timedelta", activate_in, "pass timedelta(seconds=…)")
        if not timedelta(0) <= activate_in <= MAX_DELAY:
            raise InvalidMessage(f"activate_in must be between 0 and {MAX_DELAY.days} days, got {activate_in!r}")
        return activate_in.total_seconds(), None
    if activate_at is not None:
        if not isinstance(activate_at, datetime):
            raise WrongType("activate_at", "a datetime", activate_at)
        if activate_at.utcoffset() is None:
            raise InvalidMessage(
                f"activate_at must be timezone-aware, got {activate_at!r}; pass datetime.now(UTC) + timedelta(…)"
            )
        # Only a plausibility check, so this process's clock will do; when it is due is the database's to say.
        if activate_at > datetime.now(UTC) + MAX_DELAY:
            raise InvalidMessage(f"activate_at must be at most {MAX_DELAY.days} days ahead, got {activate_at!r}")
        # Databases and drivers disagree about the first years of the calendar; nobody means them.
        if activate_at < EPOCH:
            raise InvalidMessage(f"activate_at must not be before 1970, got {activate_at!r}; leave it out for at once")
        return None, activate_at.astimezone(UTC)
    return None, None


def _checked_headers(headers: object) -> Mapping[str, str]:
    if headers is None:
        return {}
    if not isinstance(headers, Mapping):
        raise WrongType("headers", "a mapping of str to str", headers)
    for name, value in headers.items():
        _check_header(name, value)
    return headers


def _check_size(count: int, text: str) -> None:
    size = len(text) if text.isascii() else len(text.encode())
    if count > MAX_HEADERS or size > MAX_HEADER_BYTES:
        raise InvalidMessage(
            f"headers must be at most {MAX_HEADERS} and {MAX_HEADER_BYTES:,} bytes in all, "
            f"got {count} of {size:,}; put large values into the body"
        )


def trace_headers() -> dict[str, str]:
    """OpenTelemetry's headers for the current span (W3C Trace Context); none where the application does not use it.

    An application that has spans has imported the package, so that nobody else pays for it.
    """
    if "opentelemetry.trace" not in sys.modules:
        return {}
    carrier: dict[str, str] = {}
    import_module("opentelemetry.propagate").inject(carrier)  # which the SDK does not import by itself
    return carrier


def _check_header(name: object, value: object) -> None:
    if not isinstance(name, str):
        raise WrongType("header names", "str", name)
    if not _TOKEN.fullmatch(name):
        raise InvalidMessage(f"header names must be tokens (RFC 9110), got {quoted(name)}")
    if not isinstance(value, str):
        raise WrongType(f"header {quoted(name)}", "a str", value, "convert it with str() or put it into the body")
    if not value.isprintable():
        _check_text(f"header {quoted(name)}", value)


def check_delay(what: str, seconds: float | timedelta) -> float:
    """*seconds* if it is a number that the database can add to its clock."""
    if isinstance(seconds, timedelta):
        seconds = seconds.total_seconds()
    if isinstance(seconds, bool) or not isinstance(seconds, int | float):
        raise WrongType(what, "a number of seconds or a timedelta", seconds)
    if not 0 <= seconds <= MAX_DELAY.total_seconds():  # which NaN is not
        raise InvalidMessage(f"{what} must be between 0 and {MAX_DELAY.days} days of seconds, got {quoted(seconds)}")
    return float(seconds)
