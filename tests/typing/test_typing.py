"""A type checker in its strictest mode finds nothing to say about a user's project, and sees a user's mistakes.

mypy here; pyright, which pip cannot bring without downloading it from elsewhere, with `npx pyright -p tests/typing`.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
PROJECT = Path(__file__).parent / "faststream_project.py"


def mypy(file: Path, cache: Path) -> str:
    command = [sys.executable, "-m", "mypy", "--strict", "--config-file=", f"--cache-dir={cache}", str(file)]
    environment = {**os.environ, "MYPYPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300, check=False)
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What mypy learned about the libraries, for the tests of this module."""
    return tmp_path_factory.mktemp("mypy")


def test_mypy_accepts_a_project(cache: Path) -> None:
    assert mypy(PROJECT, cache) == "Success: no issues found in 1 source file\n"


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ('broker.subscriber("orders", max_worker=2)', 'Unexpected keyword argument "max_worker"'),
        ('broker.subscriber("orders", max_workers="2")', 'Argument "max_workers"'),
        ('broker.publisher("orders", priority="high")', 'Argument "priority"'),
        ('OutboxPublisherArgs("orders", prority=1)', 'Unexpected keyword argument "prority"'),
        ('OutboxResponse(1, queue="orders", prority=1)', 'Unexpected keyword argument "prority"'),
        ('OutboxBroker(engine, require_transaction="maybe")', 'Argument "require_transaction"'),
        ('broker.publish_sync(1, "orders")', 'Missing named argument "session"'),
    ],
)
def test_mypy_sees_a_mistake(line: str, complaint: str, cache: Path, tmp_path: Path) -> None:
    file = tmp_path / "mistaken.py"
    file.write_text(PROJECT.read_text() + f"\n\n{line}\n")
    assert complaint in mypy(file, cache)
