"""The shape of the project: what may import what, what is private, what lies where."""

import importlib
import json
import re
import subprocess
import sys
from fnmatch import fnmatch
from pathlib import Path

import pytest

from tests.parallel import unit_of

ROOT = Path(__file__).parent.parent
PACKAGES = ("outbox_core", "outbox_sqlalchemy", "outbox_django", "outbox_fastapi")
COMPAT = "outbox_core/faststream/_compat.py"
FRAMEWORKS = {"sqlalchemy", "faststream", "django", "fastapi", "starlette", "pydantic"}
DRIVERS = {"asyncpg", "psycopg", "aiosqlite"}
TOP_LEVEL = {"README.md", "LICENSE", "CHANGELOG.md", "Makefile", "pyproject.toml", "docs", "tests", *PACKAGES}


def test_the_import_contracts_are_kept() -> None:
    command = [str(Path(sys.executable).with_name("lint-imports")), "--no-cache"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_only_compat_imports_what_is_private_in_faststream() -> None:
    private = re.compile(r"^\s*(?:from|import) faststream\._", re.MULTILINE)
    sources = [path for package in PACKAGES for path in (ROOT / package).rglob("*.py")]
    assert [str(path.relative_to(ROOT)) for path in sources if private.search(path.read_text())] == [COMPAT]


def test_importing_the_core_imports_no_framework_and_no_driver() -> None:
    modules = [
        str(path.relative_to(ROOT).with_suffix("")).replace("/", ".").removesuffix(".__init__")
        for path in (ROOT / "outbox_core").rglob("*.py")
        if "faststream" not in path.parts
    ]
    program = f"""
import importlib, json, sys
for name in {modules}:
    importlib.import_module(name)
print(json.dumps(list(sys.modules)))
"""
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True
    )
    loaded = {name.partition(".")[0] for name in json.loads(done.stdout)}
    assert loaded.isdisjoint(FRAMEWORKS | DRIVERS)


def test_the_top_level_holds_what_the_design_names_and_nothing_else() -> None:
    ignored = [line.removesuffix("/") for line in (ROOT / ".gitignore").read_text().splitlines()]
    visible = {path.name for path in ROOT.iterdir() if not path.name.startswith(".")}
    assert {name for name in visible if not any(fnmatch(name, pattern) for pattern in ignored)} <= TOP_LEVEL


def test_a_file_with_fixtures_of_its_own_is_run_by_one_process() -> None:
    sources = {str(path.relative_to(ROOT)): path.read_text() for path in (ROOT / "tests").rglob("test_*.py")}
    files = [
        name for name, text in sources.items() if re.search(r'^@pytest\.fixture\(scope="module"', text, re.MULTILINE)
    ]
    assert [name for name in files if unit_of(f"{name}::test_one") != unit_of(f"{name}::test_two")] == []


@pytest.mark.parametrize("package", PACKAGES)
def test_a_package_is_typed(package: str) -> None:
    assert (ROOT / package / "py.typed").is_file()


@pytest.mark.parametrize("module", ["outbox_core", "outbox_core.faststream", "outbox_core.sql", "outbox_sqlalchemy"])
def test_public_names_resolve(module: str) -> None:
    imported = importlib.import_module(module)
    assert [name for name in imported.__all__ if not hasattr(imported, name)] == []
