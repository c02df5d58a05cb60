"""`manage.py outbox_purge`: delete old dead letters."""

from collections.abc import Iterator
from typing import Any

from django.core.management.base import CommandParser

from outbox_core.waiting import drive
from outbox_django.commands import StoreCommand, count, counted, duration, queue_name
from outbox_django.store import DirectStore

BATCH = 5_000  # rows a transaction, so that none holds its locks for long


class Command(StoreCommand):
    help = "Delete dead letters for good, a batch a transaction."

    def add_arguments(self, parser: CommandParser) -> None:
        super().add_arguments(parser)
        parser.add_argument(
            "--older-than",
            type=duration,
            required=True,
            metavar="SPAN",
            help="those that failed longer ago than this: 30d, 12h, 45m, or seconds",
        )
        parser.add_argument("--queue", type=queue_name, metavar="NAME", help="only those of this queue")
        parser.add_argument("--limit", type=count(), metavar="N", help="at most so many")

    def operate(self, store: DirectStore, options: dict[str, Any]) -> None:
        deleted = 0
        for size in _batches(options["limit"]):
            found = drive(store.purge_dead_letters(options["older_than"], options["queue"], size, None))
            deleted += found
            if found < size:
                break
        self.stdout.write(f"{counted(deleted, 'dead letter')} deleted")


def _batches(limit: int | None) -> Iterator[int]:
    """Sizes that come to *limit* together, or to no end."""
    while limit is None:
        yield BATCH
    for start in range(0, limit, BATCH):
        yield min(BATCH, limit - start)
