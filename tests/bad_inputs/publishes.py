"""Every publish that is refused: what is passed, and what is said of it.

They are refused alike by each of the publishes (`test_publish`), on each database (`test_transactions`, `test_django`).
"""

from datetime import UTC, date, datetime, timedelta

from outbox_core.errors import CannotEncode, InvalidMessage, PayloadTooLarge, WrongType
from tests.bad_inputs.catalogue import Bad, bad
from tests.bad_inputs.values import (
    AFTER_TIME,
    BEFORE_TIME,
    NAIVE,
    ONE,
    Made,
    Opaque,
    Refusing,
    Unshowable,
    circular,
    load,
    nested,
    numbers,
    stream,
)

PUBLISHES: tuple[Bad, ...] = (
    # The queue
    bad(1, InvalidMessage, "queue must not be empty, got ''", queue=""),
    bad(2, InvalidMessage, "queue must not be blank, got '   '", queue="   "),
    bad(2, InvalidMessage, "queue must not be blank, got ' \\t '", queue=" \t "),
    bad(3, WrongType, "queue must be a str, got NoneType", queue=None),
    bad(3, WrongType, "queue must be a str, got int", queue=7),
    bad(3, WrongType, "queue must be a str, got bytes", queue=b"orders"),
    bad(3, WrongType, "queue must be a str, got list", queue=["orders"]),
    bad(3, WrongType, "queue must be a str, got bool", queue=True),
    bad(
        4,
        InvalidMessage,
        "queue must be at most 255 characters, got 256: 'qqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqq…'",
        queue="q" * 256,
    ),
    bad(
        4,
        InvalidMessage,
        ("queue must be at most 255 characters, got 1000000: 'qqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqq…'"),
        queue="q" * 1_000_000,
    ),
    bad(
        5,
        InvalidMessage,
        "queue must not contain control characters, got U+0000 at 2 in 'or\\x00ders'",
        queue="or\x00ders",
    ),
    bad(
        6, InvalidMessage, "queue must not contain control characters, got U+000A at 6 in 'orders\\n'", queue="orders\n"
    ),
    bad(
        6,
        InvalidMessage,
        "queue must not contain control characters, got U+000A at 1 in 'a\\nERROR forged'",
        queue="a\nERROR forged",
    ),
    bad(
        6,
        InvalidMessage,
        "queue must not contain control characters, got U+001B at 1 in 'a\\x1b[2Jb'",
        queue="a\x1b[2Jb",
    ),
    bad(6, InvalidMessage, "queue must not contain control characters, got U+007F at 0 in '\\x7fa'", queue="\x7fa"),
    bad(6, InvalidMessage, "queue must not contain control characters, got U+0085 at 1 in 'a\\x85b'", queue="a\x85b"),
    bad(6, InvalidMessage, "queue must not contain control characters, got U+009B at 1 in 'a\\x9bb'", queue="a\x9bb"),
    bad(
        6, InvalidMessage, "queue must not contain control characters, got U+2028 at 1 in 'a\\u2028b'", queue="a\u2028b"
    ),
    bad(7, InvalidMessage, "queue must be valid Unicode, got a lone surrogate at 1", queue="a\ud800"),
    bad(7, InvalidMessage, "queue must be valid Unicode, got a lone surrogate at 0", queue="\udcff"),
    # Headers
    bad(
        17,
        WrongType,
        ("header 'attempt' must be a str, got int; convert it with str() or put it into the body"),
        headers={"attempt": 1},
    ),
    bad(
        17,
        WrongType,
        ("header 'a' must be a str, got NoneType; convert it with str() or put it into the body"),
        headers={"a": None},
    ),
    bad(
        17,
        WrongType,
        "header 'a' must be a str, got dict; convert it with str() or put it into the body",
        headers={"a": {"b": "c"}},
    ),
    bad(
        17,
        WrongType,
        "header 'a' must be a str, got list; convert it with str() or put it into the body",
        headers={"a": ["b"]},
    ),
    bad(
        17,
        WrongType,
        "header 'a' must be a str, got bool; convert it with str() or put it into the body",
        headers={"a": True},
    ),
    bad(18, WrongType, "header names must be str, got int", headers={1: "x"}),
    bad(18, WrongType, "header names must be str, got bytes", headers={b"a": "1"}),
    bad(18, WrongType, "header names must be str, got NoneType", headers={None: "1"}),
    bad(
        19,
        WrongType,
        "header 'a' must be a str, got bytes; convert it with str() or put it into the body",
        headers={"a": b"x"},
    ),
    bad(
        20,
        InvalidMessage,
        ("header 'a' must not contain control characters, got U+000D at 1 in 'x\\r\\nInjected: 1'"),
        headers={"a": "x\r\nInjected: 1"},
    ),
    bad(
        20,
        InvalidMessage,
        ("header 'a' must not contain control characters, got U+000A at 1 in 'x\\nERROR forged'"),
        headers={"a": "x\nERROR forged"},
    ),
    bad(
        20,
        InvalidMessage,
        "header 'a' must not contain control characters, got U+0085 at 1 in 'x\\x85y'",
        headers={"a": "x\x85y"},
    ),
    bad(
        20,
        InvalidMessage,
        "header 'a' must not contain control characters, got U+001B at 1 in 'x\\x1b[31my'",
        headers={"a": "x\x1b[31my"},
    ),
    bad(21, InvalidMessage, "header names must be tokens (RFC 9110), got 'a\\r\\nB'", headers={"a\r\nB": "x"}),
    bad(21, InvalidMessage, "header names must be tokens (RFC 9110), got 'a b'", headers={"a b": "x"}),
    bad(21, InvalidMessage, "header names must be tokens (RFC 9110), got 'a:'", headers={"a:": "x"}),
    bad(21, InvalidMessage, "header names must be tokens (RFC 9110), got 'ü'", headers={"ü": "x"}),
    bad(21, InvalidMessage, "header names must be tokens (RFC 9110), got ''", headers={"": "x"}),
    bad(
        21,
        InvalidMessage,
        (
            "header names must be tokens (RFC 9110), got "
            "'aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa'…"
        ),
        headers={"a" * 9_000 + "\n": "x"},
    ),
    bad(
        22,
        InvalidMessage,
        "header 'a' must not contain control characters, got U+0000 at 1 in 'x\\x00'",
        headers={"a": "x\x00"},
    ),
    bad(22, InvalidMessage, "header 'a' must be valid Unicode, got a lone surrogate at 0", headers={"a": "\ud800"}),
    bad(
        23,
        WrongType,
        "header 'a' must be a str, got float; convert it with str() or put it into the body",
        headers={"a": float("nan")},
    ),
    bad(24, WrongType, "headers must be a mapping of str to str, got list", headers=["a"]),
    bad(24, WrongType, "headers must be a mapping of str to str, got list", headers=[("a", "x")]),
    bad(24, WrongType, "headers must be a mapping of str to str, got str", headers="a=x"),
    bad(24, WrongType, "headers must be a mapping of str to str, got bool", headers=False),
    bad(
        25,
        InvalidMessage,
        ("headers must be at most 64 and 8,192 bytes in all, got 3 of 10,000,098; put large values into the body"),
        headers={"a": "x" * 10_000_000},
    ),
    bad(
        25,
        InvalidMessage,
        ("headers must be at most 64 and 8,192 bytes in all, got 100002 of 1,188,981; put large values into the body"),
        headers={f"h{number}": "" for number in range(100_000)},
    ),
    bad(
        25,
        InvalidMessage,
        ("headers must be at most 64 and 8,192 bytes in all, got 65 of 613; put large values into the body"),
        headers={f"h{number}": "" for number in range(63)},
        correlation_id="c",
    ),
    bad(
        25,
        InvalidMessage,
        ("headers must be at most 64 and 8,192 bytes in all, got 3 of 8,255; put large values into the body"),
        headers={"a": "ü" * 4_096},
        correlation_id="c",
    ),
    # Correlation id, answer queue, message id
    bad(27, WrongType, "correlation_id must be a str, got int", correlation_id=5),
    bad(27, WrongType, "correlation_id must be a str, got int", correlation_id=0),
    bad(27, WrongType, "correlation_id must be a str, got UUID", correlation_id=ONE),
    bad(27, InvalidMessage, "correlation_id must not be empty, got ''", correlation_id=""),
    bad(27, InvalidMessage, "correlation_id must not be blank, got ' '", correlation_id=" "),
    bad(
        27,
        InvalidMessage,
        ("correlation_id must be at most 255 characters, got 1000000: 'cccccccccccccccccccccccccccccccc…'"),
        correlation_id="c" * 1_000_000,
    ),
    bad(
        27,
        InvalidMessage,
        "correlation_id must not contain control characters, got U+000A at 1 in 'c\\n'",
        correlation_id="c\n",
    ),
    bad(
        27,
        InvalidMessage,
        "correlation_id must not contain control characters, got U+0000 at 1 in 'c\\x00'",
        correlation_id="c\x00",
    ),
    bad(27, InvalidMessage, "correlation_id must be valid Unicode, got a lone surrogate at 0", correlation_id="\udcff"),
    bad(27, WrongType, "reply_to must be a str, got int", reply_to=5),
    bad(27, WrongType, "reply_to must be a str, got int", reply_to=0),
    bad(27, InvalidMessage, "reply_to must not be blank, got ' '", reply_to=" "),
    bad(
        27,
        InvalidMessage,
        ("reply_to must be at most 255 characters, got 256: 'rrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrr…'"),
        reply_to="r" * 256,
    ),
    bad(27, InvalidMessage, "reply_to must not contain control characters, got U+000A at 1 in 'r\\n'", reply_to="r\n"),
    bad(27, InvalidMessage, "message_id must be a UUID, got 'seven'", message_id="seven"),
    bad(27, InvalidMessage, "message_id must be a UUID, got ''", message_id=""),
    bad(
        27,
        InvalidMessage,
        (
            "message_id must be a UUID, got "
            "'xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx'…"
        ),
        message_id="x" * 1_000_000,
    ),
    bad(27, InvalidMessage, "message_id must be a UUID, got '\\x00\\n'", message_id="\x00\n"),
    bad(27, WrongType, "message_id must be a UUID, got int", message_id=7),
    bad(27, WrongType, "message_id must be a UUID, got bytes", message_id=ONE.bytes),
    # The body
    bad(
        28,
        CannotEncode,
        ("cannot encode Opaque: Opaque is not JSON; pass a dict, a dataclass, a pydantic model or bytes"),
        body=Opaque(),
    ),
    bad(
        28,
        CannotEncode,
        ("cannot encode dict: Opaque is not JSON; pass a dict, a dataclass, a pydantic model or bytes"),
        body={"items": [Opaque()]},
    ),
    bad(
        28,
        CannotEncode,
        ("cannot encode Unshowable: Unshowable is not JSON; pass a dict, a dataclass, a pydantic model or bytes"),
        body=Unshowable(),
    ),
    bad(
        28,
        CannotEncode,
        (
            "cannot encode builtin_function_or_method: builtin_function_or_method is not "
            "JSON; pass a dict, a dataclass, a pydantic model or bytes"
        ),
        body=print,
    ),
    bad(
        28,
        CannotEncode,
        ("cannot encode type: type is not JSON; pass a dict, a dataclass, a pydantic model or bytes"),
        body=int,
    ),
    bad(
        28,
        CannotEncode,
        ("cannot encode ValueError: ValueError is not JSON; pass a dict, a dataclass, a pydantic model or bytes"),
        body=ValueError("no"),
    ),
    bad(
        28,
        CannotEncode,
        ("cannot encode complex: complex is not JSON; pass a dict, a dataclass, a pydantic model or bytes"),
        body=1 + 2j,
    ),
    bad(
        28,
        CannotEncode,
        ("cannot encode dict: bytes is not JSON; pass a dict, a dataclass, a pydantic model or bytes"),
        body={"raw": b"bytes"},
    ),
    bad(28, CannotEncode, "cannot encode Refusing: line 1\\nline 2", body=Refusing()),
    bad(
        28, CannotEncode, "cannot encode coroutine: coroutine was never awaited; did you forget await?", body=Made(load)
    ),
    bad(
        28,
        CannotEncode,
        ("cannot encode list: function is not JSON; pass a dict, a dataclass, a pydantic model or bytes"),
        body=Made(lambda: [load]),
    ),
    bad(
        29,
        CannotEncode,
        "cannot encode float: NaN and Infinity are no JSON; pass None or text instead",
        body=float("nan"),
    ),
    bad(
        29,
        CannotEncode,
        "cannot encode dict: NaN and Infinity are no JSON; pass None or text instead",
        body={"price": float("nan")},
    ),
    bad(
        29,
        CannotEncode,
        "cannot encode list: NaN and Infinity are no JSON; pass None or text instead",
        body=[float("inf")],
    ),
    bad(
        29,
        CannotEncode,
        "cannot encode dict: NaN and Infinity are no JSON; pass None or text instead",
        body={"a": float("-inf")},
    ),
    bad(
        29,
        CannotEncode,
        "cannot encode dict: NaN and Infinity are no JSON; pass None or text instead",
        body={float("nan"): 1},
    ),
    bad(
        30,
        CannotEncode,
        "cannot encode set: a set has no order and would arrive as a list; pass sorted(...)",
        body={1, 2},
    ),
    bad(
        30,
        CannotEncode,
        ("cannot encode dict: a set has no order and would arrive as a list; pass sorted(...)"),
        body={"a": frozenset("x")},
    ),
    bad(
        30,
        CannotEncode,
        ("cannot encode generator: generator is not JSON; pass a dict, a dataclass, a pydantic model or bytes"),
        body=Made(numbers),
    ),
    bad(
        30,
        CannotEncode,
        (
            "cannot encode async_generator: async_generator is not JSON; pass a dict, a "
            "dataclass, a pydantic model or bytes"
        ),
        body=Made(stream),
    ),
    bad(
        30,
        CannotEncode,
        ("cannot encode map: map is not JSON; pass a dict, a dataclass, a pydantic model or bytes"),
        body=Made(lambda: map(str, [1])),
    ),
    bad(
        30,
        CannotEncode,
        ("cannot encode range: range is not JSON; pass a dict, a dataclass, a pydantic model or bytes"),
        body=range(3),
    ),
    bad(
        30,
        CannotEncode,
        ("cannot encode dict_keys: dict_keys is not JSON; pass a dict, a dataclass, a pydantic model or bytes"),
        body={}.keys(),
    ),
    bad(
        30, CannotEncode, "cannot encode dict: keys must be str, int, float, bool or None, not tuple", body={(1, 2): 3}
    ),
    bad(30, CannotEncode, "cannot encode dict: keys must be str, int, float, bool or None, not UUID", body={ONE: "a"}),
    bad(
        31,
        CannotEncode,
        (
            "cannot encode int: Exceeds the limit (4300 digits) for integer string "
            "conversion; use sys.set_int_max_str_digits() to increase the limit"
        ),
        body=10**5_000,
    ),
    bad(32, CannotEncode, "cannot encode list: Circular reference detected", body=Made(circular)),
    bad(32, CannotEncode, "cannot encode list: it is nested too deeply", body=Made(lambda: nested(100_000))),
    bad(33, CannotEncode, "cannot encode str: not valid Unicode (surrogates not allowed)", body="\ud800"),
    bad(33, CannotEncode, "cannot encode dict: not valid Unicode (surrogates not allowed)", body={"a": "\udfff"}),
    bad(33, CannotEncode, "cannot encode dict: not valid Unicode (surrogates not allowed)", body={"\ud800": 1}),
    bad(
        34,
        PayloadTooLarge,
        (
            "the payload must be at most 1,000,000 bytes, got 1,000,001; publish a "
            "reference to where the data is, or raise max_payload_bytes"
        ),
        body=Made(lambda: b"x" * 1_000_001),
    ),
    bad(
        34,
        PayloadTooLarge,
        (
            "the payload must be at most 1,000,000 bytes, got 1,000,002; publish a "
            "reference to where the data is, or raise max_payload_bytes"
        ),
        body=Made(lambda: "ü" * 500_001),
    ),
    bad(
        34,
        PayloadTooLarge,
        (
            "the payload must be at most 1,000,000 bytes, got 1,000,008; publish a "
            "reference to where the data is, or raise max_payload_bytes"
        ),
        body=Made(lambda: {"a": "x" * 1_000_000}),
    ),
    # The schedule
    bad(
        36,
        InvalidMessage,
        "activate_in must be between 0 and 3660 days, got datetime.timedelta(days=-1)",
        activate_in=timedelta(days=-1),
    ),
    bad(
        36,
        InvalidMessage,
        (
            "activate_in must be between 0 and 3660 days, got datetime.timedelta(days=-1, "
            "seconds=86399, microseconds=999999)"
        ),
        activate_in=timedelta(microseconds=-1),
    ),
    bad(
        37,
        InvalidMessage,
        (
            "activate_in must be between 0 and 3660 days, got "
            "datetime.timedelta(days=999999999, seconds=86399, microseconds=999999)"
        ),
        activate_in=timedelta.max,
    ),
    bad(
        37,
        InvalidMessage,
        "activate_in must be between 0 and 3660 days, got datetime.timedelta(days=3661)",
        activate_in=timedelta(days=3_661),
    ),
    bad(38, WrongType, "activate_in must be a timedelta, got int; pass timedelta(seconds=…)", activate_in=5),
    bad(38, WrongType, "activate_in must be a timedelta, got float; pass timedelta(seconds=…)", activate_in=1.5),
    bad(38, WrongType, "activate_in must be a timedelta, got str; pass timedelta(seconds=…)", activate_in="1h"),
    bad(38, WrongType, "activate_at must be a datetime, got str", activate_at="tomorrow"),
    bad(38, WrongType, "activate_at must be a datetime, got int", activate_at=1_700_000_000),
    bad(38, WrongType, "activate_at must be a datetime, got date", activate_at=date(2031, 7, 1)),
    bad(
        39,
        InvalidMessage,
        (
            "activate_at must be timezone-aware, got datetime.datetime(2031, 7, 1, 12, 30); "
            "pass datetime.now(UTC) + timedelta(…)"
        ),
        activate_at=NAIVE,
    ),
    bad(
        40,
        InvalidMessage,
        (
            "activate_at must be at most 3660 days ahead, got datetime.datetime(9999, 12, "
            "31, 0, 0, tzinfo=datetime.timezone.utc)"
        ),
        activate_at=datetime(9999, 12, 31, tzinfo=UTC),
    ),
    bad(
        40,
        InvalidMessage,
        (
            "activate_at must be at most 3660 days ahead, got datetime.datetime(9999, 12, "
            "31, 23, 59, 59, 999999, tzinfo=datetime.timezone(datetime.timedelta(days=-1, "
            "seconds=82800)))"
        ),
        activate_at=AFTER_TIME,
    ),
    bad(
        40,
        InvalidMessage,
        (
            "activate_at must not be before 1970, got datetime.datetime(1, 1, 1, 0, 0, "
            "tzinfo=datetime.timezone(datetime.timedelta(seconds=3600))); leave it out for "
            "at once"
        ),
        activate_at=BEFORE_TIME,
    ),
    bad(
        40,
        InvalidMessage,
        (
            "activate_at must not be before 1970, got datetime.datetime(1969, 12, 31, 0, 0, "
            "tzinfo=datetime.timezone.utc); leave it out for at once"
        ),
        activate_at=datetime(1969, 12, 31, tzinfo=UTC),
    ),
    bad(
        41,
        InvalidMessage,
        "activate_in and activate_at exclude each other; pass one",
        activate_in=timedelta(1),
        activate_at=datetime(2031, 1, 1, tzinfo=UTC),
    ),
    # Timers and keys
    bad(42, InvalidMessage, "timer_id must not be empty, got ''", timer_id=""),
    bad(42, InvalidMessage, "timer_id must not be blank, got ' '", timer_id=" "),
    bad(42, WrongType, "timer_id must be a str, got int", timer_id=5),
    bad(42, WrongType, "timer_id must be a str, got UUID", timer_id=ONE),
    bad(
        42,
        InvalidMessage,
        ("timer_id must be at most 255 characters, got 256: 'tttttttttttttttttttttttttttttttt…'"),
        timer_id="t" * 256,
    ),
    bad(
        42,
        InvalidMessage,
        "timer_id must not contain control characters, got U+0000 at 1 in 't\\x00'",
        timer_id="t\x00",
    ),
    bad(42, InvalidMessage, "timer_id must not contain control characters, got U+000D at 1 in 't\\r'", timer_id="t\r"),
    bad(42, InvalidMessage, "timer_id must be valid Unicode, got a lone surrogate at 1", timer_id="t\ud800"),
    bad(
        42,
        InvalidMessage,
        "timer_conflict must be 'ignore', 'extend' or 'replace', got 'drop'",
        timer_id="t",
        timer_conflict="drop",
    ),
    bad(
        42,
        InvalidMessage,
        "timer_conflict must be 'ignore', 'extend' or 'replace', got None",
        timer_id="t",
        timer_conflict=None,
    ),
    bad(
        42,
        InvalidMessage,
        "timer_conflict must be 'ignore', 'extend' or 'replace', got ['ignore']",
        timer_id="t",
        timer_conflict=["ignore"],
    ),
    bad(
        42,
        InvalidMessage,
        (
            "timer_conflict must be 'ignore', 'extend' or 'replace', got "
            "'xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx'…"
        ),
        timer_conflict="x" * 100_000,
    ),
    bad(42, InvalidMessage, "key must not be empty, got ''", key=""),
    bad(42, InvalidMessage, "key must not be blank, got '\\t'", key="\t"),
    bad(42, WrongType, "key must be a str, got int", key=7),
    bad(42, WrongType, "key must be a str, got UUID", key=ONE),
    bad(
        42,
        InvalidMessage,
        "key must be at most 255 characters, got 256: 'kkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkk…'",
        key="k" * 256,
    ),
    bad(42, InvalidMessage, "key must not contain control characters, got U+0000 at 1 in 'k\\x00'", key="k\x00"),
    bad(42, InvalidMessage, "key must not contain control characters, got U+000A at 1 in 'k\\n'", key="k\n"),
    bad(42, InvalidMessage, "key must be valid Unicode, got a lone surrogate at 0", key="\udcff"),
    # The priority, beside the groups: a smallint
    bad(0, InvalidMessage, "priority must be between -32768 and 32767, got 32768", priority=32_768),
    bad(0, InvalidMessage, "priority must be between -32768 and 32767, got -32769", priority=-32_769),
    bad(0, InvalidMessage, "priority must be between -32768 and 32767, got an int of 16,610 bits", priority=10**5_000),
    bad(0, WrongType, "priority must be an int, got str", priority="high"),
    bad(0, WrongType, "priority must be an int, got float", priority=1.0),
    bad(0, WrongType, "priority must be an int, got bool", priority=True),
    bad(0, WrongType, "priority must be an int, got NoneType", priority=None),
)
