"""What handlers really did: a journal in a file, which no fault of a test reaches.

    begin 4711.1 17 1 4711 8.25     run, message, the delivery it was told it is, process, moment
    end 4711.1 8.26                 the handler did what it was to do
    fail 4711.1 8.26                it raised instead
    ask 4711 8.22                   it claims, whatever there is
    claim 17 4711 8.24
    answer 4711 8.24                it knows, and has written down, what it has claimed
    publish 17 8.23                 its transaction is committed

One write for each line on a file that is opened to append: it outlives a killed process and a stopped PostgreSQL, and
processes do not wait for each other. Moments are `time.monotonic()`, which is one clock for all processes of a machine.
"""

import os
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from time import monotonic


def number_in(payload: bytes) -> int:
    """The number of a message, whether or not it can be decoded."""
    return int(payload.strip(b'{"'))


@dataclass(frozen=True, slots=True)
class Run:
    """One start of a handler.

    `delivery`: the how-manieth it was told it is. `ended`: when it had done its work, None if it never came to its end.
    `failed`: when it raised as ordered.
    """

    message: int
    pid: int
    delivery: int
    begun: float
    ended: float | None = None
    failed: float | None = None


@dataclass(frozen=True, slots=True)
class Claim:
    """One claim of one message."""

    message: int
    pid: int
    moment: float


@dataclass(frozen=True, slots=True)
class Ask:
    """One statement that claims, before it is sent."""

    pid: int
    moment: float


class Ledger:
    """One process's view of the file."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT)
        self._numbers = count(1)
        self._read = 0
        self._rest = b""
        self._runs: dict[str, Run] = {}
        self._claims: list[Claim] = []
        self._asks: list[Ask] = []
        self._asking: set[int] = set()
        self._published: dict[int, float] = {}

    def close(self) -> None:
        os.close(self._file)

    # Writing

    def begin(self, message: int, delivery: int) -> str:
        run = f"{os.getpid()}.{next(self._numbers)}"
        self._write(f"begin {run} {message} {delivery} {os.getpid()} {monotonic()}\n")
        return run

    def end(self, run: str) -> None:
        self._write(f"end {run} {monotonic()}\n")

    def fail(self, run: str) -> None:
        self._write(f"fail {run} {monotonic()}\n")

    def ask(self) -> None:
        self._write(f"ask {os.getpid()} {monotonic()}\n")

    def answer(self, messages: Iterable[int]) -> None:
        """The messages that were claimed by what was asked last."""
        now, pid = monotonic(), os.getpid()
        self._write("".join(f"claim {message} {pid} {now}\n" for message in messages) + f"answer {pid} {now}\n")

    def publish(self, *messages: int) -> None:
        now = monotonic()
        self._write("".join(f"publish {message} {now}\n" for message in messages))

    def _write(self, lines: str) -> None:
        os.write(self._file, lines.encode())

    # Reading

    def claims(self) -> list[Claim]:
        self._catch_up()
        return self._claims

    def asks(self) -> list[Ask]:
        self._catch_up()
        return self._asks

    def asking(self) -> set[int]:
        """The processes that have not written down yet what their last claim got, and never will if they are dead."""
        self._catch_up()
        return self._asking

    def published(self) -> dict[int, float]:
        """When the publisher knew that it had committed them."""
        self._catch_up()
        return self._published

    def runs(self, *messages: int) -> list[Run]:
        """All runs in the order of their begin, or those of *messages*."""
        self._catch_up()
        runs = [run for run in self._runs.values() if not messages or run.message in messages]
        return sorted(runs, key=lambda run: run.begun)

    def handled(self) -> set[int]:
        """The messages whose handler came to its end."""
        self._catch_up()
        return {run.message for run in self._runs.values() if run.ended is not None}

    def duplicates(self) -> int:
        """Runs beyond the first of a message."""
        return sum(count - 1 for count in Counter(run.message for run in self.runs()).values())

    def _catch_up(self) -> None:
        """Read what was written since the last time."""
        while data := os.pread(self._file, 1 << 20, self._read):
            self._read += len(data)
            *lines, self._rest = (self._rest + data).split(b"\n")
            for line in lines:
                self._note(*line.decode().split())

    def _note(self, what: str, *facts: str) -> None:
        match what, facts:
            case "begin", (run, message, delivery, pid, moment):
                self._runs[run] = Run(int(message), int(pid), int(delivery), float(moment))
            case "end", (run, moment):
                self._runs[run] = replace(self._runs[run], ended=float(moment))
            case "fail", (run, moment):
                self._runs[run] = replace(self._runs[run], failed=float(moment))
            case "claim", (message, pid, moment):
                self._claims.append(Claim(int(message), int(pid), float(moment)))
            case "ask", (pid, moment):
                self._asks.append(Ask(int(pid), float(moment)))
                self._asking.add(int(pid))
            case "answer", (pid, _):
                self._asking.discard(int(pid))
            case "publish", (message, moment):
                self._published[int(message)] = float(moment)
