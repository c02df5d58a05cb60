"""Where handlers run: a lane is one thread with its own database connections, and handles one delivery at a time.

Django keeps a connection a thread. Left alone, FastStream runs each synchronous handler and dependency in any thread, so an
`atomic()` opened in one is not there in the next; and asynchronous ORM calls all share one thread for the whole process. In
a lane, everything synchronous that belongs to a delivery runs in the same thread: the handler, its dependencies, what
`sync_to_async` wraps, which is what Django's asynchronous ORM does, and what is published.

A lane looks after its connections itself: they outlive a message, are checked before each, and are replaced when they are
old, whatever `CONN_MAX_AGE` says for web requests.
"""

import asyncio
import threading
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from contextvars import Token
from functools import wraps
from time import monotonic
from typing import Any, ParamSpec, TypeVar

from asgiref.sync import SyncToAsync, ThreadSensitiveContext, sync_to_async
from django.db import connections
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.backends.signals import connection_created
from fast_depends import Provider
from fast_depends.core import CallModel
from fast_depends.utils import is_async_gen_callable, is_coroutine_callable, is_gen_callable

from outbox_core.waiting import within

P = ParamSpec("P")
T = TypeVar("T")

CLOSE_TIMEOUT = 2.0  # seconds for the connections of an idle lane to be closed

_here = threading.local()  # .lane: the lane whose thread this is


class Lane(ThreadSensitiveContext):
    """One thread, for all that asgiref calls thread-sensitive while the lane is entered."""

    def __init__(self, conn_max_age: float | None) -> None:
        super().__init__()
        self.conn_max_age = conn_max_age
        self.has_connections = False
        self.checked = False
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="outbox-lane", initializer=self._move_in)
        # asgiref would make one when it is first needed, without the initializer.
        SyncToAsync.context_to_thread_executor[self] = self._thread

    def _move_in(self) -> None:
        _here.lane = self

    @contextmanager
    def entered(self) -> Iterator["Lane"]:
        """Within, thread-sensitive code of the current task runs in this lane's thread."""
        token: Token[ThreadSensitiveContext] = SyncToAsync.thread_sensitive_context.set(self)
        try:
            yield self
        finally:
            SyncToAsync.thread_sensitive_context.reset(token)

    async def check(self) -> None:
        """Have the connections looked after before asynchronous code uses them; nothing to do without any."""
        if self.has_connections and not self.checked:
            await in_thread(check_connections)

    async def close(self) -> None:
        """Close its connections, if its thread is not stuck in a handler, and let the thread end."""
        closing = asyncio.get_running_loop().run_in_executor(self._thread, connections.close_all)
        await within(CLOSE_TIMEOUT, closing)
        self._thread.shutdown(wait=False)


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
        lane.checked = False
        try:
            with lane.entered():
                yield lane
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
    context = SyncToAsync.thread_sensitive_context.get(None)
    return context if isinstance(context, Lane) else None


# Connections


def _take_over(*, connection: BaseDatabaseWrapper, **_: object) -> None:
    """A lane's connection lives as long as the lane says, and is checked before a message uses it."""
    lane: Lane | None = getattr(_here, "lane", None)
    if lane is None:
        return
    lane.has_connections = True
    if not connection.settings_dict["OPTIONS"].get("pool"):  # a pool looks after its own
        connection.close_at = None if lane.conn_max_age is None else monotonic() + lane.conn_max_age
        connection.health_check_enabled = True  # type: ignore[attr-defined]  # missing from the stubs
    if connection.vendor == "sqlite" and getattr(connection, "transaction_mode", "") is None:
        # A transaction that reads first and writes later fails at once if somebody has written in between.
        connection.transaction_mode = "IMMEDIATE"  # type: ignore[attr-defined]  # SQLite's alone


connection_created.connect(_take_over, dispatch_uid="outbox_django.lanes")


def check_connections() -> None:
    """In a lane's thread, once a delivery: close what is too old or broken, and have the rest checked at its next use."""
    lane: Lane | None = getattr(_here, "lane", None)
    if lane is None or lane.checked:
        return
    lane.checked = True
    for connection in connections.all(initialized_only=True):
        if not connection.in_atomic_block:
            connection.close_if_unusable_or_obsolete()


async def in_thread(call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """*call* in the thread that the current task's database work belongs to: its lane's, if it is in one."""
    return await sync_to_async(_checked(call), thread_sensitive=True)(*args, **kwargs)


def _checked(call: Callable[P, T]) -> Callable[P, T]:
    @wraps(call)
    def checked(*args: P.args, **kwargs: P.kwargs) -> T:
        check_connections()
        return call(*args, **kwargs)

    return checked


async def _check_lane() -> None:
    lane = current_lane()
    if lane is not None:
        await lane.check()


# Handlers and dependencies


def in_lane(call: Callable[..., Any]) -> Callable[..., Any]:
    """*call*, a handler or a dependency, as something asynchronous whose synchronous work is done in its delivery's lane."""
    if is_async_gen_callable(call):
        return _async_generator(call)
    if is_coroutine_callable(call):
        return _coroutine(call)
    if is_gen_callable(call):
        return _generator(call)
    return _function(call)


def _coroutine(call: Callable[..., Awaitable[Any]]) -> Callable[..., Any]:
    @wraps(call)
    async def checked(*args: Any, **kwargs: Any) -> Any:
        await _check_lane()
        return await call(*args, **kwargs)

    return checked


def _async_generator(call: Callable[..., AsyncIterator[Any]]) -> Callable[..., Any]:
    @wraps(call)
    async def checked(*args: Any, **kwargs: Any) -> AsyncIterator[Any]:
        await _check_lane()
        async with asynccontextmanager(call)(*args, **kwargs) as value:
            yield value

    return checked


def _function(call: Callable[..., Any]) -> Callable[..., Any]:
    in_its_thread = sync_to_async(_checked(call), thread_sensitive=True)

    @wraps(call)
    async def handler(*args: Any, **kwargs: Any) -> Any:
        return await in_its_thread(*args, **kwargs)

    return handler


def _generator(call: Callable[..., Iterator[Any]]) -> Callable[..., Any]:
    """Both halves run in the lane, so that an `atomic()` around the yield is around the handler too."""

    @wraps(call)
    async def dependency(*args: Any, **kwargs: Any) -> AsyncIterator[Any]:
        manager = contextmanager(call)(*args, **kwargs)
        value = await in_thread(manager.__enter__)
        try:
            yield value
        except BaseException as error:
            if not await in_thread(manager.__exit__, type(error), error, error.__traceback__):
                raise
        else:
            await in_thread(manager.__exit__, None, None, None)

    return dependency


class LaneProvider(Provider):
    """FastDepends' provider, with every dependency in its delivery's lane."""

    def add_dependant(self, dependant: CallModel) -> Any:
        """Register it under the user's own function, so that overrides find it, and call ours."""
        key = super().add_dependant(dependant)
        dependant.call = in_lane(dependant.call)
        dependant.is_async = True
        return key

    def override(self, original: Callable[..., Any], override: Callable[..., Any]) -> None:
        """FastDepends' own, for tests; what takes a dependency's place runs in the lane as well."""
        super().override(original, in_lane(override))
