"""`manage.py outbox_release`: let keys go on that a dead message halts."""

from outbox_core.cli.operations import Release
from outbox_django.commands import OperationCommand


class Command(OperationCommand):
    operation = Release()
