"""`manage.py outbox_health`: for probes, and for whoever is called by them."""

from collections.abc import Iterator
from pathlib import Path
from time import time
from typing import Any

from django.core.management.base import CommandError, CommandParser

from outbox_core.cli.arguments import count, seconds
from outbox_core.cli.exits import Exit
from outbox_core.cli.tables import counted
from outbox_core.errors import OutboxError
from outbox_core.message import OutboxStats
from outbox_core.waiting import drive
from outbox_django.commands import StoreCommand
from outbox_django.settings import outbox_settings
from outbox_django.store import DirectStore

MAX_SILENCE = 15.0  # seconds; a worker touches its file every 2 s, and at worst every 7 s


class Command(StoreCommand):
    help = (
        "Exit with 0 if all is well, otherwise with 1 and one line that says what is not: the database does not answer, "
        "the tables do not fit, or one of the limits given is passed. --max-age and --max-dead read the whole table."
    )
    requires_system_checks = ()  # probes are frequent

    def add_arguments(self, parser: CommandParser) -> None:
        super().add_arguments(parser)
        parser.add_argument(
            "--max-age", type=seconds, metavar="S", help="seconds for which a message may be ready, paused queues aside"
        )
        parser.add_argument("--max-dead", type=count(least=0), metavar="N", help="dead letters that there may be")
        parser.add_argument("--file", type=Path, metavar="PATH", help="the health file of a worker on this machine")
        parser.add_argument(
            "--max-silence",
            type=seconds,
            metavar="S",
            help=f"seconds for which --file may be untouched (default: {MAX_SILENCE:g})",
        )

    def operate(self, store: DirectStore, options: dict[str, Any]) -> None:
        if options["max_silence"] is not None and options["file"] is None:
            raise CommandError("--max-silence is about --file, which is not given", returncode=Exit.USAGE)
        if wrong := list(_wrong(store, options)):
            raise CommandError("; ".join(wrong), returncode=Exit.FAILED)
        self.stdout.write(f"{store.name} is well")


def _wrong(store: DirectStore, options: dict[str, Any]) -> Iterator[str]:
    if options["file"] is not None:
        yield from _silence(options["file"], options["max_silence"])
    try:
        yield from _misfits(store)
        if options["max_age"] is not None or options["max_dead"] is not None:
            yield from _passed(drive(store.stats()), options)
    except OutboxError as error:
        yield str(error)


def _silence(path: Path, limit: float | None) -> Iterator[str]:
    limit = MAX_SILENCE if limit is None else limit
    try:
        silent = time() - path.stat().st_mtime
    except FileNotFoundError:
        yield f"{path} does not exist; the worker that should touch it has not started, or has ended"
    except OSError as error:
        yield f"{path} cannot be looked at: {error.strerror}"
    else:
        if silent > limit:
            yield f"{path} was touched {silent:.0f} s ago, limit {limit:g}; the worker makes no progress, or was killed"


def _misfits(store: DirectStore) -> Iterator[str]:
    for table, differences in drive(store.differences()).items():
        if fatal := [difference.text for difference in differences if difference.fatal and difference.needed]:
            yield f"{table} does not fit this version: {'; '.join(fatal)}; {outbox_settings().way_out(store.alias)}"
            return


def _passed(stats: OutboxStats, options: dict[str, Any]) -> Iterator[str]:
    max_age, max_dead = options["max_age"], options["max_dead"]
    queues = stats.queues.values()
    ages = {queue.queue: queue.oldest_age for queue in queues if queue.oldest_age is not None and not queue.paused}
    if max_age is not None and ages and max(ages.values()) > max_age:
        oldest = max(ages, key=lambda queue: ages[queue])
        yield f"a message in {oldest!r} has been ready for {ages[oldest]:.0f} s, limit {max_age:g}"
    dead = sum(queue.dead for queue in queues)
    if max_dead is not None and dead > max_dead:
        yield f"{counted(dead, 'dead letter')}, limit {max_dead:,}"
