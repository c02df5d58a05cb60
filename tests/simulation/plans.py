"""Which calls meet which fault."""

import asyncio
import random
from functools import cache

from tests.simulation.database import ENDS, ERRORS, Chooser, Fault
from tests.simulation.loop import BEGINNING
from tests.simulation.scenario import Report, simulate

QUIET_AFTER = 40.0  # seconds; then there are no more faults, and all has to be handled soon


def faultless(number: int, name: str) -> Fault | None:
    return None


@cache
def without_faults() -> Report:
    return simulate(faultless)


def at(number: int, fault: Fault) -> Chooser:
    """The one *fault* at the call of that *number*."""
    return lambda its, name: fault if its == number else None


def stormy(seed: int) -> Chooser:
    """Some faults, or many, or nothing else for a while, and at times the end of the process."""
    chance = random.Random(seed)
    rate, most, ends = (
        chance.choice([0.02, 0.05, 0.1, 0.3, 0.6]),
        chance.choice([5, 20, 60]),
        chance.choice([0, 0.1, 0.5]),
    )
    left = iter(range(most))

    def choose(number: int, name: str) -> Fault | None:
        quiet = asyncio.get_running_loop().time() > BEGINNING + QUIET_AFTER
        if quiet or chance.random() > rate or next(left, None) is None:
            return None
        return chance.choice(ENDS if chance.random() < ends else ERRORS)

    return choose
