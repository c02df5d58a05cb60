"""`manage.py outbox_resume`: undo `outbox_pause`."""

from outbox_core.cli.operations import Resume
from outbox_django.commands import OperationCommand


class Command(OperationCommand):
    operation = Resume()
