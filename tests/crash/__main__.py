"""The fault campaign from the command line: one scenario after the other, a line each, and whether it kept its limits.

python -m tests.crash [--list] [--short] [--share SHARE] [NAME …]
"""

import argparse
import shutil
import sys
import tempfile
from pathlib import Path

from tests.crash.campaign import previous
from tests.crash.campaign.report import HEAD, line
from tests.crash.campaign.run import run
from tests.crash.campaign.scenario import Scenario
from tests.crash.campaign.scenarios import SCENARIOS
from tests.crash.pooler import INSTALL, find_pgbouncer
from tests.databases import OwnServer


def main() -> int:
    """The exit code: 1 if any limit was broken."""
    arguments = _arguments()
    if arguments.list:
        for scenario in SCENARIOS.values():
            print(f"{scenario.name:18} {scenario.story}")
        return 0
    chosen = [SCENARIOS[name] for name in arguments.names] or [*SCENARIOS.values()]
    broken = 0
    print(HEAD, flush=True)
    with OwnServer.running() as server:
        for scenario in chosen:
            if missing := _missing(scenario):
                print(f"    NOT RUN: {scenario.name}: {missing}", flush=True)
                continue
            folder = Path(tempfile.mkdtemp(prefix=f"outbox-faults-{scenario.name}-"))
            verdict = run(scenario, server, folder, short=arguments.short, share=arguments.share)
            print(line(verdict), flush=True)
            for fault in verdict.broken:
                broken += 1
                print(f"    BROKEN: {fault} (logs in {folder})", flush=True)
            if not verdict.broken:
                shutil.rmtree(folder)
    return 1 if broken else 0


def _missing(scenario: Scenario) -> str | None:
    """What it needs and is not here."""
    if scenario.way == "pooler" and find_pgbouncer() is None:
        return INSTALL
    if scenario.upgrades and not previous.is_here():
        return f"commit {previous.COMMIT[:8]} is not in this clone; git fetch --unshallow"
    return None


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.crash", description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", choices=[[], *SCENARIOS], help="scenarios; all by default")
    parser.add_argument("--list", action="store_true", help="say what there is")
    parser.add_argument("--short", action="store_true", help="the small numbers of the test suite")
    parser.add_argument("--share", type=float, default=1.0, help="of the messages and strikes, 0.1 say; all by default")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
