"""FastStream's own FastAPI plugin, which FastStream 1.0 removes, has no part in ours."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]

REFUSING = """\
import re, runpy, sys

class Removed:
    def find_spec(self, name, path=None, target=None):
        if re.fullmatch(r"faststream\\._internal\\.fastapi(\\..*)?|faststream\\.\\w+\\.fastapi(\\..*)?", name):
            raise ModuleNotFoundError(f"{name} was removed", name=name)

sys.meta_path.insert(0, Removed())
"""


def run(program: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-W", "error", "-c", REFUSING + program]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)


def test_the_quickstart_runs_without_it() -> None:
    done = run("runpy.run_path('tests/fastapi/alone.py', run_name='__main__')")

    assert done.returncode == 0, done.stderr
    assert "FastAPI alone: " in done.stdout


def test_it_would_be_missed_if_it_were_used() -> None:
    done = run("import faststream._internal.fastapi")

    assert "ModuleNotFoundError: faststream._internal.fastapi was removed" in done.stderr
