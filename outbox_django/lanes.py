"""Where handlers run: a lane is one thread with its own database connections, and handles one delivery at a time.

Django keeps a connection a thread. Left alone, FastStream runs each synchronous handler and dependency in any thread, so an
`atomic()` opened in one is not there in the next; and asynchronous ORM calls all share one thread for the whole process. In
a lane, everything synchronous that belongs to a delivery runs in the same thread: the handler, its dependencies, what
`sync_to_async` wraps, which is what Django's asynchronous ORM does, and what is published.

A lane looks after its connections itself: they outlive a message, are checked before each, and are replaced when they are
old, whatever `CONN_MAX_AGE` says for web requests.
"""

import asyncio
import logging
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator, MutableMapping
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import AbstractContextManager, asynccontextmanager, contextmanager
from functools import partial, wraps
from time import monotonic
from typing import Any, NoReturn, ParamSpec, TypeVar, cast

from asgiref.sync import SyncToAsync, ThreadSensitiveContext, sync_to_async
from django.db import connections
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.backends.signals import connection_created

from outbox_core.waiting import within

P = ParamSpec("P")
T = TypeVar("T")
logger = logging.getLogger("outbox")

CLOSE_TIMEOUT = 2.0  # seconds for the connections of an idle lane to be closed

_here = threading.local()  # .lane: the lane whose thread this is


class Lane:
    """One thread, for all that asgiref calls thread-sensitive while the lane is entered."""

    def __init__(self, conn_max_age: float | None) -> None:
        self.conn_max_age = conn_max_age
        self.connections: list[BaseDatabaseWrapper] = []  # those that its thread has opened
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="outbox-lane", initializer=self._move_in)

    def _move_in(self) -> None:
        _here.lane = self

    @contextmanager
    def entered(self) -> Iterator["Lane"]:
        """Within, thread-sensitive code of the current task runs in this lane's thread.

        A task that it starts inherits that. If it outlives this, what it does there is refused: by then the thread, and
        the transaction that is open in it, may be another delivery's.
        """
        stay = _Stay(self)
        executors = cast("MutableMapping[ThreadSensitiveContext, Executor]", SyncToAsync.context_to_thread_executor)
        executors[stay] = self._thread  # asgiref would make one when it is first needed, without the initializer
        token = SyncToAsync.thread_sensitive_context.set(stay)
        try:
            yield self
        finally:
            SyncToAsync.thread_sensitive_context.reset(token)
            stay.over = True
            executors[stay] = _REFUSING

    async def check(self) -> None:
        """Before a delivery: have its connections checked at their next use, and close those that are too old or broken.

        The thread is entered for the latter only: a hop for each message would cost as much as a small query.
        """
        now = monotonic()
        for connection in self.connections:
            connection.health_check_done = False  # type: ignore[attr-defined]  # missing from the stubs
        if any(one.errors_occurred or (one.close_at is not None and now >= one.close_at) for one in self.connections):
            await in_thread(_close_unusable)

    async def roll_back(self) -> None:
        """End what a delivery has left open, which nobody will commit and which would block others; as a rule, nothing."""
        if any(map(_is_left_open, self.connections)):
            await in_thread(_roll_back_left_open)

    async def close(self) -> None:
        """Close its connections, if its thread is not stuck in a handler, and let the thread end."""
        closing = asyncio.get_running_loop().run_in_executor(self._thread, connections.close_all)
        await within(CLOSE_TIMEOUT, closing)
        self._thread.shutdown(wait=False)


class _Stay(ThreadSensitiveContext):
    """One delivery's time in a lane."""

    def __init__(self, lane: Lane) -> None:
        super().__init__()
        self.lane = lane
        self.over = False


class _Refusing(Executor):
    """Where a task ends up that has outlived its delivery."""

    def submit(self, *args: Any, **kwargs: Any) -> Any:
        raise RuntimeError(
            "this task has outlived the delivery whose handler started it, and with it the database connection; await it in "
            "the handler, or publish a message for what it does"
        )


_REFUSING = _Refusing()


class Lanes:
    """The lanes of one worker process, made when they are needed; the one used last is used next."""

    def __init__(self, size: int, *, conn_max_age: float | None) -> None:
        self.size = size
        self.conn_max_age = conn_max_age
        self._idle: list[Lane] = []
        self._count = 0
        self._waiting: deque[asyncio.Future[None]] = deque()

    @asynccontextmanager
    async def __call__(self) -> AsyncIterator[Lane]:
        """A lane for one delivery; waits until one is free."""
        lane = await self._take()
        try:
            with lane.entered():
                await lane.check()
                try:
                    yield lane
                finally:
                    await lane.roll_back()
        finally:
            self._idle.append(lane)
            self._wake_one()

    async def _take(self) -> Lane:
        while not self._idle and self._count >= self.size:
            turn = asyncio.get_running_loop().create_future()
            self._waiting.append(turn)
            try:
                await turn
            except asyncio.CancelledError:
                if turn.done() and not turn.cancelled():
                    self._wake_one()  # this turn is somebody else's now
                raise
            finally:
                if turn in self._waiting:
                    self._waiting.remove(turn)
        if self._idle:
            return self._idle.pop()
        self._count += 1
        return Lane(self.conn_max_age)

    def _wake_one(self) -> None:
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(None)
                return

    @property
    def busy(self) -> int:
        """Lanes in which something runs; after a stop, handlers that nothing can stop."""
        return self._count - len(self._idle)

    async def close(self) -> None:
        """Close the idle lanes. A busy one is left behind: a thread cannot be interrupted."""
        idle, self._idle = self._idle, []
        self._count -= len(idle)
        await asyncio.gather(*(lane.close() for lane in idle))


