"""Django signals for what happens in a worker process, sent as `asend_robust` does: a receiver's error is logged only.

Receivers may be synchronous or asynchronous and may use the ORM. They run beside the handlers, one signal after another, in a
lane of their own; a signal without receivers costs nothing.
"""

import asyncio
import logging
from typing import Any

from django.dispatch import Signal

from outbox_core.events import DeadLettered, Event, WorkerStarted, WorkerStopped
from outbox_django.lanes import Lane

logger = logging.getLogger("outbox")

message_dead_lettered = Signal()
"""A message is dead: `delivery` (its id, queue, payload, headers and counters) and `reason`."""

worker_started = Signal()
"""A worker claims from now on: `worker` (its name), `queues`, and whether it is `listening` or polls."""

worker_stopped = Signal()
"""A worker has drained: `worker`, how many messages were `released`, and how many handlers were `abandoned`."""


class SignalSender:
    """An observer of the engine that sends the signals. Its receivers get the broker's class as sender, and `broker`."""

    def __init__(self, broker: object) -> None:
        self._broker = broker
        self._queue: asyncio.Queue[tuple[Signal, dict[str, Any]] | None] | None = None
        self._sending: asyncio.Task[None] | None = None

    def __call__(self, event: Event) -> None:
        match event:
            case DeadLettered(delivery, reason):
                self._send(message_dead_lettered, delivery=delivery, reason=reason)
            case WorkerStarted(worker, queues, listening):
                self._send(worker_started, worker=worker, queues=queues, listening=listening)
            case WorkerStopped(worker, released, abandoned):
                self._send(worker_stopped, worker=worker, released=released, abandoned=abandoned)

    def _send(self, signal: Signal, **arguments: Any) -> None:
        if self._queue is not None and signal.has_listeners(type(self._broker)):
            self._queue.put_nowait((signal, arguments))

    async def start(self, lane: Lane) -> None:
        """Send from now on; receivers do their synchronous work in *lane*, which is closed at the end."""
        self._queue = asyncio.Queue()
        self._sending = asyncio.create_task(self._run(self._queue, lane))

    async def stop(self, timeout: float) -> None:
        """Send what has come together, for *timeout* seconds at most."""
        queue, self._queue = self._queue, None
        sending, self._sending = self._sending, None
        if queue is None or sending is None:
            return
        queue.put_nowait(None)
        await asyncio.wait([sending], timeout=timeout)
        if not sending.done():
            logger.warning("receivers of the outbox's signals took longer than %g s; the rest is not sent", timeout)
            sending.cancel()
        await asyncio.gather(sending, return_exceptions=True)

    async def _run(self, queue: asyncio.Queue[tuple[Signal, dict[str, Any]] | None], lane: Lane) -> None:
        try:
            with lane.entered():
                while (call := await queue.get()) is not None:
                    signal, arguments = call
                    await lane.check()
                    await signal.asend_robust(type(self._broker), broker=self._broker, **arguments)
                    await lane.roll_back()
        finally:
            await lane.close()
