"""What `manage.py outbox_worker` runs: a worker process with its lanes."""

from typing import cast

from outbox_core.cli import process
from outbox_core.cli.process import WorkerOptions
from outbox_django.faststream import OutboxBroker
from outbox_django.store import DjangoStore


class WorkerProcess(process.WorkerProcess):
    """A project's broker that consumes until it is enough. *concurrency*: handlers at once; None: the settings' number."""

    def __init__(self, broker: OutboxBroker, options: WorkerOptions, *, concurrency: int | None = None) -> None:
        super().__init__(broker, options)
        self._lanes = broker.lanes
        if options.once:
            broker.set_concurrency(1)
        elif concurrency is not None:
            broker.set_concurrency(concurrency)
        self.handlers_at_once = broker.lanes.size

    @property
    def alias(self) -> str:
        """The database that has the outbox."""
        return cast("DjangoStore", self._broker.store).alias

    def _still_busy(self) -> int:
        return self._lanes.busy
