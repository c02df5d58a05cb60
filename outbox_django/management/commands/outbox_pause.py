"""`manage.py outbox_pause`: stop all workers' claiming from a queue."""

from typing import Any

from django.core.management.base import CommandParser

from outbox_core.waiting import drive
from outbox_django.commands import StoreCommand, queue_name
from outbox_django.store import DirectStore


class Command(StoreCommand):
    help = (
        "Stop all workers' claiming from queues within about a second, until outbox_resume; what they have in hand is "
        "handled. It survives restarts, and messages may be published meanwhile."
    )
    paused = True

    def add_arguments(self, parser: CommandParser) -> None:
        super().add_arguments(parser)
        parser.add_argument("queue", type=queue_name, nargs="+", help="a queue's name; messages need not be there yet")

    def operate(self, store: DirectStore, options: dict[str, Any]) -> None:
        for queue in options["queue"]:
            drive(store.set_paused(queue, self.paused, None))
            self.stdout.write(f"{queue} {'is paused' if self.paused else 'goes on'}")
