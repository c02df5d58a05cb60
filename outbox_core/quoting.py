"""Values of others in texts of ours: on one line, short, and without anything that a terminal or a log would obey.

A name from a request can have a line end in it, and behind that what looks like the next record of a log (CWE-117).
"""

import logging
import re
from collections.abc import Iterable
from datetime import timedelta

SHOWN = 80  # characters of a value that an error repeats; an identifier of any database is shorter

# C0, DEL and C1, and the two separators at which `str.splitlines` and some viewers of logs break a line.
CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029]")


def said(span: timedelta) -> str:
    """`14 days`, `30 days, 1:00:00`."""
    return str(span).removesuffix(", 0:00:00")


def quoted(value: object) -> str:
    """*value* as `repr` has it, cut where it is long; never raises."""
    if isinstance(value, str | bytes | bytearray) and len(value) > SHOWN:
        return f"{value[:SHOWN]!r}…"
    if isinstance(value, int) and abs(value) >= 10**SHOWN:  # Python refuses to write the longest ones
        return f"an int of {value.bit_length():,} bits"
    try:
        text = repr(value)
    except Exception:  # somebody's __repr__
        return f"{type(value).__name__}, which cannot be shown"
    return one_line(text if len(text) <= 2 * SHOWN else f"{text[: 2 * SHOWN]}…")


def one_line(text: str) -> str:
    """*text* with control characters and lone surrogates written as escapes, so that it is one line, and valid UTF-8."""
    if text.isprintable():
        return text
    return CONTROL.sub(_escaped, text).encode(errors="backslashreplace").decode()


def _escaped(found: re.Match[str]) -> str:
    return found[0].encode("unicode_escape").decode()


def indent_traceback(record: logging.LogRecord) -> bool:
    """A filter for loggers: what an exception says about a message must not look like the next record.

    Tracebacks of exceptions that say it on one line, as nearly all do, are left as they are.
    """
    error = record.exc_info[1] if isinstance(record.exc_info, tuple) else None
    if error is not None and not record.exc_text and any(map(_breaks_lines, _chain(error))):
        lines = logging.Formatter().formatException(record.exc_info).split("\n")  # type: ignore[arg-type]  # a tuple
        record.exc_text = "\n".join(f"  {one_line(line)}" for line in lines)
    return True


def _chain(error: BaseException) -> Iterable[BaseException]:
    """The error, and those that led to it."""
    found: dict[int, BaseException] = {}
    ahead: list[BaseException | None] = [error]
    while ahead:
        one = ahead.pop()
        if one is not None and id(one) not in found:
            found[id(one)] = one
            ahead += [one.__cause__, one.__context__]
    return found.values()


def _breaks_lines(error: BaseException) -> bool:
    try:
        return CONTROL.search(str(error)) is not None
    except Exception:  # somebody's __str__
        return True
