"""`manage.py outbox_worker`: handle the messages of the outbox."""

import asyncio
import logging
import multiprocessing
import sys
import threading
from argparse import ArgumentTypeError
from pathlib import Path
from typing import TYPE_CHECKING, Any

from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db import connections
from django.utils import autoreload

from outbox_core.errors import OptionError, OutboxError, SchemaMismatch
from outbox_core.options import MAX_WORKERS
from outbox_django.commands import check_alias, named_queues, way_out
from outbox_django.handlers import load_handlers
from outbox_django.settings import outbox_settings

if TYPE_CHECKING:
    from outbox_django.faststream import OutboxBroker
    from outbox_django.worker import WorkerProcess

USAGE = 2


class Command(BaseCommand):
    help = (
        "Handle the messages of the outbox. Exit codes: 0 clean; 1 it could not start; 2 wrong arguments; 3 handlers were "
        "cut when the graceful timeout had passed; 128 + n ended by a second signal n."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--queue", action="append", metavar="NAME", help="serve this queue only; may be repeated")
        parser.add_argument("--exclude-queue", action="append", metavar="NAME", help="do not serve this queue")
        parser.add_argument("--concurrency", type=_count, metavar="N", help="handlers at once, in each process")
        parser.add_argument("--processes", type=_count, default=1, metavar="N", help="worker processes (default: 1)")
        parser.add_argument("--drain", action="store_true", help="exit when nothing is due")
        parser.add_argument("--once", action="store_true", help="exit after one message, or if none is due")
        parser.add_argument("--reload", action="store_true", help="restart when code changes, for development")
        parser.add_argument("--database", metavar="ALIAS", help="the database that has the outbox")
        parser.add_argument("--graceful-timeout", type=_seconds, metavar="S", help="seconds for handlers at a stop")
        parser.add_argument(
            "--health-file", type=Path, metavar="PATH", help="touched every 2 s while there is progress"
        )

    def handle(self, *args: Any, **options: Any) -> None:
        _refuse_together(options)
        _show_log(options["verbosity"])
        if options["reload"]:
            autoreload.run_with_reloader(_work_reloading, options)
        elif options["processes"] > 1:
            from outbox_django.processes import Supervisor

            _end(Supervisor(options["processes"], options).run())
        else:
            _end(_work(options))


def _refuse_together(options: dict[str, Any]) -> None:
    for one, other in (("drain", "once"), ("reload", "drain"), ("reload", "once")):
        if options[one] and options[other]:
            raise CommandError(f"--{one} and --{other} exclude each other", returncode=USAGE)
    for one in ("reload", "once", "health_file"):
        if options[one] and options["processes"] > 1:
            raise CommandError(f"--{one.replace('_', '-')} is for one process, got --processes", returncode=USAGE)


def _work(options: dict[str, Any]) -> int:
    """The exit code of one worker process."""
    process = _prepare(options)
    return _run(process, in_main_thread=threading.current_thread() is threading.main_thread())


def _prepare(options: dict[str, Any]) -> "WorkerProcess":
    """Everything that can be wrong with the project and the arguments, before anything is connected."""
    from outbox_django.worker import WorkerOptions, WorkerProcess

    broker = _broker(options)
    try:
        broker.serve(named_queues(options["queue"]), exclude=named_queues(options["exclude_queue"]) or ())
    except OptionError as error:
        raise CommandError(str(error), returncode=USAGE) from error
    if not broker.served_queues:
        raise CommandError("--queue and --exclude-queue leave nothing to serve", returncode=USAGE)
    return WorkerProcess(
        broker,
        WorkerOptions(
            concurrency=options["concurrency"],
            graceful_timeout=options["graceful_timeout"],
            drain=options["drain"],
            once=options["once"],
            health_file=options["health_file"],
        ),
    )


def _broker(options: dict[str, Any]) -> "OutboxBroker":
    try:
        broker = load_handlers()
    except OutboxError as error:
        raise CommandError(str(error)) from error
    if options["database"] is not None:
        broker.use_database(check_alias(options["database"]))
    if not broker.subscribers:
        raise CommandError(
            f"there are no handlers; write them in a module {outbox_settings().autodiscover!r} of an installed app, "
            "with @broker.subscriber(…) and from outbox_django import broker"
        )
    return broker


def _run(process: "WorkerProcess", *, in_main_thread: bool) -> int:
    connections.close_all()  # what the checks have opened; from here on everything has a thread of its own
    try:
        return asyncio.run(_run_in_loop(process, in_main_thread))
    except SchemaMismatch as error:
        raise CommandError(f"{error}; {way_out()}") from error
    except OutboxError as error:
        raise CommandError(str(error)) from error


async def _run_in_loop(process: "WorkerProcess", in_main_thread: bool) -> int:
    if in_main_thread:
        process.listen_to_signals()
    if (parent := multiprocessing.parent_process()) is not None:
        asyncio.get_running_loop().add_reader(parent.sentinel, process.stop)
    return await process.run()


def _work_reloading(options: dict[str, Any]) -> None:
    """In the reloader's thread: a change of code asks for a drain, and waits for it, before everything starts anew."""
    autoreload.raise_last_exception()
    process = _prepare(options)
    ended = threading.Event()

    def drain(**_: Any) -> None:
        process.stop()
        ended.wait(process.patience)

    autoreload.file_changed.connect(drain, weak=False)
    try:
        _run(process, in_main_thread=False)
    finally:
        ended.set()


def _show_log(verbosity: int) -> None:
    """Write our records to standard output, unless the project's LOGGING takes care of them."""
    logger = logging.getLogger("outbox")
    if logger.hasHandlers():
        return
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    logger.addHandler(handler)
    logger.setLevel({0: logging.WARNING, 1: logging.INFO}.get(verbosity, logging.DEBUG))


def _end(code: int) -> None:
    """End the process where there is more to say than success."""
    from outbox_django.worker import Exit, leave

    if code == Exit.ABANDONED:
        leave(code)  # the handlers that did not end hold their threads, and these the interpreter
    if code:
        sys.exit(code)


def _count(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= MAX_WORKERS:
        raise ArgumentTypeError(f"must be a number between 1 and {MAX_WORKERS:,}, got {text!r}")
    return int(text)


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds < float("inf"):
        raise ArgumentTypeError(f"must be a number of seconds >= 0, got {text!r}")
    return seconds
