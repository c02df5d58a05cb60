"""Two brokers in one process share its last resort: the one timer whose signal ends it."""

import os
import signal
import subprocess
import sys
from pathlib import Path

from outbox_core.watchdog import LastResort

PROGRAM = """
import asyncio, os, re
os.cpu_count = lambda: 1  # of whose number the limit of CPU time is a multiple

from sqlalchemy import MetaData
from sqlalchemy.ext.asyncio import create_async_engine
from outbox_sqlalchemy import OutboxBroker, make_outbox_tables

metadata = MetaData()
engine = create_async_engine("sqlite+aiosqlite:///outbox.db")
first, second = (
    OutboxBroker(engine, outbox_table=make_outbox_tables(metadata, prefix), stuck_timeout=1.0, logger=None)
    for prefix in ("first", "second")
)


@first.subscriber("mails")
async def send(body: str) -> None: ...


@second.subscriber("orders")
async def handle(body: str) -> None:
    await first.stop()
    print("stopped", flush=True)
    re.match(r"(a+)+b", "a" * 64)  # keeps the interpreter's lock for longer than anybody waits


async def main() -> None:
    async with engine.begin() as connection:
        await connection.run_sync(metadata.create_all)
    await first.start()
    await second.start()
    await second.publish("x", "orders")
    await asyncio.sleep(60)


asyncio.run(main())
"""


def test_one_that_blocks_after_the_other_was_stopped_is_ended_with_its_stack(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert done.stdout == "stopped\n"
    assert done.returncode == -signal.SIGVTALRM, done.stderr
    assert "in handle" in done.stderr


def test_the_shortest_limit_counts_as_long_as_somebody_wants_it() -> None:
    cores = max(2, os.cpu_count() or 1)
    long, short, never = LastResort(100.0), LastResort(10.0), LastResort(None)

    for one in (long, short, never):
        one.arm()
    long.arm()
    assert 9 * cores < seconds_left() < 11 * cores  # the kernel counts in ticks
    short.disarm()
    assert 99 * cores < seconds_left() < 101 * cores
    never.disarm()
    short.disarm()
    assert seconds_left() > 0
    long.disarm()
    assert seconds_left() == 0


def test_a_timer_that_somebody_else_has_set_is_left_alone() -> None:
    signal.setitimer(signal.ITIMER_VIRTUAL, 1_000.0)
    try:
        mine = LastResort(1.0)
        mine.arm()
        assert seconds_left() > 900
        mine.disarm()
        assert seconds_left() > 900
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)


def seconds_left() -> float:
    return signal.getitimer(signal.ITIMER_VIRTUAL)[0]
