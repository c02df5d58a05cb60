"""`manage.py outbox_stats`: what lies in the queues."""

from outbox_core.cli.operations import Stats
from outbox_django.commands import OperationCommand


class Command(OperationCommand):
    operation = Stats()
