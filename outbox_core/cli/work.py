"""`outbox work module:broker`: a worker process for a broker of SQLAlchemy's.

Whoever has an application with a start-up of its own runs that (`faststream run`, an ASGI server, `manage.py outbox_worker`).
"""

import asyncio
import logging
import os
from argparse import ArgumentParser, Namespace
from pathlib import Path

from outbox_core.cli.arguments import named_queues, patience, seconds
from outbox_core.cli.exits import Exit, Refused
from outbox_core.cli.places import find_broker, find_object
from outbox_core.cli.process import WorkerOptions, WorkerProcess, leave, show_log
from outbox_core.errors import OptionError

HELP = (
    "Handle messages with a broker's subscribers. The first SIGTERM or SIGINT drains, the second ends the process at once. "
    "Exit codes: 0 clean; 1 it could not start, or a handler exited; 2 wrong arguments; 3 handlers were cut when the "
    "graceful timeout had passed; 69 the database does not answer; 70 the event loop was blocked for too long; "
    "77 the role lacks a privilege; 78 the tables do not fit; 128 + n ended by a second signal n."
)


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("where", metavar="MODULE:BROKER", help="where the broker is, such as shop.messages:broker")
    parser.add_argument("--queue", action="append", metavar="NAME", help="serve this queue only; may be repeated")
    parser.add_argument("--exclude-queue", action="append", metavar="NAME", help="do not serve this queue")
    parser.add_argument("--drain", action="store_true", help="exit when nothing is due")
    parser.add_argument("--graceful-timeout", type=seconds, metavar="S", help="seconds for handlers at a stop")
    parser.add_argument(
        "--stuck-timeout",
        type=patience,
        metavar="S",
        help="seconds of a blocked loop until the process is ended; 0: never",
    )
    parser.add_argument("--health-file", type=Path, metavar="PATH", help="touched every 2 s while there is progress")
    parser.add_argument("--verbose", "-v", action="store_true", help="log at DEBUG")


def run(options: Namespace) -> int:
    """The exit code of the worker."""
    show_log(logging.DEBUG if options.verbose else logging.INFO)
    process = _prepare(options)
    try:
        code = asyncio.run(_run(process))
    except OptionError as error:  # of a handler, not of the command
        raise Refused(str(error), Exit.FAILED) from error
    if code == Exit.ABANDONED:
        leave(code)  # a handler that did not end may hold a thread, and that the interpreter
    return code


def _prepare(options: Namespace) -> WorkerProcess:
    """Everything that can be wrong with the arguments, before anything is connected."""
    if "://" in options.where:
        raise Refused("work needs module:broker, since handlers are code; got a URL")
    broker = find_broker(options.where)
    if find_object(options.where) is not broker:
        raise Refused(
            f"{options.where!r} is an application or a router with a start-up of its own, which this would leave out; "
            f"name its broker, or run it with its own server or with: faststream run {options.where}"
        )
    check_health_file(options.health_file)
    if not broker.subscribers:
        raise Refused(f"{options.where!r} has no subscribers, so there is nothing to handle")
    broker.serve(named_queues(options.queue), exclude=named_queues(options.exclude_queue) or ())
    if not broker.served_queues:
        raise Refused("--queue and --exclude-queue leave nothing to serve")
    return WorkerProcess(
        broker,
        WorkerOptions(
            graceful_timeout=options.graceful_timeout,
            stuck_timeout=options.stuck_timeout,
            drain=options.drain,
            health_file=options.health_file,
        ),
    )


def check_health_file(path: Path | None) -> None:
    """`Refused` unless the file could be made."""
    if path is not None and not os.access(path.parent, os.W_OK):
        raise Refused(f"--health-file {path}: {path.parent} is no folder that takes files")


async def _run(process: WorkerProcess) -> int:
    process.listen_to_signals()
    return await process.run()
