"""The scenarios, in the order in which the campaign runs them."""

from dataclasses import replace

from tests.crash.campaign import strikes
from tests.crash.campaign.scenario import Limits, Scenario, Size

FULL = Size(orders=20_000, rate=333.0, workers=4)
SHORT = Size(orders=500, rate=125.0, workers=2, lease=2.0, patience=30.0)
HANDLING = {"seconds": 0.005}

OUTAGE = Limits(duplicates=20, late=None)

STEADY = Scenario(name="steady", story="no fault", full=FULL, short=SHORT, handling=HANDLING)

KILL9 = Scenario(
    name="kill9",
    story="kill -9 of a random worker each second",
    full=replace(FULL, strikes=60),
    short=replace(SHORT, strikes=3),
    strike=strikes.kill_one,
    handling=HANDLING,
    limits=Limits(each=5, needless=0),
)

KILL9_MANY = replace(
    KILL9,
    name="kill9-many",
    story="kill -9 of a random worker each second, which runs ten handlers at once",
    handling={"seconds": 0.05},
    options={"max_workers": 10},
    limits=Limits(duplicates=None, needless=0),  # what was in flight at a kill, and nothing else
)

POINTS = Scenario(
    name="points",
    story="workers kill themselves at each point of the life of a message in turn",
    full=replace(FULL, strikes=42, lease=2.0),
    short=replace(SHORT, orders=2_000, rate=80.0, strikes=10, workers=4),
    handling={**HANDLING, "slow": tuple(range(20, 20_500, 100)), "slow_leases": 0.4},
    mortal=("extended", "claimed", "begun", "running", "handled", "settling", "settled"),
    limits=Limits(each=5, needless=0),
)

SIGTERM = Scenario(
    name="sigterm",
    story="a rolling restart: SIGTERM to a worker each two seconds, a new one in its place",
    full=replace(FULL, strikes=30, every=2.0),
    short=replace(SHORT, strikes=2, every=1.5),
    strike=strikes.roll_one,
    handling=HANDLING,
)

TERMINATE = Scenario(
    name="terminate",
    story="pg_terminate_backend of every session each second",
    full=replace(FULL, strikes=60),
    short=replace(SHORT, strikes=4),
    strike=strikes.cut_sessions,
    handling=HANDLING,
    limits=OUTAGE,
)

RESTART = Scenario(
    name="restart",
    story="the server is stopped for a second and started again, each ten seconds",
    full=replace(FULL, strikes=6, every=10.0, lasting=1.0),
    short=replace(SHORT, strikes=1, lasting=1.0),
    strike=strikes.restart_server,
    handling=HANDLING,
    limits=OUTAGE,
)

CRASH = replace(
    RESTART,
    name="crash",
    story="the server is shut down immediately, and recovers, each ten seconds",
    strike=strikes.crash_server,
)

LONG_OUTAGE = replace(
    RESTART,
    name="outage",
    story="the server is away for 20 s",
    full=replace(FULL, strikes=1, lasting=20.0),
    short=replace(SHORT, strikes=1, lasting=4.0),
)

FREEZE = Scenario(
    name="freeze",
    story="SIGSTOP of a random worker for longer than its lease",
    full=replace(FULL, strikes=4, every=15.0, lasting=13.0, lease=10.0),
    short=replace(SHORT, strikes=1, lasting=3.5),
    strike=strikes.freeze_one,
    handling=HANDLING,
    limits=Limits(each=5, at_once=None),
)

SLOW = Scenario(
    name="slow",
    story="twelve handlers take three leases",
    full=replace(FULL, lease=5.0),
    short=replace(SHORT, lease=1.0),
    handling={**HANDLING, "slow": tuple(range(12, 24)), "slow_leases": 3.3},
    options={"max_workers": 8},
)

