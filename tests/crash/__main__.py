"""The fault campaign from the command line: one scenario after the other, a line each, and whether it kept its limits.

python -m tests.crash [--list] [--short] [NAME …]
"""

import argparse
import sys
import tempfile
from pathlib import Path

from tests.crash.campaign.report import HEAD, line
from tests.crash.campaign.run import run
from tests.crash.campaign.scenarios import SCENARIOS
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
            folder = Path(tempfile.mkdtemp(prefix=f"outbox-faults-{scenario.name}-"))
            verdict = run(scenario, server, folder, short=arguments.short)
            print(line(verdict), flush=True)
            for fault in verdict.broken:
                broken += 1
                print(f"    BROKEN: {fault} (logs in {folder})", flush=True)
    return 1 if broken else 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.crash", description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", choices=[[], *SCENARIOS], help="scenarios; all by default")
    parser.add_argument("--list", action="store_true", help="say what there is")
    parser.add_argument("--short", action="store_true", help="the small numbers of the test suite")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
