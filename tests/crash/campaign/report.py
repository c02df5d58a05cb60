"""A verdict as one row of a table, which is Markdown as well."""

from tests.crash.campaign.verdict import Verdict

_COLUMNS = (
    "scenario",
    "strikes",
    "published",
    "lost",
    "stuck",
    "duplicates",
    "effects",
    "redelivery",
    "recovery",
    "gave up",
    "order",
    "dead",
    "took",
    "verdict",
)
HEAD = f"| {' | '.join(_COLUMNS)} |\n|{'---|' * len(_COLUMNS)}"


def line(verdict: Verdict) -> str:
    """Its figures in the order of `HEAD`; seconds where they are times."""
    wait = "" if verdict.wait is None or verdict.name != "hot" else f", quiet waits {verdict.wait * 1000:.0f} ms"
    cells = (
        verdict.name,
        verdict.strikes,
        f"{verdict.published:,}",
        verdict.lost,
        verdict.stuck,
        f"{verdict.duplicates} ({verdict.repeated})",
        "-" if verdict.effects is None else verdict.effects,
        _seconds(verdict.redelivery),
        _seconds(verdict.recovery),
        verdict.gave_up,
        verdict.violations,
        verdict.dead,
        f"{verdict.seconds:.0f}",
        ("BROKEN" if verdict.broken else "kept") + wait,
    )
    return f"| {' | '.join(map(str, cells))} |"


def _seconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"