ANSWERS = Scenario(
    name="answers",
    story="each two seconds the answers of 0.2 s are lost with their connections, those to COMMIT included",
    full=replace(FULL, strikes=30, every=2.0, lasting=0.2),
    short=replace(SHORT, strikes=3, every=1.2, lasting=0.2),
    strike=strikes.lose_answers,
    handling=HANDLING,
    way="proxy",
    shops=({"proxied": True},),
    limits=OUTAGE,
)

SILENCE = Scenario(
    name="silence",
    story="all connections of the workers fall silent and are never closed",
    full=replace(FULL, strikes=2, every=30.0),
    short=replace(SHORT, strikes=1),
    strike=strikes.fall_silent,
    handling=HANDLING,
    way="proxy",
    limits=replace(OUTAGE, recovery=20.0),
)

READ_ONLY = Scenario(
    name="readonly",
    story="the database refuses to write for 10 s, twice",
    full=replace(FULL, strikes=2, every=20.0, lasting=10.0),
    short=replace(SHORT, strikes=1, lasting=2.0),
    strike=strikes.refuse_writes,
    handling=HANDLING,
    limits=OUTAGE,
)

CONNECTIONS = replace(
    READ_ONLY,
    name="connections",
    story="too many connections: all are cut, and none is accepted for 10 s, twice",
    strike=strikes.refuse_connections,
)

MIGRATION = replace(
    READ_ONLY,
    name="migration",
    story="a migration holds ACCESS EXCLUSIVE for 10 s, twice, with statement_timeout = 2s",
    short=replace(SHORT, strikes=1, lasting=3.0),
    strike=strikes.migrate,
    settings={"statement_timeout": "2s"},
)

IDLE = Scenario(
    name="idle",
    story="idle_session_timeout = 3s, and bursts of 20 messages with longer pauses between them",
    full=replace(FULL, orders=600, rate=5.0),
    short=replace(SHORT, orders=60, rate=5.0),
    handling={**HANDLING, "transactional": True},
    shops=({"burst": 20},),
    settings={"idle_session_timeout": "3s"},
    limits=Limits(duplicates=20),
)

SERIALIZABLE = Scenario(
    name="serializable",
    story="default_transaction_isolation = serializable",
    full=FULL,
    short=SHORT,
    handling=HANDLING,
    settings={"default_transaction_isolation": "serializable"},
)

POISON_EXIT = Scenario(
    name="poison-exit",
    story="twelve messages end the interpreter (max_deliveries=3)",
    full=FULL,
    short=replace(SHORT, workers=3),
    handling={**HANDLING, "deadly": tuple(range(100, 112))},
    options={"max_deliveries": 3},
    poison=dict.fromkeys(range(100, 112), "max_deliveries"),
    limits=Limits(duplicates=None, late=None, dead=12),  # whoever could claim it next dies of other poison first
)

POISON_HANG = Scenario(
    name="poison-hang",
    story="four messages block the event loop for ever",
    full=FULL,
    short=SHORT,
    handling={**HANDLING, "blocking": (100, 101, 102, 103)},
    options={"max_deliveries": 2},
    poison=dict.fromkeys((100, 101, 102, 103), "max_deliveries"),
    limits=Limits(duplicates=None, dead=4),
)

POISON_BYTES = Scenario(
    name="poison-bytes",
    story="twelve messages cannot be decoded",
    full=FULL,
    short=replace(SHORT, rate=500.0),
    handling=HANDLING,
    shops=({"broken": tuple(range(100, 112))},),
    poison=dict.fromkeys(range(100, 112), "undecodable"),
    limits=Limits(dead=12),
)

RETRIES = Scenario(
    name="retries",
    story="a retry storm: every message fails once or twice",
    full=FULL,
    short=replace(SHORT, rate=250.0),
    handling={**HANDLING, "fails": 2},
)

