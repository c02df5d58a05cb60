"""`manage.py outbox_release`: let a key go on that a dead message halts."""

from typing import Any

from django.core.management.base import CommandError, CommandParser

from outbox_core.waiting import drive
from outbox_django.commands import StoreCommand, key_name, queue_name
from outbox_django.store import DirectStore


class Command(StoreCommand):
    help = (
        "Let a key go on without the dead message that halts it, which goes to the dead letters. To have that message tried "
        "again in its place, use outbox_redrive --queue --key."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        super().add_arguments(parser)
        parser.add_argument("queue", type=queue_name, help="the queue's name")
        parser.add_argument("key", type=key_name, nargs="+", help="a halted key")

    def operate(self, store: DirectStore, options: dict[str, Any]) -> None:
        for key in options["key"]:
            if not drive(store.release_key(options["queue"], key, None)):
                raise CommandError(f"nothing halts key {key!r} of {options['queue']!r}")
            self.stdout.write(f"{key} goes on")
