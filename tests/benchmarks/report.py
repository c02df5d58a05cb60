"""The figures of a chapter as a table, and its ratios beside their targets."""

import os
import platform
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version

from sqlalchemy import URL

from tests.benchmarks.bench import Figures
from tests.benchmarks.chapters import Chapter, Limit, Ratio
from tests.databases import execute

PACKAGES = (
    *("SQLAlchemy", "asyncpg", "psycopg", "faststream", "Django", "fastapi", "uvloop"),
    *("faststream-outbox", "pgqueuer", "procrastinate", "django-tasks-db", "nats-py", "redis"),
)
WIDTH = 38


def machine(server: URL) -> str:
    """What the figures were taken on."""
    (server_version,) = execute(server, "SHOW server_version")[0]
    versions = ", ".join(f"{package} {found}" for package in PACKAGES if (found := _version(package)))
    return f"{os.cpu_count()} cores, Python {platform.python_version()}, PostgreSQL {server_version}, {versions}"


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def table(chapter: Chapter, messages: int, found: Mapping[str, Figures]) -> str:
    """One line for each run."""
    columns = list(dict.fromkeys(name for figures in found.values() for name in figures))
    lines = [f"\n{chapter.title} ({messages:,})", f"  {'':<{WIDTH}}" + "".join(f"{column:>16}" for column in columns)]
    for label, figures in found.items():
        cells = (f"{figures[column]:,.1f}" if column in figures else "" for column in columns)
        lines.append(f"  {label:<{WIDTH}}" + "".join(f"{cell:>16}" for cell in cells))
    return "\n".join(lines)


def targets(chapter: Chapter, found: Mapping[str, Figures]) -> str:
    """One line for each ratio or limit whose runs were made."""
    lines = []
    for one in chapter.ratios:
        value = _value(one, found)
        if value is not None:
            number = f"{value:.2f}x" if isinstance(one, Ratio) else f"{value:.1f}"
            lines.append(f"  {one.text:<{WIDTH}}{number:>16}{_target(one, value)}")
    return "\n".join(lines)


def _value(one: Ratio | Limit, found: Mapping[str, Figures]) -> float | None:
    if isinstance(one, Limit):
        label, name = one.figure
        return found[label][name] if label in found else None
    (over, over_name), (under, under_name) = one.over, one.under
    if over not in found or under not in found:
        return None
    return found[over][over_name] / found[under][under_name]


def _target(one: Ratio | Limit, value: float) -> str:
    if one.least is not None:
        return f"   at least {one.least:g}{'' if value >= one.least else ': BEHIND'}"
    if one.most is not None:
        return f"   at most {one.most:g}{'' if value <= one.most else ': BEHIND'}"
    return ""
