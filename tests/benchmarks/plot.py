"""The plot of docs/explanation/speed.md, from the figures of a run.

    python -m tests.benchmarks --json figures.json && python -m tests.benchmarks.plot figures.json docs/explanation/speed.svg

It needs the dependency group `plot`.
"""

import json
import sys
from pathlib import Path

import matplotlib
from matplotlib import pyplot

matplotlib.use("svg")
OURS, PEERS, RAW = "#1f6f8b", "#b8b8b8", "#e0c068"


def main() -> None:
    source, target = map(Path, sys.argv[1:])
    figures = json.loads(source.read_text())["figures"]
    drain = {label: row["msg/s"] for label, row in figures["drain"].items()}
    backlog = {label.removeprefix("backlog of "): row["msg/s"] for label, row in figures["backlog"].items()}
    plot, (left, right) = pyplot.subplots(1, 2, figsize=(12, 4.5), width_ratios=(2, 1), layout="constrained")
    labels = sorted(drain, key=lambda label: drain[label])
    left.barh(labels, [drain[label] for label in labels], color=[_colour(label) for label in labels], log=True)
    left.set_xlabel("messages a second, one process (logarithmic)")
    left.set_title("Drain 20,000 messages, handler(body: dict)", loc="left")
    sizes = [label for label in backlog if label in {"1k", "10k", "100k", "1M"}]
    right.plot(sizes, [backlog[size] for size in sizes], color=OURS, marker="o")
    right.set_ylim(bottom=0)
    right.set_xlabel("messages in the table")
    right.set_title("Messages a second against a backlog", loc="left")
    plot.savefig(target)


def _colour(label: str) -> str:
    return OURS if label.startswith("shared-outbox") else RAW if label.startswith("raw") else PEERS


if __name__ == "__main__":
    main()
