"""`manage.py outbox_redrive`: put dead letters back."""

from typing import Any

from django.core.management.base import CommandParser

from outbox_core.waiting import drive
from outbox_django.commands import StoreCommand, count, counted, key_name, queue_name
from outbox_django.store import DirectStore


class Command(StoreCommand):
    help = (
        "Put dead letters back into their queues, oldest first, with their message ids and fresh counters; all of them, or "
        "those that every option given applies to. All or none are put back."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        super().add_arguments(parser)
        parser.add_argument("--queue", type=queue_name, metavar="NAME", help="only those of this queue")
        parser.add_argument("--key", type=key_name, metavar="KEY", help="only those with this key")
        parser.add_argument("--reason", metavar="REASON", help="only those that failed for this reason")
        parser.add_argument("--id", type=count(), action="append", metavar="N", help="only this one; may be repeated")
        parser.add_argument("--limit", type=count(), metavar="N", help="at most so many")
        parser.add_argument("--dry-run", action="store_true", help="only say how many")

    def operate(self, store: DirectStore, options: dict[str, Any]) -> None:
        number = drive(
            store.redrive(
                queue=options["queue"],
                key=options["key"],
                ids=options["id"],
                reason=options["reason"],
                limit=options["limit"],
                dry_run=options["dry_run"],
                session=None,
            )
        )
        done = "would be put back" if options["dry_run"] else "put back"
        self.stdout.write(f"{counted(number, 'dead letter')} {done}")
