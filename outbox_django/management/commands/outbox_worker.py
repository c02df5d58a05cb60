"""`manage.py outbox_worker`: handle the messages of the outbox."""

import asyncio
import logging
import multiprocessing
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db import connections
from django.utils import autoreload

from outbox_core.cli.arguments import count, named_queues, patience, seconds
from outbox_core.cli.exits import Exit
from outbox_core.cli.process import WorkerOptions, leave, show_log
from outbox_core.cli.work import check_health_file
from outbox_core.errors import OptionError, SchemaMismatch
from outbox_core.options import MAX_WORKERS
from outbox_django.commands import check_alias, told_in_one_line
from outbox_django.errors import BrokenHandlers
from outbox_django.handlers import load_handlers
from outbox_django.settings import outbox_settings

if TYPE_CHECKING:
    from outbox_django.faststream import OutboxBroker
    from outbox_django.worker import WorkerProcess

logger = logging.getLogger("outbox")


class Command(BaseCommand):
    help = (
        "Handle the messages of the outbox. Exit codes: 0 clean; 1 it could not start; 2 wrong arguments; 3 handlers were "
        "cut when the graceful timeout had passed; 69 the database does not answer; 70 the event loop was blocked for too "
        "long; 77 the role lacks a privilege; 78 the tables do not fit; 128 + n ended by a second signal n."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--queue", action="append", metavar="NAME", help="serve this queue only; may be repeated")
        parser.add_argument("--exclude-queue", action="append", metavar="NAME", help="do not serve this queue")
        parser.add_argument(
            "--concurrency", type=count(MAX_WORKERS), metavar="N", help="handlers at once, in each process"
        )
        parser.add_argument(
            "--processes", type=count(MAX_WORKERS), default=1, metavar="N", help="worker processes (default: 1)"
        )
        parser.add_argument("--drain", action="store_true", help="exit when nothing is due")
        parser.add_argument("--once", action="store_true", help="exit after one handler run, or if nothing is due")
        parser.add_argument("--reload", action="store_true", help="restart when code changes, for development")
        parser.add_argument("--database", metavar="ALIAS", help="the database that has the outbox")
        parser.add_argument("--graceful-timeout", type=seconds, metavar="S", help="seconds for handlers at a stop")
        parser.add_argument(
            "--stuck-timeout",
            type=patience,
            metavar="S",
            help="seconds of a blocked loop until the process is ended; 0: never",
        )
        parser.add_argument(
            "--health-file", type=Path, metavar="PATH", help="touched every 2 s while there is progress"
        )

    def handle(self, *args: Any, **options: Any) -> None:
        _refuse_together(options)
        show_log({0: logging.WARNING, 1: logging.INFO}.get(options["verbosity"], logging.DEBUG))
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
            raise CommandError(f"--{one} and --{other} exclude each other", returncode=Exit.USAGE)
    for one in ("reload", "once", "health_file"):
        if options[one] and options["processes"] > 1:
            raise CommandError(f"--{one.replace('_', '-')} is for one process, got --processes", returncode=Exit.USAGE)


def _work(options: dict[str, Any]) -> int:
    """The exit code of one worker process."""
    process = _prepare(options)
    return _run(process, in_main_thread=threading.current_thread() is threading.main_thread())


def _prepare(options: dict[str, Any]) -> "WorkerProcess":
    """Everything that can be wrong with the project and the arguments, before anything is connected."""
    from outbox_django.worker import WorkerProcess

    broker = _broker(options)
    with told_in_one_line():
        check_health_file(options["health_file"])
    try:
        broker.serve(named_queues(options["queue"]), exclude=named_queues(options["exclude_queue"]) or ())
    except OptionError as error:
        raise CommandError(str(error), returncode=Exit.USAGE) from error
    if not broker.served_queues:
        raise CommandError("--queue and --exclude-queue leave nothing to serve", returncode=Exit.USAGE)
    return WorkerProcess(
        broker,
        WorkerOptions(
            graceful_timeout=options["graceful_timeout"],
            stuck_timeout=options["stuck_timeout"],
            drain=options["drain"],
            once=options["once"],
            health_file=options["health_file"],
        ),
        concurrency=options["concurrency"],
    )


def _broker(options: dict[str, Any]) -> "OutboxBroker":
    with told_in_one_line():
        try:
            broker = load_handlers()
        except BrokenHandlers as error:
            raise CommandError(f"{error}; --traceback shows where", returncode=Exit.FAILED) from error
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
    with told_in_one_line():
        try:
            return asyncio.run(_run_in_loop(process, in_main_thread))
        except SchemaMismatch as error:
            raise CommandError(
                f"{error}; {outbox_settings().way_out(process.alias)}", returncode=Exit.MISFIT
            ) from error
        except OptionError as error:  # of a handler, not of the command
            raise CommandError(str(error), returncode=Exit.FAILED) from error


async def _run_in_loop(process: "WorkerProcess", in_main_thread: bool) -> int:
    if in_main_thread:
        process.listen_to_signals()
    if (parent := multiprocessing.parent_process()) is not None:
        asyncio.get_running_loop().add_reader(parent.sentinel, _orphaned, process, parent.sentinel)
    return await process.run()


def _orphaned(process: "WorkerProcess", sentinel: int) -> None:
    asyncio.get_running_loop().remove_reader(sentinel)  # it stays readable, and would be called for ever
    logger.warning("the parent process is gone; draining")
    process.stop()


def _work_reloading(options: dict[str, Any]) -> None:
    """In the reloader's thread: a change of code asks for a drain, and waits for it, before everything starts anew."""
    autoreload.raise_last_exception()
    try:
        _run_until_changed(_prepare(options))
    except CommandError as error:
        logger.error("%s; waiting for code to change", error)
        if isinstance(error.__cause__, BrokenHandlers) and error.__cause__.__cause__ is not None:
            raise error.__cause__.__cause__ from None  # Django then watches the file that it comes from, too


def _run_until_changed(process: "WorkerProcess") -> None:
    ended = threading.Event()

    def drain(file_path: object, **_: Any) -> None:
        logger.info("%s has changed: draining, to start anew", file_path)
        process.stop()
        ended.wait(process.patience)

    autoreload.file_changed.connect(drain, weak=False)
    try:
        _run(process, in_main_thread=False)
    finally:
        ended.set()


def _end(code: int) -> None:
    """End the process where there is more to say than success."""
    if code == Exit.ABANDONED:
        leave(code)  # the handlers that did not end hold their threads, and these the interpreter
    if code:
        sys.exit(code)
