"""`manage.py outbox_pause`: stop all workers' claiming from a queue."""

from outbox_core.cli.operations import Pause
from outbox_django.commands import OperationCommand


class Command(OperationCommand):
    operation = Pause()
