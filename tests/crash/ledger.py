"""What handlers really did: one row a run, in a table of its own that no fault of a test reaches.

A file of SQLite outlives a killed process and a stopped PostgreSQL. It is never synced, since no test cuts the power.
Moments are `time.monotonic()`, which is one clock for all processes of a machine.
"""

import os
import sqlite3
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from time import monotonic


@dataclass(frozen=True, slots=True)
class Run:
    """One start of a handler. `delivery`: the how-manieth it was told it is; `ended`: None if it never came to its end."""

    message: int
    pid: int
    delivery: int
    begun: float
    ended: float | None


@dataclass(frozen=True, slots=True)
class Claim:
    """One claim of one message."""

    message: int
    pid: int
    moment: float


class Ledger:
    """One process's view of the file."""

    def __init__(self, path: Path) -> None:
        self._connection = sqlite3.connect(path, isolation_level=None, timeout=30)
        self._connection.execute("PRAGMA journal_mode = WAL")
        self._connection.execute("PRAGMA synchronous = OFF")
        self._connection.execute(
            "CREATE TABLE IF NOT EXISTS runs (id INTEGER PRIMARY KEY, message INT, pid INT, delivery INT, begun, ended)"
        )

        self._connection.execute("CREATE TABLE IF NOT EXISTS claims (message INT, pid INT, moment)")

    def close(self) -> None:
        self._connection.close()

    def begin(self, message: int, delivery: int) -> int:
        cursor = self._connection.execute(
            "INSERT INTO runs (message, pid, delivery, begun) VALUES (?, ?, ?, ?)",
            (message, os.getpid(), delivery, monotonic()),
        )
        assert cursor.lastrowid is not None
        return cursor.lastrowid

    def end(self, run: int) -> None:
        self._connection.execute("UPDATE runs SET ended = ? WHERE id = ?", (monotonic(), run))

    def claim(self, messages: Iterable[int]) -> None:
        rows = [(message, os.getpid(), monotonic()) for message in messages]
        with self._connection:
            self._connection.execute("BEGIN IMMEDIATE")
            self._connection.executemany("INSERT INTO claims VALUES (?, ?, ?)", rows)

    def claims(self) -> list[Claim]:
        return [Claim(*row) for row in self._connection.execute("SELECT message, pid, moment FROM claims")]

    def runs(self, *messages: int) -> list[Run]:
        """All runs in the order of their begin, or those of *messages*."""
        rows = self._connection.execute("SELECT message, pid, delivery, begun, ended FROM runs ORDER BY begun, id")
        return [run for row in rows if (run := Run(*row)).message in messages or not messages]

    def handled(self) -> set[int]:
        """The messages whose handler came to its end."""
        return {row[0] for row in self._connection.execute("SELECT message FROM runs WHERE ended IS NOT NULL")}

    def duplicates(self) -> int:
        """Runs beyond the first of a message."""
        return sum(count - 1 for count in Counter(run.message for run in self.runs()).values())
