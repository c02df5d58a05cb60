"""An event loop in a daemon thread of its own, for what must go on while the main loop is busy or blocked."""

import asyncio
import logging
import threading
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any, TypeAlias

logger = logging.getLogger("outbox")

STOP_PATIENCE = 5.0  # seconds until a thread that does not end is left behind; a daemon keeps no process alive
HOME_INTERVAL = 1.0  # seconds between looks whether there is a main loop

Job: TypeAlias = Callable[[], Coroutine[Any, Any, Any]]


class LoopThread:
    """Runs jobs side by side until it is stopped, one of them ends, or the main loop is closed without a stop.

    Made, started and stopped on the main loop; `call` and `post` are the two ways across.
    """

    def __init__(self, name: str) -> None:
        self._jobs: tuple[Job, ...] = ()
        self._home = asyncio.get_running_loop()
        self._loop = asyncio.new_event_loop()
        self._ended = asyncio.Event()  # on the main loop
        self._stopping = asyncio.Event()  # on its own
        self._thread = threading.Thread(target=self._main, name=name, daemon=True)

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    def start(self, *jobs: Job) -> None:
        self._jobs = jobs
        self._thread.start()

    async def stop(self) -> None:
        """Cancel the jobs and wait for their end."""
        with suppress(RuntimeError):  # its loop is closed, so it has ended
            self._loop.call_soon_threadsafe(self._stopping.set)
        with suppress(TimeoutError):
            async with asyncio.timeout(STOP_PATIENCE):
                await self._ended.wait()
                self._thread.join(STOP_PATIENCE)  # it has nothing left to do

    async def call(self, job: Job) -> None:
        """From the main loop: run *job* over there and wait for its end. Does nothing once the thread has ended."""
        running = job()
        try:
            future = asyncio.run_coroutine_threadsafe(running, self._loop)
        except RuntimeError:
            running.close()
            return
        answer = asyncio.wrap_future(future)
        ended = asyncio.create_task(self._ended.wait())
        await asyncio.wait((answer, ended), return_when=asyncio.FIRST_COMPLETED)
        ended.cancel()
        if answer.done():
            answer.result()

    def post(self, call: Callable[..., object], *arguments: object) -> None:
        """From over there: have *call* called on the main loop, soon; never if that is closed."""
        with suppress(RuntimeError):
            self._home.call_soon_threadsafe(call, *arguments)

    def _main(self) -> None:
        try:
            with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
                runner.run(self._run())
        except Exception:
            logger.exception("the thread %s failed", self._thread.name)
        finally:
            self.post(self._ended.set)

    async def _run(self) -> None:
        tasks = [asyncio.create_task(job()) for job in (*self._jobs, self._stopping.wait, self._homeless)]
        ended, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for task in ended:
            task.result()

    async def _homeless(self) -> None:
        """Return once nobody can stop this thread any more."""
        while not self._home.is_closed():  # noqa: ASYNC110  nothing tells of it
            await asyncio.sleep(HOME_INTERVAL)
