"""A handful of messages of every kind, their handler, and a supervisor that starts a process when the last one has ended."""

import asyncio
import logging
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import chain

import pytest

from outbox_core.envelope import compose
from outbox_core.memory import MemoryStore
from outbox_core.message import Delivery
from outbox_core.options import ConsumerOptions
from outbox_core.retry import ConstantRetry
from outbox_core.slots import Consumer
from outbox_core.waiting import within
from outbox_core.worker import Worker
from tests.simulation.database import Chooser, Database, Fault, Process, ProcessStore, owner, owning_task
from tests.simulation.history import History, Run
from tests.simulation.loop import BEGINNING, virtual_time

LEASE = 4.0  # seconds; a silent extension leaves time for another one
MOST_ATTEMPTS = 3
PATIENCE = 100.0  # seconds until everything is handled
NEVER = 1_000

ORDER = {"a": ["a1", "a2", "a3 fails once", "a4"], "b": ["b1", "b2 never works", "b3"]}
FREE = ["1", "2", "3 fails once", "4 is slow", "5 never works"]
LATE = ["6", "7"]  # published when the worker sleeps
FAILS = {"3 fails once": 1, "a3 fails once": 1, "5 never works": NEVER, "b2 never works": NEVER}
SECONDS = {"4 is slow": 2.5 * LEASE}  # of a handler; others take hundredths


@dataclass(kw_only=True)
class Report:
    """What came of one simulation. `wrongs`: what DESIGN §1 does not allow."""

    calls: list[str]
    faults: list[tuple[int, str, Fault]]
    history: History
    starts: int
    wrongs: list[str]

    def __str__(self) -> str:
        return "\n".join([*self.wrongs, f"faults: {self.faults}", *map(str, self.history.runs)])


class Simulation:
    """*fleet*: how many processes there are at once."""

    def __init__(self, choose: Chooser, *, fleet: int) -> None:
        loop = asyncio.get_running_loop()
        loop.set_task_factory(owning_task)
        self.time = loop.time
        beginning = datetime(2030, 1, 1, tzinfo=UTC)
        self.store = MemoryStore(lambda: beginning + timedelta(seconds=loop.time() - BEGINNING))
        self.database = Database(self.store, choose)
        self.history = History()
        self.fleet = fleet
        self.starts = 0
        self.errors: list[str] = []  # of the engine's own
        loop.set_exception_handler(lambda loop, context: self.errors.append(f"{context['message']}: {context}"))

    async def run(self) -> Report:
        for key, names in ORDER.items():
            await self._publish(names, key)
        await self._publish(FREE, None)
        late = asyncio.create_task(self._publish_late())
        handled = asyncio.create_task(self._handled(late))
        in_time = await within(PATIENCE, asyncio.gather(*(self._supervise(handled) for _ in range(self.fleet))))
        wrongs = [*self._wrongs(), *([] if in_time else [f"not all was handled within {PATIENCE:g} seconds"])]
        return Report(
            calls=self.database.calls,
            faults=self.database.faults,
            history=self.history,
            starts=self.starts,
            wrongs=wrongs,
        )

    def _wrongs(self) -> Iterator[str]:
        yield from self.errors
        yield from self.database.misused
        yield from self.history.wrongs(order=ORDER, fails=FAILS, most_attempts=MOST_ATTEMPTS)
        dead = sorted(letter.message.payload.decode() for letter in self.store.dead_letters)
        if dead != sorted(name for name, fails in FAILS.items() if fails == NEVER):
            yield f"dead are {dead}"
        for name in [*FREE, *LATE, *chain(*ORDER.values())]:
            if name not in dead and not self.history.ended(name, "done"):
                yield f"{name} was never done"

    # Publishing

    async def _publish(self, names: Sequence[str], key: str | None) -> None:
        await self.store.insert([compose(name, "orders", key=key) for name in names], None)

    async def _publish_late(self) -> None:
        await asyncio.sleep(2.0)
        await self._publish(LATE, None)

    async def _handled(self, late: asyncio.Task[None]) -> None:
        await late
        while self.store._rows:  # noqa: ASYNC110  the store tells nobody
            await asyncio.sleep(0.1)

    # Processes

    async def _supervise(self, handled: asyncio.Task[None]) -> None:
        """Start one process after the other until everything is handled. The last one stops in order."""
        while not handled.done():
            self.starts += 1
            process = Process(self.starts)
            life = asyncio.create_task(self._live(process))
            died = asyncio.create_task(process.dead.wait())
            await asyncio.wait([handled, life, died], return_when=asyncio.FIRST_COMPLETED)
            process.told_to_stop.set()
            await asyncio.wait([life, died], return_when=asyncio.FIRST_COMPLETED)
            died.cancel()
            if process.dead.is_set():
                self._mark_killed(process)
            else:
                with suppress(ConnectionError, TimeoutError):  # it could not begin, and has said so
                    await life
                self.errors += [f"left behind: {task}" for task in process.tasks]
            await asyncio.sleep(0.5)

    async def _live(self, process: Process) -> None:
        owner.set(process)
        process.own(asyncio.current_task())  # type: ignore[arg-type]  # there is one
        worker = Worker(ProcessStore(self.database, process), stuck_timeout=None)  # type: ignore[arg-type]  # what it uses
        await worker.start()
        worker.add(self._consumer(process))
        await process.told_to_stop.wait()
        await worker.stop(timeout=process.patience)

    def _mark_killed(self, process: Process) -> None:
        for run in self.history.runs:
            if run.process is process and run.end == "running":
                run.end, run.ended = "killed", min(run.ended, self.time())

    # Handling

    def _consumer(self, process: Process) -> Consumer:
        async def handle(deliveries: Sequence[Delivery]) -> None:
            (delivery,) = deliveries
            name = delivery.payload.decode()
            run = Run(name, delivery.key, process, delivery, self.time())
            self.history.runs.append(run)
            await self._handle(run)

        options = ConsumerOptions(
            queues=("orders",),
            max_workers=3,
            lease_ttl_seconds=LEASE,
            retry_strategy=ConstantRetry(delay_seconds=0.5, max_attempts=MOST_ATTEMPTS),
        )
        return Consumer(options, handle)

    async def _handle(self, run: Run) -> None:
        failed_before = len(self.history.ended(run.name, "failed"))
        try:
            await asyncio.sleep(SECONDS.get(run.name, 0.03))
        except asyncio.CancelledError:
            run.end, run.ended = "killed" if run.process.dead.is_set() else "cut", self.time()
            raise
        run.end, run.ended = "done", self.time()
        if failed_before < FAILS.get(run.name, 0):
            run.end = "failed"
            raise ValueError(run.name)


def simulate(choose: Chooser, *, seed: int = 0, fleet: int = 1) -> Report:
    """One simulation, the same for the same arguments."""
    random.seed(seed)
    with virtual_time() as runner:
        return runner.run(_simulate(choose, fleet))


async def _simulate(choose: Chooser, fleet: int) -> Report:
    simulation = Simulation(choose, fleet=fleet)
    with errors_in_log(simulation.errors):
        return await simulation.run()


@contextmanager
def errors_in_log(errors: list[str]) -> Iterator[None]:
    """What the engine logs with a traceback is an error of its own; the rest are faults, well told."""

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if record.exc_info:
                errors.append(f"{record.getMessage()}: {record.exc_info[1]!r}")

    logger, handler = logging.getLogger("outbox"), Handler(logging.ERROR)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(logger, "propagate", False)
        logger.addHandler(handler)
        try:
            yield
        finally:
            logger.removeHandler(handler)
