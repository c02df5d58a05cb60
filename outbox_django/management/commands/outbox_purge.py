"""`manage.py outbox_purge`: delete old dead letters."""

from outbox_core.cli.operations import Purge
from outbox_django.commands import OperationCommand


class Command(OperationCommand):
    operation = Purge()
