"""`manage.py outbox_show`: one message, with its body."""

from outbox_core.cli.operations import Show
from outbox_django.commands import OperationCommand


class Command(OperationCommand):
    operation = Show()
