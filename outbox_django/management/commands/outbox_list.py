"""`manage.py outbox_list`: which messages there are."""

from outbox_core.cli.operations import ListMessages
from outbox_django.commands import OperationCommand


class Command(OperationCommand):
    operation = ListMessages()
