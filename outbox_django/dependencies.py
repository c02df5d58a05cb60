"""Handlers and their dependencies, each in its delivery's lane (`outbox_django.lanes`)."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any

from fast_depends import Provider
from fast_depends.core import CallModel
from fast_depends.utils import is_async_gen_callable, is_coroutine_callable, is_gen_callable

from outbox_django.lanes import in_thread_to_the_end, in_threads, thread_is_free


def in_lane(call: Callable[..., Any]) -> Callable[..., Any]:
    """*call*, a handler or a dependency, as something asynchronous whose synchronous work is done in its delivery's lane."""
    if is_async_gen_callable(call):
        return call
    if is_coroutine_callable(call):
        return _coroutine(call)
    if is_gen_callable(call):
        return _generator(call)
    return _function(call)


def _coroutine(call: Callable[..., Awaitable[Any]]) -> Callable[..., Any]:
    """asgiref leaves a thread alone when the task that waits for it is cancelled; its lane must not be given on so soon."""

    @wraps(call)
    async def coroutine(*args: Any, **kwargs: Any) -> Any:
        try:
            return await call(*args, **kwargs)
        except asyncio.CancelledError:
            await thread_is_free()
            raise

    return coroutine


def _function(call: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(call)
    async def function(*args: Any, **kwargs: Any) -> Any:
        return await in_thread_to_the_end(call, *args, **kwargs)

    return function


def _generator(call: Callable[..., Iterator[Any]]) -> Callable[..., Any]:
    """Both halves run in the lane, so that an `atomic()` around the yield is around the handler too."""

    @wraps(call)
    async def dependency(*args: Any, **kwargs: Any) -> AsyncIterator[Any]:
        manager = contextmanager(call)(*args, **kwargs)
        async with in_threads(manager) as value:
            yield value

    return dependency


def filter_in_lane(condition: Callable[..., Any]) -> Callable[..., Any]:
    """The same of a handler's `filter`. A synchronous one has been wrapped by FastStream already, to run in any thread."""
    is_faststreams = getattr(condition, "__globals__", {}).get("__name__", "").startswith("faststream.")
    return in_lane(getattr(condition, "__wrapped__", condition)) if is_faststreams else condition


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
