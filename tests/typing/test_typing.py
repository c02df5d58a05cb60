"""A type checker in its strictest mode finds nothing to say about a user's project, and sees a user's mistakes.

mypy here, pyright in `make lint`.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent
ROOT = FOLDER.parent.parent
PROJECTS = sorted(FOLDER.glob("*_project.py"))


def mypy(file: Path, cache: Path) -> str:
    command = [sys.executable, "-m", "mypy", "--strict", "--config-file=", f"--cache-dir={cache}", str(file)]
    environment = {**os.environ, "MYPYPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300, check=False)
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What mypy learned about the libraries, for the tests of this module."""
    return tmp_path_factory.mktemp("mypy")


@pytest.mark.parametrize("project", PROJECTS, ids=lambda project: project.stem)
def test_mypy_accepts_a_project(project: Path, cache: Path) -> None:
    assert mypy(project, cache) == "Success: no issues found in 1 source file\n"


MISTAKES = {
    "faststream_project": [
        ('broker.subscriber("orders", max_worker=2)', 'Unexpected keyword argument "max_worker"'),
        ('broker.subscriber("orders", max_workers="2")', 'Argument "max_workers"'),
        ('broker.publisher("orders", priority="high")', 'Argument "priority"'),
        ('OutboxPublisherArgs("orders", prority=1)', 'Unexpected keyword argument "prority"'),
        ('OutboxResponse(1, queue="orders", prority=1)', 'Unexpected keyword argument "prority"'),
        ('OutboxBroker(engine, require_transaction="maybe")', 'Argument "require_transaction"'),
        ('broker.publish_sync(1, "orders")', 'Missing named argument "session"'),
    ],
    "fastapi_project": [
        ("OutboxRouter(engine, apply_types=False)", 'Unexpected keyword argument "apply_types"'),
        ('OutboxRouter(engine, max_workers="2")', 'Argument "max_workers"'),
        ('OutboxRouter("postgresql://localhost/shop")', 'Argument 1 to "OutboxRouter"'),
        ("OutboxRouter(dependencies=[tenant])", "List item 0 has incompatible type"),
        ('router.subscriber("orders", respons_model=Parcel)', 'Unexpected keyword argument "respons_model"'),
        ('router.publisher("orders", prority=1)', 'Unexpected keyword argument "prority"'),
        ("router.after_startup(5)", 'Value of type variable "Hook"'),
        ("router.include_router(5)", 'Argument 1 to "include_router"'),
    ],
}


@pytest.mark.parametrize(
    ("project", "line", "complaint"),
    [(project, line, complaint) for project, mistakes in MISTAKES.items() for line, complaint in mistakes],
)
def test_mypy_sees_a_mistake(project: str, line: str, complaint: str, cache: Path, tmp_path: Path) -> None:
    file = tmp_path / "mistaken.py"
    file.write_text((FOLDER / f"{project}.py").read_text() + f"\n\n{line}\n")
    assert complaint in mypy(file, cache)
