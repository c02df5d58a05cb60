"""Runs what is to be measured, each in a process of its own, and remembers the medians."""

import json
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from statistics import median

Figures = dict[str, float]
# What systems that are not ours need: a package, or a server on a port of this machine.
PACKAGES = ("django_tasks_db", "faststream_outbox", "pgqueuer", "procrastinate")
PORTS = {"jetstream": 4222, "redis_streams": 6379}


@dataclass(frozen=True, slots=True)
class Run:
    """What one process measures: *workload* of *system*, `tests/benchmarks/systems/`.

    *share*: of the chapter's messages, for who would take minutes for all.
    """

    label: str
    system: str
    workload: str
    options: Mapping[str, str | int] = field(default_factory=dict)
    share: float = 1.0

    @property
    def missing(self) -> str | None:
        """What its system needs and this machine has not; None if it can run."""
        if self.system in PACKAGES and find_spec(self.system) is None:
            return f"{self.system} is not installed"
        if (port := PORTS.get(self.system)) and not _listens(port):
            return f"nothing listens on port {port}"
        return None


class Bench:
    """Interleaves the runs of a chapter, since the machine's mood changes more slowly than they take turns."""

    def __init__(self, dsn: str, rounds: int) -> None:
        self._dsn = dsn
        self._rounds = rounds

    def medians(self, messages: int, runs: Sequence[Run]) -> dict[str, Figures]:
        """The median of each figure, by the labels of *runs*."""
        found: dict[str, list[Figures]] = {run.label: [] for run in runs}
        for _ in range(self._rounds):
            for run in runs:
                found[run.label].append(self._run(run, max(1, round(messages * run.share))))
        return {label: {name: median(f[name] for f in all_) for name in all_[0]} for label, all_ in found.items()}

    def _run(self, run: Run, messages: int) -> Figures:
        options = [f"{name}={value}" for name, value in run.options.items()]
        command = [sys.executable, "-m", "tests.benchmarks.run", run.system, run.workload, self._dsn, str(messages)]
        done = subprocess.run([*command, *options], capture_output=True, text=True, timeout=900, check=False)
        if done.returncode != 0:
            sys.exit(f"{' '.join([*command, *options])} failed:\n{done.stderr[-4_000:]}")
        figures: Figures = json.loads(done.stdout)
        return figures


def _listens(port: int) -> bool:
    with socket.socket() as client:
        client.settimeout(1)
        return client.connect_ex(("127.0.0.1", port)) == 0
