"""Commands in processes of their own: what they say, real signals, and how they end."""

import os
import re
import subprocess
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from signal import Signals
from time import monotonic, sleep

import psutil

PATIENCE = 30.0  # seconds


def until(look: Callable[[], object], expected: object = True, patience: float = PATIENCE) -> None:
    """Return when *look* sees *expected*; fail with what it saw last."""
    deadline = monotonic() + patience
    while (seen := look()) != expected:
        assert monotonic() < deadline, f"expected {expected!r}, saw {seen!r}"
        sleep(0.02)


class Process:
    """A command that runs."""

    @classmethod
    def begin(cls, command: Sequence[str], folder: Path, log: Path, environment: Mapping[str, str]) -> "Process":
        """Begin *command* in *folder*; what it says goes into *log*."""
        with log.open("wb") as output:
            running = subprocess.Popen(
                command,
                cwd=folder,
                env=os.environ | environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        return cls(running, log)

    def __init__(self, running: "subprocess.Popen[bytes]", log: Path) -> None:
        self._running = running
        self._log = log
        self._family: set[psutil.Process] = set()
        self.pid = running.pid

    @property
    def log(self) -> str:
        return self._log.read_text()

    def says(self, text: str, times: int = 1) -> None:
        """Return when it has said *text* so often."""
        deadline = monotonic() + PATIENCE
        while self.log.count(text) < times:
            assert self._running.poll() is None, f"it ended without {text!r}:\n{self.log}"
            assert monotonic() < deadline, f"it does not say {text!r}:\n{self.log}"
            sleep(0.02)

    def serves(self) -> str:
        """The address at which it serves HTTP, when uvicorn has said it."""
        self.says("Uvicorn running on http")
        return re.findall(r"Uvicorn running on (http://[\w.:]+)", self.log)[0]

    def send(self, signal: Signals) -> None:
        self._running.send_signal(signal)

    def ends(self, patience: float = PATIENCE) -> int:
        """The exit code, when it has ended by itself."""
        try:
            return self._running.wait(patience)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"it does not end:\n{self.log}") from None

    def children(self) -> list[int]:
        """The worker processes of a parent; Python's own helper is none."""
        return sorted(child.pid for child in self._descendants() if "resource_tracker" not in " ".join(child.cmdline()))

    def kill(self) -> None:
        if self._running.poll() is None:
            self._descendants()
            self._running.kill()
        for process in self._family:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        self._running.wait()

    def _descendants(self) -> list[psutil.Process]:
        """What is remembered, since nobody can ask a dead parent for its children."""
        processes = psutil.Process(self.pid).children(recursive=True)
        self._family.update(processes)
        return processes
