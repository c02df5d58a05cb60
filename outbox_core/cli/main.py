"""`outbox`: reads the command line, runs one command, and ends with an exit code and never with an operator's traceback.

    outbox stats postgresql://app@host/shop
    outbox redrive shop.messages:broker --queue orders
    outbox work shop.messages:broker

argparse is what Django's commands use as well, so that operations have one set of arguments for both.
"""

import asyncio
import os
import sys
from argparse import ArgumentParser, Namespace, _SubParsersAction
from collections.abc import Sequence
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version

from outbox_core.cli import ddl, work
from outbox_core.cli.exits import Exit, exit_of
from outbox_core.cli.operations import OPERATIONS, Answer, Operation
from outbox_core.cli.places import Names, opened
from outbox_core.cli.tables import printable
from outbox_core.errors import OutboxError
from outbox_core.sql.refusals import first_line

WHERE = "a URL (postgresql://user@host/database, sqlite:///file.db), or module:broker"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command of *arguments*, by default the process's own; its exit code."""
    options = _parser().parse_args(arguments)
    try:
        return _run(options)
    except OutboxError as error:
        return _tell(str(error), exit_of(error), options)
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # whoever reads has seen enough
        with suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python complains when it flushes
        return Exit.CLEAN
    except Exception as error:
        return _tell(f"{type(error).__name__}: {first_line(error)}", Exit.FAILED, options)


def _run(options: Namespace) -> int:
    if options.command == "work":
        return work.run(options)
    if options.command == "ddl":
        _say(ddl.run(options))
        return Exit.CLEAN
    answer = asyncio.run(_operate(options.operation, options))
    _say(answer.as_json() if options.json else answer.said)
    return Exit.CLEAN


async def _operate(operation: Operation, options: Namespace) -> Answer:
    names = Names(
        outbox=options.table,
        dead_letters=options.dead_letters,
        inbox=options.inbox_table,
        schema=options.schema,
    )
    async with opened(options.where, names) as store:
        return await operation.run(store, vars(options))


def _say(text: str) -> None:
    print(text, flush=True)  # noqa: T201  this is what a command line is for


def _tell(text: str, code: Exit, options: Namespace) -> int:
    if options.traceback:
        raise  # noqa: PLE0704  called where an error is handled
    print(f"outbox {options.command}: {printable(text)}", file=sys.stderr)  # noqa: T201  as above
    return code


def _parser() -> ArgumentParser:
    parser = ArgumentParser(
        prog="outbox",
        description="Look after an outbox.",
        epilog="Exit codes: 0 done; 1 failed; 2 wrong arguments; 3 work: handlers were cut; 69 the database does not "
        "answer; 77 the role lacks a privilege; 78 the tables do not fit.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"shared-outbox {_version()}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for operation in OPERATIONS:
        its = _add_command(commands, operation.name, operation.help)
        its.add_argument("where", metavar="WHERE", help=WHERE)
        operation.add_arguments(its)
        _add_place(its)
        its.set_defaults(operation=operation)
    work.add_arguments(_add_command(commands, "work", work.HELP))
    ddl.add_arguments(_add_command(commands, "ddl", ddl.HELP))
    return parser


def _add_command(commands: "_SubParsersAction[ArgumentParser]", name: str, help: str) -> ArgumentParser:
    parser: ArgumentParser = commands.add_parser(
        name, help=help.partition(".")[0].lower(), description=help, allow_abbrev=False
    )
    parser.add_argument("--traceback", action="store_true", help="show where an error comes from")
    return parser


def _add_place(parser: ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="for machines; ages in seconds")
    place = parser.add_argument_group("where there is a URL")
    place.add_argument("--table", default="outbox", metavar="NAME", help="the outbox table (default: outbox)")
    place.add_argument("--schema", metavar="NAME", help="its schema")
    place.add_argument(
        "--dead-letters", metavar="NAME", help="the dead-letter table (default: the one named after the outbox table)"
    )
    place.add_argument(
        "--inbox-table", metavar="NAME", help="the inbox (default: the one named after the outbox table)"
    )


def _version() -> str:
    try:
        return version("shared-outbox")
    except PackageNotFoundError:
        return "(not installed)"
