"""One link that is made again whenever it breaks.

A worker has three: the claimer's, the settler's, and in another thread the heartbeat's. Calls on one link wait for each
other. Any error makes the link suspect, so it is dropped; who called decides whether to call again after `pause`.
"""

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable
from time import monotonic
from typing import TypeVar

from outbox_core.events import ConnectionLost, ConnectionRestored, Observer
from outbox_core.store import Link, Store

T = TypeVar("T")
logger = logging.getLogger("outbox")

FIRST_PAUSE = 0.1
LONGEST_PAUSE = 1.0


class LinkDown(Exception):
    """The call failed and its link is gone; the cause is attached. *sent*: it may have had its effect nevertheless."""

    def __init__(self, reason: str, *, sent: bool) -> None:
        super().__init__(reason)
        self.sent = sent


class LinkKeeper:
    """Calls functions with a working link."""

    def __init__(self, role: str, store: Store, observe: Observer) -> None:
        self._role = role
        self._store = store
        self._observe = observe
        self._lock = asyncio.Lock()
        self._link: Link | None = None
        self._down_since: float | None = None
        self._pause = FIRST_PAUSE
        self._closed = False
        self._closing: set[asyncio.Task[None]] = set()
        self.last_success = monotonic()

    @property
    def down_for(self) -> float:
        """Seconds for which no call has succeeded since one failed."""
        return 0.0 if self._down_since is None else monotonic() - self._down_since

    async def connect(self) -> None:
        """Make the first link; raises what the store raises, so that a start fails loudly."""
        self._link = await self._store.connect()

    async def call(self, use: Callable[[Link], Awaitable[T]]) -> T:
        """The result of *use*, or `LinkDown` after the link was closed."""
        async with self._lock:
            if self._closed:
                raise LinkDown("the worker has stopped", sent=False)
            sent = False
            try:
                if self._link is None:
                    self._link = await self._store.connect()
                sent = True
                result = await use(self._link)
            except Exception as error:
                self._drop(error)
                raise LinkDown(str(error), sent=sent) from error
            except BaseException:  # cancelled half-way: nobody knows what the connection is waiting for
                self._drop(None)
                raise
        self._works()
        return result

    async def ready(self) -> None:
        """Connect if there is no link. Raises `LinkDown`."""
        if self._link is None:
            await self.call(_do_nothing)

    async def release(self) -> None:
        """Close the link until the next call."""
        async with self._lock:
            self._drop(None)

    async def pause(self) -> None:
        """Wait before calling again: 0.1 s, doubled up to 1 s, with jitter so that a fleet does not return as one."""
        await asyncio.sleep(self._pause * random.uniform(0.5, 1.0))  # noqa: S311  no secret
        self._pause = min(self._pause * 2, LONGEST_PAUSE)

    async def close(self) -> None:
        """Close the link for good."""
        self._closed = True
        self._drop(None)
        await asyncio.gather(*self._closing)

    def _drop(self, error: Exception | None) -> None:
        """Close the link in the background: a dead one takes its time, which a new one need not wait for."""
        link, self._link = self._link, None
        if error is not None and self._down_since is None:
            self._down_since = monotonic()
            logger.warning("lost the %s connection to %s (%r); connecting again", self._role, self._store.name, error)
            self._observe(ConnectionLost(self._role, error))
        if link is not None:
            closing = asyncio.create_task(link.close())
            self._closing.add(closing)
            closing.add_done_callback(self._closing.discard)

    def _works(self) -> None:
        self.last_success = monotonic()
        if self._down_since is None:
            return
        seconds = self.last_success - self._down_since
        self._down_since, self._pause = None, FIRST_PAUSE
        logger.info("the %s connection to %s works again after %.1f s", self._role, self._store.name, seconds)
        self._observe(ConnectionRestored(self._role, seconds))


async def _do_nothing(link: Link) -> None:
    pass
