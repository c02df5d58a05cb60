"""The fault campaign in its short form; `make faults` runs it at full length (docs/explanation/faults.md)."""

from pathlib import Path

import pytest

from tests.crash.campaign.report import HEAD, line
from tests.crash.campaign.run import run
from tests.crash.campaign.scenario import Scenario
from tests.crash.campaign.suite import SUITE
from tests.crash.pooler import needs_pgbouncer
from tests.databases import OwnServer


@pytest.mark.parametrize("scenario", SUITE.values(), ids=SUITE)
def test_a_short_campaign_keeps_every_limit(scenario: Scenario, own_server: OwnServer, tmp_path: Path) -> None:
    if scenario.way == "pooler":
        needs_pgbouncer()

    verdict = run(scenario, own_server, tmp_path, short=True)

    print(f"\n{HEAD}\n{line(verdict)}")
    assert verdict.broken == ()