def current_lane() -> Lane | None:
    """The lane that the current task is in."""
    stay = SyncToAsync.thread_sensitive_context.get(None)
    return stay.lane if isinstance(stay, _Stay) and not stay.over else None


# Connections


def _take_over(*, connection: BaseDatabaseWrapper, **_: object) -> None:
    """A lane's connection lives as long as the lane says, and is checked before a message uses it."""
    lane: Lane | None = getattr(_here, "lane", None)
    if lane is None:
        return
    if connection not in lane.connections:
        lane.connections.append(connection)
    if not connection.settings_dict["OPTIONS"].get("pool"):  # a pool looks after its own
        connection.close_at = None if lane.conn_max_age is None else monotonic() + lane.conn_max_age
        connection.health_check_enabled = True  # type: ignore[attr-defined]  # missing from the stubs
    if connection.vendor == "sqlite" and getattr(connection, "transaction_mode", "") is None:
        # A transaction that reads first and writes later fails at once if somebody has written in between.
        connection.transaction_mode = "IMMEDIATE"  # type: ignore[attr-defined]  # SQLite's alone


connection_created.connect(_take_over, dispatch_uid="outbox_django.lanes")


def _close_unusable() -> None:
    for connection in connections.all(initialized_only=True):
        connection.close_if_unusable_or_obsolete()


def _roll_back_left_open() -> None:
    for connection in connections.all(initialized_only=True):
        if _is_left_open(connection):
            logger.error("a handler left a transaction open on %r; it is rolled back", connection.alias)
            connection.in_atomic_block = False  # or Django would keep the connection for the block's end
            connection.close()


def _is_left_open(connection: BaseDatabaseWrapper) -> bool:
    if connection.connection is None:
        return False
    return connection.in_atomic_block or connection.autocommit != connection.settings_dict["AUTOCOMMIT"]


async def in_thread(call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """*call* in the thread that the current task's database work belongs to: its lane's, if it is in one.

    A thread cannot be interrupted, so a cancellation is held back until *call* has ended: before that, its message must not
    be given back, nor its lane to somebody else.
    """
    running = _start_in_thread(call, *args, **kwargs)
    if (cancelled := await _end_of(running)) is not None:
        running.exception()  # seen, so that asyncio does not complain about it
        raise cancelled
    return running.result()()


async def in_thread_to_the_end(call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """The same for a handler: one that was to be cut and has come to a good end nevertheless is done."""
    running = _start_in_thread(call, *args, **kwargs)
    await _end_of(running)
    return running.result()()


def _start_in_thread(call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> asyncio.Future[Callable[[], T]]:
    return asyncio.ensure_future(sync_to_async(_caught(call), thread_sensitive=True)(*args, **kwargs))


def _caught(call: Callable[P, T]) -> Callable[P, Callable[[], T]]:
    """*call*, answering with a function that returns or raises what it did.

    A future cannot take a `StopIteration`, and asyncio ends the whole loop for a `SystemExit` that it finds in a task.
    """

    @wraps(call)
    def caught(*args: P.args, **kwargs: P.kwargs) -> Callable[[], T]:
        try:
            result = call(*args, **kwargs)
        except BaseException as error:  # whatever it is, it is raised where the call is awaited
            return partial(_raise, error)
        return lambda: result

    return caught


def _raise(error: BaseException) -> NoReturn:
    if isinstance(error, StopIteration):
        raise RuntimeError("StopIteration was raised") from error
    raise error


async def thread_is_free() -> None:
    """Wait for what the current lane's thread still does, such as a query whose `await` was cancelled."""
    if current_lane() is not None:
        await in_thread(lambda: None)


async def _end_of(running: asyncio.Future[Any]) -> asyncio.CancelledError | None:
    """Wait for it, and for nothing less; the cancellation that came meanwhile."""
    cancelled = None
    while not running.done():
        try:
            await asyncio.wait([running])
        except asyncio.CancelledError as error:
            cancelled = error
    return cancelled


@asynccontextmanager
async def in_threads(manager: AbstractContextManager[T]) -> AsyncIterator[T]:
    """Both ends of *manager* where `in_thread` runs things; what has begun is ended, whatever is cancelled meanwhile."""
    entered: list[T] = []
    try:
        await in_thread(lambda: entered.append(manager.__enter__()))
        yield entered[0]
    except BaseException as error:
        if not entered or not await in_thread(manager.__exit__, type(error), error, error.__traceback__):
            raise
    else:
        await in_thread(manager.__exit__, None, None, None)
