"""Run a test's program with Django set up and the models at hand, and write what it leaves in `answer`."""

import pickle
import sys

import django

django.setup()

from outbox_django import models  # noqa: E402  after setup, which loads the settings

every = (
    models.OutboxMessage,
    models.DeadLetter,
    models.ArchivedMessage,
    models.QueueControl,
    models.ReceivedMessage,
)
names: dict[str, object] = {**vars(models), "MODELS": every}
exec(sys.argv[1], names)
sys.stdout.buffer.write(pickle.dumps(names["answer"]))