HOT = Scenario(
    name="hot",
    story="a queue of 14,000 messages, published as fast as can be, beside a quiet one",
    full=replace(FULL, orders=14_000, rate=5_000.0),
    short=replace(SHORT, orders=1_000, rate=5_000.0),
    handling={"seconds": 0.02, "queues": ("hot", "quiet")},
    shops=({"queue": "hot"}, {"queue": "quiet", "first": 1_000_000, "share": 0.01, "rate": 4.0}),
    limits=Limits(wait=0.1, claims=2),
)

UPGRADE = replace(
    SIGTERM,
    name="upgrade",
    story="workers of the version before held_key; today's refuse its table, it is migrated, and they are replaced",
    full=replace(FULL, strikes=4, every=10.0),
    short=replace(SHORT, orders=1_500, strikes=2),
    strike=strikes.upgrade,
    upgrades=True,
)

GO_BACK = replace(
    SIGTERM,
    name="go-back",
    story="a later version's column appears, and the workers of today are replaced one by one",
    full=replace(FULL, strikes=12, every=4.0),
    strike=strikes.go_back,
)

POOLER = Scenario(
    name="pgbouncer",
    story="workers behind PgBouncer in transaction mode, without special settings",
    full=replace(FULL, orders=200, rate=50.0),
    short=replace(SHORT, orders=200, rate=50.0, lease=FULL.lease),
    handling=HANDLING,
    way="pooler",
    limits=Limits(warnings=1),
)

POOLER_PSYCOPG = replace(POOLER, name="pgbouncer-psycopg", story=f"{POOLER.story}, on psycopg", driver="psycopg")

KEYS = replace(
    STEADY,
    name="keys",
    story="order by key, 50 keys",
    short=replace(SHORT, workers=4),
    keys=50,
)

BLOCKED_KEY = replace(
    KEYS,
    name="keys-blocked",
    story="order by key, where one key's head takes 3.3 leases",
    handling={**HANDLING, "slow": (3,), "slow_leases": 3.3},
)


_SETTLEMENT = ("handled", "settling", "settled")  # points to which a transactional message does not come


def transactional(scenario: Scenario) -> Scenario:
    """The same, where handlers write into the outbox's database and in the transaction that ends their message."""
    return replace(
        scenario,
        name=f"{scenario.name}-tx",
        story=f"{scenario.story}; transactional handlers",
        handling={**scenario.handling, "transactional": True},
        # What a handler asks of a silent connection waits as long as its author allows.
        options={**scenario.options, "handler_timeout": 5.0} if scenario is SILENCE else scenario.options,
        limits=replace(scenario.limits, duplicates=None),
        mortal=tuple(point for point in scenario.mortal if point not in _SETTLEMENT),
    )


def keyed(scenario: Scenario) -> Scenario:
    """The same with 50 keys, whose messages must keep their order."""
    return replace(
        scenario,
        name=f"keys-{scenario.name}",
        story=f"order by key, 50 keys; {scenario.story}",
        keys=50,
    )


SCENARIOS: dict[str, Scenario] = {
    scenario.name: scenario
    for scenario in (
        KILL9,
        KILL9_MANY,
        POINTS,
        SIGTERM,
        TERMINATE,
        RESTART,
        CRASH,
        LONG_OUTAGE,
        FREEZE,
        SLOW,
        ANSWERS,
        SILENCE,
        READ_ONLY,
        CONNECTIONS,
        MIGRATION,
        POISON_EXIT,
        POISON_HANG,
        POISON_BYTES,
        RETRIES,
        HOT,
        UPGRADE,
        GO_BACK,
        POOLER,
        POOLER_PSYCOPG,
        KEYS,
        keyed(KILL9),
        keyed(TERMINATE),
        BLOCKED_KEY,
        transactional(KILL9),
        transactional(POINTS),
        transactional(TERMINATE),
        transactional(RESTART),
        transactional(CRASH),
        transactional(FREEZE),
        transactional(ANSWERS),
        transactional(SILENCE),
        transactional(CONNECTIONS),
        transactional(MIGRATION),
        transactional(SERIALIZABLE),
        STEADY,
        IDLE,
        SERIALIZABLE,
    )
}
