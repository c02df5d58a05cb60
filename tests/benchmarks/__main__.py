"""`make bench`: every workload on every system, interleaved, medians and ratios as tables.

`--smoke` runs each once with few messages: it proves that the benchmarks work, and says nothing about speed.
"""

import argparse
import json
from pathlib import Path

from tests.benchmarks.bench import Bench
from tests.benchmarks.chapters import CHAPTERS
from tests.benchmarks.report import machine, table, targets
from tests.databases import postgres_database, postgres_server, with_driver


def main() -> None:
    options = _options()
    with postgres_server() as server, postgres_database(server) as database:
        print(machine(server), flush=True)
        bench = Bench(with_driver(database, "asyncpg"), options.rounds)
        figures = {}
        for name in options.chapters or CHAPTERS:
            chapter = CHAPTERS[name]
            messages = chapter.smoke if options.smoke else chapter.messages
            found = figures[name] = bench.medians(messages, [run for run in chapter.runs if run.missing is None])
            print(table(chapter, messages, found))
            for run in chapter.runs:
                if run.missing:
                    print(f"  {run.label}: not measured, {run.missing}")
            if not options.smoke:
                print(targets(chapter, found), flush=True)
        if options.json:
            options.json.write_text(json.dumps({"machine": machine(server), "figures": figures}, indent=2))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
    parser.add_argument("chapters", nargs="*", metavar="CHAPTER", choices=[[], *CHAPTERS], help=", ".join(CHAPTERS))
    parser.add_argument("--smoke", action="store_true", help="few messages, one round, no figures worth quoting")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="write the medians there too, for tests.benchmarks.plot"
    )
    options = parser.parse_args()
    if options.smoke:
        options.rounds = 1
    return options


if __name__ == "__main__":
    main()
