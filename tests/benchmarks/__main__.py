"""`make bench`: every workload on every system, interleaved, medians and ratios as tables.

`--smoke` runs each once with few messages: it proves that the benchmarks work, and says nothing about speed.
"""

import argparse
import importlib.util
import json
import os
import platform
import subprocess
import sys
from importlib.metadata import version
from statistics import median

from sqlalchemy import URL

from tests.databases import execute, postgres_database, postgres_server, with_driver

Figures = dict[str, float]
HAS_PEER = importlib.util.find_spec("faststream_outbox") is not None
HAS_TASKS = importlib.util.find_spec("django_tasks_db") is not None


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
    parser.add_argument("--smoke", action="store_true", help="few messages, one round, no figures worth quoting")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--messages", type=int, default=20_000)
    options = parser.parse_args()
    if options.smoke:
        options.rounds, options.messages = 1, 300
    with postgres_server() as server, postgres_database(server) as database:
        print_machine(server)
        bench = Bench(with_driver(database, "asyncpg"), options.rounds)
        drains(bench, options.messages)
        keys(bench, options.messages)
        publishes(bench, options.messages)
        wake_ups(bench, options.messages, smoke=options.smoke)
        fastapi(bench, options.messages)
        django(bench, options.messages)


class Bench:
    """Runs and remembers; each run is a process of its own."""

    def __init__(self, dsn: str, rounds: int) -> None:
        self._dsn = dsn
        self._rounds = rounds

    def medians(self, messages: int, *runs: tuple[str, ...]) -> dict[tuple[str, ...], Figures]:
        """The median of each figure over interleaved rounds; a run is system, workload, options."""
        found: dict[tuple[str, ...], list[Figures]] = {run: [] for run in runs}
        for _ in range(self._rounds):
            for run in runs:
                found[run].append(self._run(messages, *run))
        return {run: {name: median(f[name] for f in all_) for name in all_[0]} for run, all_ in found.items()}

    def _run(self, messages: int, system: str, workload: str, *options: str) -> Figures:
        command = [sys.executable, "-m", "tests.benchmarks.run", system, workload, self._dsn, str(messages), *options]
        done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
        if done.returncode != 0:
            sys.exit(f"{' '.join(command)} failed:\n{done.stderr[-4_000:]}")
        figures: Figures = json.loads(done.stdout)
        return figures


def drains(bench: Bench, messages: int) -> None:
    runs = [("raw", "drain"), ("ours", "drain"), ("ours", "drain", "best=1")]
    if HAS_PEER:
        runs += [("peer", "drain"), ("peer", "drain", "best=1")]
    found = bench.medians(messages, *runs)
    names = {
        ("raw", "drain"): "raw asyncpg loop, batches of 500",
        ("ours", "drain"): "shared-outbox, defaults",
        ("ours", "drain", "best=1"): "shared-outbox, uvloop, no logger",
        ("peer", "drain"): "faststream-outbox, defaults",
        ("peer", "drain", "best=1"): "faststream-outbox, best",
    }
    title = f"Drain {messages:,} messages, one process, handler(body: dict)"
    print_table(title, {names[run]: figures for run, figures in found.items()})
    if HAS_PEER:
        ours, best = found["ours", "drain"]["msg/s"], found["ours", "drain", "best=1"]["msg/s"]
        print(f"  defaults / peer's defaults: {ours / found['peer', 'drain']['msg/s']:.1f}x")
        print(f"  defaults / peer's best:     {ours / found['peer', 'drain', 'best=1']['msg/s']:.1f}x")
        print(f"  best / peer's best:         {best / found['peer', 'drain', 'best=1']['msg/s']:.1f}x")
    print(f"  defaults / raw loop:        {found['ours', 'drain']['msg/s'] / found['raw', 'drain']['msg/s']:.2f}x")


def keys(bench: Bench, messages: int) -> None:
    """With 50,000 blocked messages in front where 20,000 are claimed, and as many keys as a quarter of the messages."""
    many, blocked = messages // 4, messages * 5 // 2
    run = ("keys", "drain")
    unkeyed, few = run, (*run, f"keys={min(50, many)}")
    behind_one, behind_many = (*few, f"blocked={blocked}"), (*few, f"blocked={blocked}", f"blocked_keys={many}")
    names = {
        unkeyed: "without keys",
        (*run, f"keys={many}"): f"{many:,} keys",
        few: f"{min(50, many)} keys",
        (*run, "keys=1"): "1 key",
        behind_one: f"  {blocked:,} of a blocked key in front",
        behind_many: f"  {blocked:,} of {many:,} blocked keys",
    }
    found = bench.medians(messages, *names)
    print_table(f"Keys: claim {messages:,} messages, up to 500 at once", {names[run]: found[run] for run in names})
    for keyed in [run for run in names if run != unkeyed]:
        base, against = (few, "50 keys") if keyed in (behind_one, behind_many) else (unkeyed, "without keys")
        ratios = ", ".join(f"{name} {found[keyed][name] / found[base][name]:.2f}x" for name in found[base])
        print(f"  {names[keyed].strip()} / {against}: {ratios}")


