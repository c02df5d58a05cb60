"""SIGTERM under uvicorn: what runs comes to its end, what has not begun is given back."""

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.places import Place, until

PATIENCE = 20.0  # seconds, for a process that imports everything


@pytest.fixture
async def server(both: Place, tmp_path: Path) -> AsyncIterator[asyncio.subprocess.Process]:
    """`uvicorn tests.fastapi.shop:app` on an outbox with five orders, the first of which is being handled."""
    await both.broker().publish_batch(*range(5), queue="orders")
    environment = os.environ | {
        "SHOP_FOLDER": str(tmp_path),
        "SHOP_DSN": both.async_url.render_as_string(hide_password=False),
    }
    command = ("-m", "uvicorn", "tests.fastapi.shop:app", "--port", "0", "--log-level", "warning")
    process = await asyncio.create_subprocess_exec(sys.executable, *command, env=environment)
    try:
        await until(lambda: files(tmp_path, "begun"), ["begun 0"], PATIENCE)
        yield process
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


def files(folder: Path, kind: str) -> list[str]:
    return sorted(path.name for path in folder.glob(f"{kind} *"))


def held(place: Place) -> int:
    return sum(row.acquired_token is not None for row in place.rows())


async def test_a_stop_finishes_what_runs_and_gives_the_rest_back(
    server: asyncio.subprocess.Process, both: Place, tmp_path: Path
) -> None:
    await until(lambda: held(both), 5)
    server.send_signal(signal.SIGTERM)
    await until(lambda: held(both), 1, PATIENCE)  # given back at once, while the first one still runs
    assert files(tmp_path, "done") == []
    (tmp_path / "go on").touch()
    await asyncio.wait_for(server.wait(), PATIENCE)
    assert files(tmp_path, "begun") == ["begun 0"]
    assert files(tmp_path, "done") == ["done 0"]
    left = [(int(row.payload), row.deliveries_count, row.attempts_count, row.acquired_token) for row in both.rows()]
    assert left == [(number, 0, 0, None) for number in (1, 2, 3, 4)]
