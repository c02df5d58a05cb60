"""`manage.py outbox_purge`: delete old dead letters, or forget what was received long ago."""

from argparse import ArgumentParser
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

from outbox_core.cli.arguments import count, duration, queue_name
from outbox_core.cli.exits import Refused
from outbox_core.cli.operations import Answer, Operation, purge_dead_letters, purge_inbox
from outbox_core.store import Store
from outbox_django.commands import OperationCommand
from outbox_django.settings import outbox_settings


class Purge(Operation):
    """`outbox purge`, by the ages that the settings declare, and for the inbox too."""

    name = "purge"
    help = "Delete dead letters, or with --inbox the records of received messages, for good, a batch a transaction."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument(
            "--older-than",
            type=duration,
            metavar="SPAN",
            help="those that failed, or were received, longer ago than this: 30d, 12h, 45m, or seconds; without it "
            'OUTBOX["DEAD_LETTER_RETENTION"] or OUTBOX["INBOX_RETENTION"]',
        )
        parser.add_argument("--inbox", action="store_true", help="forget received messages instead")
        parser.add_argument("--queue", type=queue_name, metavar="NAME", help="only dead letters of this queue")
        parser.add_argument("--limit", type=count(), metavar="N", help="at most so many")

    async def run(self, store: Store, options: Mapping[str, Any]) -> Answer:
        if options["inbox"]:
            return await purge_inbox(store, outbox_settings().retention.age(options["older_than"]), options)
        return await purge_dead_letters(store, _dead_letters_age(options["older_than"]), options)


def _dead_letters_age(given: timedelta | None) -> timedelta:
    older_than = outbox_settings().dead_letter_retention if given is None else given
    if older_than is None:
        raise Refused(
            'dead letters are kept for ever; set OUTBOX["DEAD_LETTER_RETENTION"], or say how old with --older-than'
        )
    return older_than


class Command(OperationCommand):
    operation = Purge()
