"""A TCP proxy before PostgreSQL that strikes when a handler's transaction has come to a point of its end.

It knows the transaction by the handler's INSERT, and the points by what goes by: our DELETE, the COMMIT, its answer. What it
does there is the test's: kill the client's process, say. Then the connection is cut on both sides, as a rule.
"""

import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from threading import Thread
from typing import Literal, TypeAlias

from sqlalchemy import URL

Point: TypeAlias = Literal["before the delete", "before the commit", "after the commit"]
POINTS: tuple[Point, ...] = ("before the delete", "before the commit", "after the commit")

MARK = b"INSERT INTO effects"


@dataclass
class Cutting:
    """`strike` is called the next `times` times; `struck`: how often it was. `cuts`: whether the connection ends there."""

    server: URL
    point: Point
    times: int = 1
    strike: Callable[[], None] = lambda: None
    cuts: bool = True
    struck: int = 0
    _sockets: list[socket.socket] = field(default_factory=list)

    @contextmanager
    def serving(self) -> Iterator[URL]:
        """The URL that leads through it."""
        with socket.create_server(("127.0.0.1", 0)) as listener:
            Thread(target=self._accept, args=[listener], daemon=True).start()
            try:
                host, port = listener.getsockname()
                yield self.server.set(host=host, port=port).difference_update_query(["host", "port"])
            finally:
                for one in self._sockets:
                    _cut(one)
                _cut(listener)

    def _accept(self, listener: socket.socket) -> None:
        with suppress(OSError):  # the end
            while True:
                client, _ = listener.accept()
                server = self._connect()
                self._sockets += [client, server]
                connection = _Connection(self, client, server)
                Thread(target=connection.ask, daemon=True).start()
                Thread(target=connection.answer, daemon=True).start()

    def _connect(self) -> socket.socket:
        """As the URL says, through a file if it names a directory."""
        folder = str(self.server.query.get("host", ""))
        port = self.server.port or 5432
        if not folder.startswith("/"):
            return socket.create_connection((self.server.host or "127.0.0.1", port))
        server = socket.socket(socket.AF_UNIX)
        server.connect(f"{folder}/.s.PGSQL.{port}")
        return server

    def take(self) -> bool:
        """Strike, unless it has done so often enough; whether that is the end of the connection."""
        if self.struck >= self.times:
            return False
        self.struck += 1
        self.strike()
        return self.cuts


class _Connection:
    """One client's."""

    def __init__(self, proxy: Cutting, client: socket.socket, server: socket.socket) -> None:
        self._proxy = proxy
        self._client = client
        self._server = server
        self._is_handlers = False
        self._committing = False

    def ask(self) -> None:
        self._pump(self._client, self._server, self._is_last_question)

    def answer(self) -> None:
        self._pump(self._server, self._client, self._is_last_answer)

    def _pump(self, source: socket.socket, target: socket.socket, is_last: Callable[[bytes], bool]) -> None:
        with suppress(OSError):  # the other side has gone
            while (data := source.recv(65_536)) and not is_last(data):
                target.sendall(data)
        _cut(self._client)
        _cut(self._server)

    def _is_last_question(self, data: bytes) -> bool:
        self._is_handlers = self._is_handlers or MARK in data
        if not self._is_handlers:
            return False
        match self._proxy.point:
            case "before the delete":
                return b"DELETE FROM" in data and self._proxy.take()
            case "before the commit":
                return b"COMMIT" in data and self._proxy.take()
            case "after the commit":
                self._committing = self._committing or b"COMMIT" in data
        return False

    def _is_last_answer(self, data: bytes) -> bool:
        """The answer of a COMMIT, or what is left of an earlier one; both are read only after the question was sent."""
        return self._committing and b"COMMIT" in data and self._proxy.take()


def _cut(one: socket.socket) -> None:
    with suppress(OSError):
        one.shutdown(socket.SHUT_RDWR)
    one.close()
