"""The short campaign of the test suite: what has the same limits is in one scenario.

What is not here stands elsewhere in this folder, smaller and more exact: deaths at each point in `test_kill`, messages that
end the interpreter in `test_poison`, those that block the loop in `test_blocked`. The upgrade needs the repository's
history, which a clone need not have.
"""

from dataclasses import replace

from tests.crash.campaign import strikes
from tests.crash.campaign.scenario import Limits, Scenario
from tests.crash.campaign.scenarios import (
    HANDLING,
    IDLE,
    OUTAGE,
    POISON_BYTES,
    RETRIES,
    SCENARIOS,
    SERIALIZABLE,
    SHORT,
    transactional,
)

_ONCE_EACH = replace(SHORT, orders=1_000, rate=70.0, strikes=6, lasting=0.8)

OUTAGES = Scenario(
    name="outages",
    story="sessions are cut, the server is restarted, crashes, refuses to write, refuses connections, is locked",
    full=_ONCE_EACH,
    short=_ONCE_EACH,
    strike=strikes.in_turn(
        strikes.cut_sessions,
        strikes.restart_server,
        strikes.crash_server,
        strikes.refuse_writes,
        strikes.refuse_connections,
        strikes.migrate,
    ),
    handling=HANDLING,
    settings={"statement_timeout": "500ms"},
    limits=OUTAGE,
)

FAILURES = replace(
    RETRIES,
    name="failures",
    story="every message fails once or twice, but for twelve that cannot be decoded",
    shops=POISON_BYTES.shops,
    poison=POISON_BYTES.poison,
    limits=POISON_BYTES.limits,
)

SETTINGS = replace(
    IDLE,
    name="settings",
    story="idle_session_timeout = 3s, default_transaction_isolation = serializable; transactional handlers",
    settings={**IDLE.settings, **SERIALIZABLE.settings},
    limits=Limits(duplicates=None),
)

_AS_THEY_ARE = (
    "kill9",
    "kill9-many",
    "kill9-tx",
    "keys-kill9",
    "go-back",
    "freeze",
    "slow",
    "answers",
    "answers-tx",
    "silence",
    "hot",
    "keys-terminate",
    "keys-blocked",
    "pgbouncer",
    "pgbouncer-psycopg",
)

SUITE: dict[str, Scenario] = {
    scenario.name: scenario
    for scenario in (
        *(SCENARIOS[name] for name in _AS_THEY_ARE),
        OUTAGES,
        transactional(OUTAGES),
        FAILURES,
        SETTINGS,
    )
}
