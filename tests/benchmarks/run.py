"""One run in a process of its own: `python -m tests.benchmarks.run ours drain DSN 20000 best=1`; prints its figures."""

import asyncio
import importlib
import logging
import sys
from typing import Any


def main() -> None:
    system, workload, dsn, messages, *rest = sys.argv[1:]
    options: dict[str, Any] = dict(argument.split("=", 1) for argument in rest)
    options = {name: int(value) if value.isdigit() else value for name, value in options.items()}
    if "best" in options:
        options["best"] = bool(options["best"])
    sys.stdout, figures = sys.stderr, sys.stdout  # handlers' logs must not mix with the result
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING)
    work = getattr(importlib.import_module(f"tests.benchmarks.systems.{system}"), workload)
    result = _runner(bool(options.get("best")))(work(dsn, int(messages), **options))
    figures.write(result.as_json())


def _runner(best: bool) -> Any:
    if not best:
        return asyncio.run
    import uvloop

    return uvloop.run


if __name__ == "__main__":
    main()
