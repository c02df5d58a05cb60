"""What the management commands share: one database of the settings, and how they tell an operator what is wrong."""

from abc import abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db import DatabaseError, InterfaceError

from outbox_core.cli.exits import Exit, exit_of
from outbox_core.cli.operations import Operation
from outbox_core.errors import OutboxError, WrongDatabase
from outbox_core.sql.refusals import first_line
from outbox_core.waiting import drive
from outbox_django.connections import database_settings
from outbox_django.settings import outbox_settings
from outbox_django.store import DirectStore


class StoreCommand(BaseCommand):
    """A command on the outbox of one database. What goes wrong there is told in one line, `--traceback` aside."""

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--database", metavar="ALIAS", help="the database that has the outbox")

    def handle(self, *args: Any, **options: Any) -> None:
        given = options["database"]
        alias = outbox_settings().database if given is None else check_alias(given)
        with told_in_one_line():
            self.operate(DirectStore(alias), options)

    @abstractmethod
    def operate(self, store: DirectStore, options: dict[str, Any]) -> None:
        """Do it; raises what the store raises."""


class OperationCommand(StoreCommand):
    """One of the operations of the command line `outbox`."""

    operation: ClassVar[Operation]

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        cls.help = cls.operation.help

    def add_arguments(self, parser: CommandParser) -> None:
        super().add_arguments(parser)
        parser.add_argument("--json", action="store_true", help="for machines; ages in seconds")
        self.operation.add_arguments(parser)

    def operate(self, store: DirectStore, options: dict[str, Any]) -> None:
        answer = drive(self.operation.run(store, options))
        self.stdout.write(answer.as_json() if options["json"] else answer.said)


@contextmanager
def told_in_one_line() -> Iterator[None]:
    """An error of ours or of the database's ends the command without a traceback."""
    try:
        yield
    except OutboxError as error:
        raise CommandError(str(error), returncode=exit_of(error)) from error
    except (DatabaseError, InterfaceError) as error:
        raise CommandError(f"the database refused: {first_line(error)}", returncode=Exit.FAILED) from error


def check_alias(alias: str) -> str:
    """*alias* if `settings.DATABASES` has it; otherwise a `CommandError` that lists those it has."""
    try:
        database_settings(alias)
    except WrongDatabase as error:
        raise CommandError(str(error), returncode=Exit.USAGE) from None
    return alias
