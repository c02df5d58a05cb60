"""What a scenario is: who works, what is published, what strikes how often, and what must hold afterwards.

One definition has two sizes: the full one of `make faults`, and the short one that is part of the suite.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import ceil
from typing import TYPE_CHECKING, Any, TypeAlias

from outbox_core.options import ConsumerOptions

if TYPE_CHECKING:
    from tests.crash.campaign.site import Site

Strike: TypeAlias = Callable[["Site"], None]


@dataclass(frozen=True, kw_only=True)
class Limits:
    """The most that a run may show. None: not limited.

    `duplicates`: handler runs beyond those that were ordered, and `each` more for every strike. `needless`: duplicates of a
    run that did not end with its process. `late`: seconds beyond the lease from the death of a worker to the next claim of
    what it held. `recovery`: seconds without the begin of a handler after a strike, while there is something to do. `dead`:
    exactly so many dead letters, all of them poison. `effects`: rows that transactional handlers have written beyond one,
    or not at all. `wait`: seconds that half of the messages of the last shop wait at most, and `claims` how often one
    process may claim before one of them is taken. `warnings`: exactly so many lines about wake-ups for each worker.
    """

    lost: int = 0
    stuck: int = 0
    phantoms: int = 0
    gave_up: int = 0
    innocents: int = 0
    violations: int = 0
    effects: int = 0
    at_once: int | None = 0
    duplicates: int | None = 0
    each: int = 0
    late: float | None = 2.0
    recovery: float | None = 5.0
    dead: int = 0
    needless: int | None = None
    wait: float | None = None
    claims: int | None = None
    warnings: int | None = None


@dataclass(frozen=True, kw_only=True)
class Size:
    """How much of it. `orders`: of the first shop's; `strikes`: how many, `every` so many seconds, each `lasting` so long.

    `lease`: seconds. `patience`: seconds without any progress after which a run is over.
    """

    orders: int
    rate: float
    workers: int
    strikes: int = 0
    every: float = 1.0
    lasting: float = 0.0
    lease: float = ConsumerOptions.lease_ttl_seconds
    patience: float = 60.0

    def part(self, share: float) -> "Size":
        """So much of the messages and of the strikes, at the same pace."""
        return replace(self, orders=ceil(self.orders * share), strikes=ceil(self.strikes * share))


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """One kind of fault.

    `handling`: orders of the workers. `shops`: further orders of the shop and of others beside it. `mortal`: points at which
    one worker after the other kills itself, instead of being struck. `settings`: of the database, for every session that
    does not say otherwise. `way`: what lies between the workers and PostgreSQL. `poison`: numbers that shall die,
    and of which reason. `upgrades`: it begins with the packages and the tables of an earlier version.
    """

    name: str
    story: str
    full: Size
    short: Size
    limits: Limits = Limits()
    strike: Strike | None = None
    handling: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    shops: Sequence[Mapping[str, Any]] = ({},)
    keys: int = 0
    mortal: Sequence[str] = ()
    settings: Mapping[str, str] = field(default_factory=dict)
    way: str = "direct"  # direct, proxy or pooler
    driver: str = "asyncpg"
    poison: Mapping[int, str] = field(default_factory=dict)
    upgrades: bool = False

    @property
    def transactional(self) -> bool:
        return bool(self.handling.get("transactional"))

    def runs_ordered(self, number: int) -> int:
        """How often the handler of a message is to be started if nothing goes wrong."""
        fails = self.handling.get("fails")
        return 2 + number % fails if fails else 1
