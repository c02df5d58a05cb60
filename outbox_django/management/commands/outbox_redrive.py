"""`manage.py outbox_redrive`: put dead letters back."""

from outbox_core.cli.operations import Redrive
from outbox_django.commands import OperationCommand


class Command(OperationCommand):
    operation = Redrive()
