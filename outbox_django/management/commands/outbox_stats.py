"""`manage.py outbox_stats`: what lies in the queues."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Any

from django.core.management.base import CommandParser

from outbox_core.message import OutboxStats, QueueStats
from outbox_core.waiting import drive
from outbox_django.commands import StoreCommand
from outbox_django.store import DirectStore

HEADINGS = ("queue", "ready", "scheduled", "leased", "dead", "oldest", "")
FULL_NAMES = ("ready", "scheduled", "leased", "dead")


class Command(StoreCommand):
    help = (
        "Count the messages of each queue: ready to be handled, scheduled for later or for another attempt, leased by a "
        "worker, and dead. The oldest is the one that has been ready for longest. Reads the whole table."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        super().add_arguments(parser)
        parser.add_argument("--json", action="store_true", help="for machines; ages in seconds")

    def operate(self, store: DirectStore, options: dict[str, Any]) -> None:
        stats = drive(store.stats())
        if options["json"]:
            self.stdout.write(_as_json(store, stats))
        elif stats.queues:
            self.stdout.write("\n".join(_aligned(_rows(stats.queues.values()))))
        else:
            self.stdout.write(f"{store.name} is empty")


def _as_json(store: DirectStore, stats: OutboxStats) -> str:
    queues = {name: asdict(queue) for name, queue in stats.queues.items()}
    return json.dumps({"outbox": store.name, "queues": queues}, indent=2)


def _rows(queues: Iterable[QueueStats]) -> list[Sequence[str]]:
    listed = list(queues)
    rows: list[Sequence[str]] = [HEADINGS, *(_row(queue) for queue in listed)]
    if len(listed) > 1:
        totals = {name: sum(getattr(queue, name) for queue in listed) for name in FULL_NAMES}
        oldest = max((queue.oldest_age for queue in listed if queue.oldest_age is not None), default=None)
        rows.append(_row(QueueStats(queue="total", oldest_age=oldest, **totals)))
    return rows


def _row(queue: QueueStats) -> Sequence[str]:
    counts = [f"{getattr(queue, name):,}" for name in FULL_NAMES]
    return (queue.queue, *counts, _age(queue.oldest_age), "paused" if queue.paused else "")


def _age(seconds: float | None) -> str:
    """In the unit that says most: 4 s, 12 min, 3.5 h, 9 d."""
    if seconds is None:
        return "-"
    for unit, length in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{max(seconds, 0):.0f} s"


def _aligned(rows: Sequence[Sequence[str]]) -> Iterable[str]:
    """Names to the left, numbers to the right."""
    widths = [max(len(row[place]) for row in rows) for place in range(len(HEADINGS))]
    for name, *numbers, note in rows:
        cells = [
            name.ljust(widths[0]),
            *(number.rjust(width) for number, width in zip(numbers, widths[1:-1], strict=True)),
        ]
        yield "  ".join([*cells, note]).rstrip()
