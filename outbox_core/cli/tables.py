"""Tables and words for people. What comes from a message is shown so that a terminal obeys none of it."""

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime


def aligned(rows: Sequence[Sequence[str]], *, left: Iterable[int] = (0,)) -> str:
    """*rows* under each other, their cells to the right, but those of the columns *left* and the last one."""
    last = len(rows[0]) - 1
    lefts = {*left, last}
    widths = [max(len(row[place]) for row in rows) for place in range(last)] + [0]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if place in lefts else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )


def printable(text: str) -> str:
    """*text* with its control characters, line ends and what reorders text as escapes."""
    if text.isprintable():
        return text
    return "".join(one if one.isprintable() else one.encode("unicode_escape").decode() for one in text)


def age(seconds: float | None) -> str:
    """In the unit that says most: 4 s, 12 min, 3 h, 9 d."""
    if seconds is None:
        return "-"
    for unit, length in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{max(seconds, 0):.0f} s"


def moment(when: datetime | None) -> str:
    """To the second, in UTC."""
    return "-" if when is None else when.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%SZ")


def counted(number: int, noun: str) -> str:
    """`1 dead letter`, `1,234 dead letters`."""
    return f"{number:,} {noun}" + ("" if number == 1 else "s")
