"""A database that one process after another works on, and what may go wrong with each call to it.

refused     the call raises and has done nothing
lost        it has done its work and then raises, as if the answer had been lost
silent      nothing is done or answered until the caller's deadline
late        the call raises at once and does its work seconds later, when the caller has gone on
unheard     it has done its work, and nothing is answered until the deadline
stopped     the worker is told to stop while the call is on its way (SIGTERM)
cut         the same, and it has no time for its handlers
killed      the process is dead before the call has arrived
orphaned    the process is dead once the call has done its work
"""

import asyncio
import random
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextvars import Context, ContextVar
from typing import Any, Literal, TypeAlias, TypeVar, get_args

from outbox_core.memory import MemoryListener, MemoryStore
from outbox_core.sql.store import LEAST_PATIENCE
from outbox_core.store import Difference

T = TypeVar("T")

Error: TypeAlias = Literal["refused", "lost", "late", "silent", "unheard"]
End: TypeAlias = Literal["stopped", "cut", "killed", "orphaned"]
Fault: TypeAlias = Error | End
Chooser: TypeAlias = Callable[[int, str], Fault | None]  # by the number of the call and its name

ERRORS: tuple[Fault, ...] = get_args(Error)
ENDS: tuple[Fault, ...] = get_args(End)
DEADLINE = 10.0  # seconds, as the adapters have it
LATENESS = 2.5  # seconds
TRAVEL = (0.0, 0.0005, 0.002)  # seconds that a call or its answer may take

owner: ContextVar["Process | None"] = ContextVar("owner", default=None)


class Process:
    """One life of a worker. Its tasks are known by the context in which they are made."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.tasks: set[asyncio.Task[Any]] = set()
        self.dead = asyncio.Event()
        self.told_to_stop = asyncio.Event()
        self.died_at = float("inf")
        self.patience = 30.0  # seconds for handlers at a stop

    def kill(self) -> None:
        """Nothing of it has any effect from now on."""
        self.dead.set()
        self.died_at = asyncio.get_running_loop().time()
        for task in self.tasks:
            task.cancel()

    def own(self, task: asyncio.Task[Any]) -> None:
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)


def owning_task(loop: asyncio.AbstractEventLoop, coroutine: Any, **options: Any) -> asyncio.Task[Any]:
    """A task factory for a loop on which there are processes."""
    task: asyncio.Task[Any] = asyncio.Task(coroutine, loop=loop, **options)
    process = owner.get()
    if process is not None:
        process.own(task)
    return task


class Database:
    """The store in memory behind a network."""

    def __init__(self, store: MemoryStore, choose: Chooser) -> None:
        self.store = store
        self.calls: list[str] = []
        self.faults: list[tuple[int, str, Fault]] = []
        self.misused: list[str] = []  # calls on links against the port's rules
        self._choose = choose
        self._late: list[asyncio.Task[None]] = []

    @staticmethod
    async def _do_late(call: Callable[[], Awaitable[object]]) -> None:
        await asyncio.sleep(LATENESS)
        await call()

    async def ask(self, process: Process, name: str, call: Callable[[], Awaitable[T]], patience: float) -> T:
        """The answer to one call of *process*, or what becomes of it."""
        fault = self._choose(len(self.calls), name)
        self.calls.append(name)
        if fault is not None:
            self.faults.append((len(self.calls) - 1, name, fault))
        await _travel(process)
        if fault == "killed":
            process.kill()
            await _travel(process)
        if fault in ("stopped", "cut"):
            process.patience = 0.0 if fault == "cut" else process.patience
            process.told_to_stop.set()
        if fault == "refused":
            raise ConnectionError("refused")
        if fault == "late":
            self._late.append(Context().run(asyncio.create_task, self._do_late(call)))
            raise ConnectionError("cut while it was on its way")
        if fault == "silent":
            await asyncio.sleep(patience)
            raise TimeoutError("no answer")
        answer = await call()
        if fault == "orphaned":
            process.kill()
        await _travel(process)
        if fault == "lost":
            raise ConnectionError("cut before the answer")
        if fault == "unheard":
            await asyncio.sleep(patience)
            raise TimeoutError("no answer")
        return answer


async def _travel(process: Process) -> None:
    await asyncio.sleep(random.choice(TRAVEL))
    if process.dead.is_set():
        await asyncio.Event().wait()


class ProcessStore:
    """`Store` as far as a worker of *process* uses it."""

    name = "simulated"

    def __init__(self, database: Database, process: Process) -> None:
        self._database = database
        self._process = process

    async def differences(self) -> Mapping[str, Sequence[Difference]]:
        return await self._ask("differences", self._database.store.differences)

    async def connect(self) -> "FaultyLink":
        return FaultyLink(await self._ask("connect", self._database.store.connect), self._database, self._process)

    async def listen(self, heard: Callable[[str], None]) -> MemoryListener:
        def heard_alive(payload: str) -> None:
            if not self._process.dead.is_set():
                heard(payload)

        return await self._ask("listen", lambda: self._database.store.listen(heard_alive))

    async def _ask(self, name: str, call: Callable[[], Awaitable[T]]) -> T:
        return await self._database.ask(self._process, name, call, DEADLINE)


class FaultyLink:
    """Every call of a `Link` goes through the network; closing it never fails."""

    def __init__(self, link: Any, database: Database, process: Process) -> None:
        self._link = link
        self._database = database
        self._process = process
        self._state: Literal["free", "busy", "broken"] = "free"

    def __getattr__(self, name: str) -> Callable[..., Awaitable[Any]]:
        call = getattr(self._link, name)

        def ask(*arguments: Any, **options: Any) -> Awaitable[Any]:
            patience = max(LEAST_PATIENCE, arguments[1] / 4) if name == "extend" else DEADLINE
            return self._ask(name, lambda: call(*arguments, **options), patience)

        return ask

    async def _ask(self, name: str, call: Callable[[], Awaitable[T]], patience: float) -> T:
        """One at a time, and none after an error."""
        if self._state != "free":
            self._database.misused.append(f"{name} on a link that is {self._state}")
        self._state = "busy"
        try:
            answer = await self._database.ask(self._process, name, call, patience)
        except BaseException:
            self._state = "broken"
            raise
        self._state = "free"
        return answer

    async def close(self) -> None:
        pass
