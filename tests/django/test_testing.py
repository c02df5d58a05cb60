"""`outbox_django.testing` in use: the tests of a sample project pass, run as its authors would run them."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from uuid import uuid4

import pytest
from sqlalchemy import URL

SAMPLE = Path(__file__).parent / "sample"
PATIENCE = 60.0  # seconds


@pytest.fixture(params=["postgresql", "sqlite"])
def settings(request: pytest.FixtureRequest) -> dict[str, str]:
    """`settings.DATABASES["default"]` of each kind; Django makes the test database from it, and drops it."""
    if request.param == "sqlite":
        return {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}
    server: URL = request.getfixturevalue("server")
    return {
        "ENGINE": "django.db.backends.postgresql",
        "NAME": f"sample_{uuid4().hex[:12]}",
        "USER": server.username or "",
        "PASSWORD": server.password or "",
        "HOST": server.host or str(server.query.get("host", "")),
        "PORT": str(server.port or ""),
    }


SQLITE = pytest.mark.parametrize("settings", ["sqlite"], indirect=True)


def test_with_the_test_cases_of_django(settings: dict[str, str]) -> None:
    done = run("-W", "error", "manage.py", "test", settings=settings)

    assert done.returncode == 0, done.stderr
    assert re.search(r"^Ran \d\d tests in", done.stderr, re.MULTILINE)


def test_with_pytest(settings: dict[str, str]) -> None:
    done = run("-m", "pytest", "shop/pytest_shop.py", settings=settings)

    assert done.returncode == 0, done.stdout + done.stderr


@SQLITE
def test_an_asynchronous_test_in_the_transaction_of_another_thread_is_refused(settings: dict[str, str]) -> None:
    done = run("-m", "pytest", "shop/pytest_in_error.py", settings=settings)

    assert "1 error in" in done.stdout
    assert "\nan asynchronous test that uses the outbox needs @pytest.mark.django_db(transaction=True): " in done.stdout


@SQLITE
def test_an_outbox_that_migrations_do_not_make_is_missed(settings: dict[str, str]) -> None:
    program = "shop.tests.ZNothingIsLeft"

    done = run("manage.py", "test", program, settings=settings, outbox={"MANAGED": False})

    assert done.returncode == 1
    assert "so the test database gets no outbox; set it to True for tests" in done.stderr


def test_the_plugin_leaves_alone_who_has_no_django(tmp_path: Path) -> None:
    (tmp_path / "test_it.py").write_text(
        """
import sys

def test_nothing_is_imported():
    assert {"asgiref", "faststream", "outbox_django.testing"}.isdisjoint(sys.modules)
"""
    )
    pytest_without_django = "import sys; sys.modules['django'] = None; import pytest; sys.exit(pytest.main())"

    done = run("-c", pytest_without_django, "-v", "-p", "no:django", "-p", "no:cacheprovider", folder=tmp_path)

    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"^plugins: .*shared-outbox", done.stdout, re.MULTILINE)


def run(
    *arguments: str,
    folder: Path = SAMPLE,
    settings: dict[str, str] | None = None,
    outbox: dict[str, object] | None = None,
) -> subprocess.CompletedProcess[str]:
    environment = {"SAMPLE_DATABASE": json.dumps(settings), "SAMPLE_OUTBOX": json.dumps(outbox or {})}
    inherited = {name: value for name, value in os.environ.items() if name != "DJANGO_SETTINGS_MODULE"}
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env=inherited | environment,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
