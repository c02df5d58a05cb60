"""A network of the test's own between workers and PostgreSQL, which can lose answers and fall silent.

    workers --TCP--> proxy --the server's socket--> PostgreSQL

It runs on an event loop in a thread. A connection that has fallen silent stays so, and is never closed; new ones work.
"""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Thread


class Proxy:
    """`port` on 127.0.0.1 is PostgreSQL."""

    def __init__(self, socket: str) -> None:
        self._socket = socket
        self._pipes: set[_Pipe] = set()
        self._loop = asyncio.new_event_loop()
        self.port = 0

    @classmethod
    @contextmanager
    def running(cls, socket: str) -> "Iterator[Proxy]":
        """*socket*: the path of PostgreSQL's."""
        proxy = cls(socket)
        thread = Thread(target=proxy._loop.run_forever, daemon=True)
        thread.start()
        listening = asyncio.run_coroutine_threadsafe(proxy._listen(), proxy._loop).result(5)
        try:
            yield proxy
        finally:
            asyncio.run_coroutine_threadsafe(proxy._close(listening), proxy._loop).result(5)
            proxy._loop.call_soon_threadsafe(proxy._loop.stop)
            thread.join(5)
            proxy._loop.close()

    def fall_silent(self) -> int:
        """Nothing arrives any more on the connections of this moment, and nobody is told; how many there were."""
        return self._each(lambda pipe: pipe.fall_silent())

    def swallow_answers(self) -> int:
        """What was and will be asked on the connections of this moment is done, but not answered; how many there were."""
        return self._each(lambda pipe: pipe.swallow_answers())

    def cut(self) -> int:
        """Abort all connections; how many there were."""
        return self._each(lambda pipe: pipe.cut())

    def _each(self, do: "Callable[[_Pipe], None]") -> int:
        async def done() -> int:
            pipes = [*self._pipes]
            for pipe in pipes:
                do(pipe)
            return len(pipes)

        return asyncio.run_coroutine_threadsafe(done(), self._loop).result(5)

    async def _listen(self) -> asyncio.Server:
        server = await asyncio.start_server(self._connected, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        return server

    async def _close(self, listening: asyncio.Server) -> None:
        listening.close()
        for pipe in [*self._pipes]:
            pipe.cut()
        if tasks := asyncio.all_tasks() - {asyncio.current_task()}:
            await asyncio.wait(tasks, timeout=2)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            there = await asyncio.open_unix_connection(self._socket)
        except OSError:
            writer.transport.abort()
            return
        pipe = _Pipe(writer, there[1])
        self._pipes.add(pipe)
        try:
            await asyncio.gather(pipe.ask(reader), pipe.answer(there[0]))
        finally:
            self._pipes.discard(pipe)
            pipe.cut()


class _Pipe:
    """One connection through the proxy."""

    def __init__(self, client: asyncio.StreamWriter, server: asyncio.StreamWriter) -> None:
        self._client = client
        self._server = server
        self._silent = False
        self._swallows = False

    def fall_silent(self) -> None:
        self._silent = True

    def swallow_answers(self) -> None:
        self._swallows = True

    def cut(self) -> None:
        self._client.transport.abort()
        self._server.transport.abort()

    async def ask(self, reader: asyncio.StreamReader) -> None:
        await self._carry(reader, self._server, lambda: self._silent)

    async def answer(self, reader: asyncio.StreamReader) -> None:
        await self._carry(reader, self._client, lambda: self._silent or self._swallows)

    async def _carry(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, lost: "Callable[[], bool]"
    ) -> None:
        try:
            while data := await reader.read(1 << 16):
                if not lost():
                    writer.write(data)
                    await writer.drain()
        except OSError:
            pass
        if not self._silent:
            self.cut()
