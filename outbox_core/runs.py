"""What one claimant holds of each key: the message that may begin, and those that wait behind it.

    claimed run 1 2 3 --admit--> 1 begins, 2 and 3 wait --1 is acked--> 2 begins, 3 waits --2 fails--> 3 is given back

Only an ack lets the next one begin. Whatever else becomes of a message, those behind it go back to the table, and come again
when its outcome is written there: behind it, if it is to be retried.

While a message of a run is handled, the last of the run is neither settled nor given back: in the table, it may be the only
one that says that somebody has the key (`held_key`).
"""

from collections import deque
from collections.abc import Collection, Iterable, Iterator, Sequence
from itertools import chain

from outbox_core.message import Delivery, Line


class Runs:
    """The messages of keys that have begun or may begin, and those behind them. A message without a key is none of its."""

    def __init__(self) -> None:
        self._behind: dict[Line, deque[Delivery]] = {}  # there is an entry while the first may begin, or has begun
        self._waiting = 0
        self._rear: dict[Line, Delivery] = {}  # the last of a run of which the rest was given back

    def __len__(self) -> int:
        """How many wait."""
        return self._waiting

    def waiting(self) -> Iterator[Delivery]:
        """Those who wait."""
        return chain.from_iterable(self._behind.values())

    def admit(self, deliveries: Iterable[Delivery]) -> Iterator[Delivery]:
        """Those of *deliveries*, freshly claimed, that may begin; the others wait."""
        for delivery in deliveries:
            if delivery.key is None:
                yield delivery
            elif (line := (delivery.queue, delivery.key)) in self._behind:
                self._behind[line].append(delivery)
                self._waiting += 1
            else:
                self._behind[line] = deque()
                yield delivery

    def join(self, delivery: Delivery, most: int) -> list[Delivery]:
        """Up to *most* of those behind *delivery*, to be handled in one batch with it. A suspect is handled alone."""
        behind = self._of(delivery)
        joined: list[Delivery] = []
        if delivery.suspect:
            return joined
        while behind and len(joined) < most and not behind[0].suspect:
            joined.append(behind.popleft())
        self._waiting -= len(joined)
        return joined

    def leave(self, batch: Sequence[Delivery]) -> tuple[list[Delivery], list[Delivery]]:
        """What *batch*, which has come to its end, makes of those behind: who may begin, and who is to be given back."""
        begin: list[Delivery] = []
        back: list[Delivery] = []
        for line in dict.fromkeys(delivery.line for delivery in batch):
            if line is None or line not in self._behind:
                continue
            behind, rear = self._behind[line], self._rear.pop(line, None)
            if rear is not None or not all(delivery.acked for delivery in batch if delivery.line == line):
                self._waiting -= len(behind)
                back += self._behind.pop(line)
                back += [] if rear is None else [rear]
            elif behind:
                self._waiting -= 1
                begin.append(behind.popleft())
            else:
                del self._behind[line]
        return begin, back

    def drop(self, delivery: Delivery) -> None:
        """*delivery*, if it waits, is not ours any more."""
        behind = self._of(delivery)
        if delivery in behind:
            behind.remove(delivery)
            self._waiting -= 1
        elif delivery.line is not None and self._rear.get(delivery.line) is delivery:
            del self._rear[delivery.line]

    def give_up(self, firsts: Collection[Delivery]) -> list[Delivery]:
        """All who wait, to be given back together with *firsts*, which have not begun either.

        Behind a message that has begun, the last one stays until that has come to its end, and is given back then.
        """
        idle = {delivery.line for delivery in firsts}
        back: list[Delivery] = []
        for line, behind in [*self._behind.items()]:
            if line in idle:
                del self._behind[line]
            elif behind:
                self._rear[line] = behind.pop()
            back += behind
            behind.clear()
        self._waiting = 0
        return back

    def _of(self, delivery: Delivery) -> deque[Delivery]:
        """Those behind *delivery*, or behind which it waits; none for a message without a key."""
        return deque() if delivery.line is None else self._behind.get(delivery.line, deque())
