"""`manage.py outbox_resume`: undo `outbox_pause`."""

from outbox_django.management.commands import outbox_pause


class Command(outbox_pause.Command):
    help = "Let workers claim from paused queues again."
    paused = False