def publishes(bench: Bench, messages: int) -> None:
    few = max(100, messages // 20)
    systems = ["ours", "peer"] if HAS_PEER else ["ours"]
    found = bench.medians(few, *[(system, "publish_one") for system in systems])
    figures = {
        "the INSERT written by hand": {"adds µs": found["ours", "publish_one"]["by hand adds µs"]},
        "shared-outbox": {"adds µs": found["ours", "publish_one"]["adds µs"]},
    }
    if HAS_PEER:
        figures["faststream-outbox"] = found["peer", "publish_one"]
    print_table("Publish one: what a message adds to a transaction with one domain row (AsyncSession)", figures)
    print(f"  ours / by hand: {figures['shared-outbox']['adds µs'] / _first(figures)['adds µs']:.2f}x")
    if HAS_PEER:
        print(f"  peer / ours:    {figures['faststream-outbox']['adds µs'] / figures['shared-outbox']['adds µs']:.2f}x")
    found = bench.medians(messages, ("raw", "publish_batch"), *[(system, "publish_batch") for system in systems])
    print_table("Publish 1,000 in a transaction", {run[0]: figures for run, figures in found.items()})
    ours, raw = found["ours", "publish_batch"]["msg/s"], found["raw", "publish_batch"]["msg/s"]
    print(f"  ours / raw: {ours / raw:.2f}x")


def wake_ups(bench: Bench, messages: int, *, smoke: bool) -> None:
    found = bench.medians(20 if smoke else 200, ("ours", "idle_latency"))
    print_table("Idle latency, COMMIT sent to handler started", {"shared-outbox": found["ours", "idle_latency"]})
    variants = {"none": "no notification at all", "ours": "shared-outbox", "naive": "pg_notify in every transaction"}
    for clients in (1, 4, 16):
        runs = [("ours", "concurrent_publishers", f"clients={clients}", f"variant={name}") for name in variants]
        few = 160 if smoke else {1: 500, 4: 2_000, 16: 6_000}[clients]
        found = bench.medians(few, *runs)
        figures = {variants[run[3].removeprefix("variant=")]: found[run] for run in runs}
        print_table(f"{clients} publishers, commits of about 2.5 ms, worker running", figures)
        print(f"  ours / none: {figures['shared-outbox']['tx/s'] / _first(figures)['tx/s']:.2f}x")


def fastapi(bench: Bench, messages: int) -> None:
    base, system = ("ours", "drain"), "fastapi_ours"
    names = {
        base: "OutboxBroker, handler(body: dict)",
        (system, "drain"): "OutboxRouter, the same handler",
        (system, "drain", "handler=contexts"): "  and message, broker, logger",
        (system, "drain", "handler=dependency"): "  or a dependency with yield",
    }
    found = bench.medians(messages, *names)
    print_table("FastAPI: drain, one process, defaults", {names[run]: figures for run, figures in found.items()})
    cost = {run: figures["CPU µs/msg"] for run, figures in found.items()}
    print(f"  OutboxRouter / OutboxBroker, CPU: {cost[system, 'drain'] / cost[base]:.2f}x")
    print(
        f"  three annotations add:            {cost[system, 'drain', 'handler=contexts'] - cost[system, 'drain']:.1f} µs"
    )


def django(bench: Bench, messages: int) -> None:
    """In a Django project; django-tasks-db gets a twentieth of the messages, since it takes as long for them."""
    one = ("django_ours", "publish_one")
    figures = bench.medians(max(200, messages // 5), one)[one]
    ours, by_hand = figures["ours µs"], figures["by hand µs"]
    rows = {"cursor.execute of the same INSERT": {"µs": by_hand}, "shared-outbox, publish()": {"µs": ours}}
    print_table("Django: publish one, inside atomic()", rows)
    print(f"  ours / by hand: {ours / by_hand:.2f}x")
    drain, drain_async = ("django_ours", "drain"), ("django_ours", "drain_async")
    names = {drain: "shared-outbox, sync handler", drain_async: "shared-outbox, async handler"}
    found = bench.medians(messages // 2, drain, drain_async)
    if HAS_TASKS:
        peer = ("django_tasks_db", "drain")
        names[peer] = "django-tasks-db, db_worker"
        found |= bench.medians(max(50, messages // 20), peer)
    print_table("Django: drain, one process, defaults", {names[run]: figures for run, figures in found.items()})
    if HAS_TASKS:
        print(f"  sync handler / django-tasks-db: {found[drain]['msg/s'] / found[peer]['msg/s']:.1f}x")


def _first(figures: dict[str, Figures]) -> Figures:
    return next(iter(figures.values()))


def print_machine(server: URL) -> None:
    (server_version,) = execute(server, "SHOW server_version")[0]
    packages = ["SQLAlchemy", "asyncpg", "faststream"] + (["faststream-outbox"] if HAS_PEER else []) + ["Django"]
    packages += ["django-tasks-db"] if HAS_TASKS else []
    versions = ", ".join(f"{package} {version(package)}" for package in packages)
    print(f"{os.cpu_count()} cores, Python {platform.python_version()}, PostgreSQL {server_version}, {versions}")


def print_table(title: str, rows: dict[str, Figures]) -> None:
    columns = list(_first(rows))
    print(f"\n{title}")
    print(f"  {'':<36}" + "".join(f"{column:>14}" for column in columns))
    for name, figures in rows.items():
        print(f"  {name:<36}" + "".join(f"{figures[column]:>14,.1f}" for column in columns), flush=True)


if __name__ == "__main__":
    main()
