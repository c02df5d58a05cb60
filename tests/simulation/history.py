"""What handlers did, and whether DESIGN §1 allows it."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations
from typing import Literal

from outbox_core.message import Delivery
from tests.simulation.database import Process


@dataclass(slots=True, eq=False)
class Run:
    """One handler run of one message. A message's body is its name."""

    name: str
    key: str | None
    process: Process
    delivery: Delivery
    began: float
    ended: float = float("inf")
    end: Literal["running", "done", "failed", "cut", "killed"] = "running"

    def __str__(self) -> str:
        marks = [
            mark for mark, true in [("suspect", self.delivery.suspect), ("lost", self.delivery.lease_lost)] if true
        ]
        return f"{self.began:9.3f} to {self.ended:9.3f}, process {self.process.number}: {self.name} {self.end} {marks}"

    @property
    def excused(self) -> bool:
        """Whether its worker knows, or has died of it, that the message may be with another one."""
        return self.delivery.lease_lost or self.end == "killed" or self.process.dead.is_set()


class History:
    """All runs, in the order in which they began."""

    def __init__(self) -> None:
        self.runs: list[Run] = []

    def of(self, name: str) -> list[Run]:
        return [run for run in self.runs if run.name == name]

    def ended(self, name: str, end: str) -> list[Run]:
        return [run for run in self.of(name) if run.end == end]

    @property
    def lost(self) -> list[Run]:
        """Runs whose lease was lost, as their worker knows."""
        return [run for run in self.runs if run.delivery.lease_lost]

    @property
    def repeated(self) -> list[Run]:
        """Runs of what had been done before."""
        return [run for run in self.runs if any(done.ended <= run.began for done in self.ended(run.name, "done"))]

    def repeated_after(self, seconds: float) -> list[Run]:
        """What was done so long before its process died or ended, and so could have been written, and is done again."""
        done = [run for run in self.runs if run.end == "done" and run.ended < run.process.died_at - seconds]
        return [one for one in done if any(run.began >= one.ended for run in self.of(one.name))]

    def wrongs(self, *, order: dict[str, list[str]], fails: dict[str, int], most_attempts: int) -> Iterator[str]:
        """*order*: the messages of each key. *fails*: how often a message fails before it does not."""
        yield from self._beside_a_suspect()
        for name in dict.fromkeys(run.name for run in self.runs):
            yield from self._at_once(self.of(name), name)
            yield from self._twice(name)
            yield from self._miscounted(name, fails.get(name, 0), most_attempts)
        for key, names in order.items():
            yield from self._at_once([run for run in self.runs if run.key == key], key)
            yield from self._out_of_order(names, most_attempts)

    def _at_once(self, runs: list[Run], what: str) -> Iterator[str]:
        for one, other in combinations(runs, 2):
            if other.began < one.ended and not one.excused:
                yield f"{what} was handled twice at once, at {other.began:.3f}"

    def _beside_a_suspect(self) -> Iterator[str]:
        """If a suspect kills its process, nobody else is blamed or harmed."""
        for one, other in combinations(self.runs, 2):
            together = one.process is other.process and other.began < one.ended
            if together and (one.delivery.suspect or other.delivery.suspect):
                yield f"{other.name} began at {other.began:.3f} beside {one.name}, and one of them is a suspect"

    def _twice(self, name: str) -> Iterator[str]:
        """What was done is done again only if nobody could write that it was."""
        for done in self.ended(name, "done"):
            if any(run.began >= done.ended for run in self.of(name)) and not done.excused:
                yield f"{name} was handled again after it was done at {done.ended:.3f}"

    def _out_of_order(self, names: list[str], most_attempts: int) -> Iterator[str]:
        for place, name in enumerate(names):
            for run in self.of(name):
                for before in names[:place]:
                    over = [one for one in self.of(before) if one.ended <= run.began]
                    done = any(one.end == "done" for one in over)
                    if not done and sum(one.end == "failed" for one in over) < most_attempts:
                        yield f"{name} began at {run.began:.3f} before the end of {before}"

    def _miscounted(self, name: str, fails: int, most_attempts: int) -> Iterator[str]:
        """Each attempt is counted, and nothing else is."""
        failed = self.ended(name, "failed")
        if len(failed) - sum(run.excused for run in failed) > min(fails, most_attempts):
            yield f"{name} failed {len(failed)} times"
        for run in self.of(name):
            before = [one for one in failed if one.ended <= run.began]
            certain = sum(not one.excused for one in before)
            if not certain <= run.delivery.attempts <= len(before):
                yield f"{name} came with {run.delivery.attempts} attempts after {len(before)} failures"
