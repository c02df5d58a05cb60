"""How a suspect comes to run alone in its process (docs/decisions/0003-who-is-blamed.md)."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, asynccontextmanager, contextmanager
from functools import partial
from typing import TypeAlias

from outbox_core.waiting import within

Trust: TypeAlias = Callable[[], AbstractContextManager[None]]


class Isolation:
    """Lets a suspect, whose last owner went away without a word, run alone in the process.

    If it takes the process down, nobody else is to blame. It waits for the others at most *patience* seconds, and once it
    runs it holds them and the next suspect up no longer than that: what has run so long without killing anybody is no killer.
    """

    def __init__(self, patience: float = 30.0) -> None:
        self._patience = patience
        self._turn = asyncio.Lock()
        self._gate = asyncio.Event()
        self._gate.set()
        self.running = 0
        self._idle: asyncio.Event | None = None  # while a suspect waits for it

    @property
    def closed(self) -> bool:
        """Whether a suspect keeps the others waiting."""
        return not self._gate.is_set()

    async def opened(self) -> None:
        while not self._gate.is_set():
            await self._gate.wait()

    def enter(self) -> None:
        """Count one more that runs. While it is closed, only the suspect does."""
        self.running += 1

    def leave(self) -> None:
        self.running -= 1
        if self._idle is not None and not self.running:
            self._idle.set()

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[Trust]:
        """Meanwhile no other suspect begins; everybody else goes on. The handler is run within the trust that it gives."""
        await self._turn.acquire()
        with ExitStack() as turn:
            turn.callback(self._turn.release)
            yield partial(self._trusted, turn)

    @asynccontextmanager
    async def alone(self) -> AsyncIterator[Trust]:
        """Meanwhile nothing else runs. The handler is run within the trust that it gives."""
        await self._turn.acquire()
        with ExitStack() as turn:  # closed by whatever comes first: the end, or the end of the patience
            turn.callback(self._turn.release)
            turn.callback(self._gate.set)
            self._gate.clear()
            await within(self._patience, self._wait_idle())
            self.enter()
            turn.callback(self.leave)
            yield partial(self._trusted, turn)

    async def _wait_idle(self) -> None:
        if self.running:
            self._idle = asyncio.Event()
            try:
                await self._idle.wait()
            finally:
                self._idle = None

    @contextmanager
    def _trusted(self, turn: ExitStack) -> Iterator[None]:
        """End *turn* when the patience is at its end. It begins now, for until its start is written a suspect waits."""
        trust = asyncio.get_running_loop().call_later(self._patience, turn.close)
        try:
            yield
        finally:
            trust.cancel()
