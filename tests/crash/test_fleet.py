"""Several processes on one queue, and no fault."""

import pytest

from tests.crash.fleet import Fleet, Outbox


@pytest.mark.parametrize("backend", ["asyncpg", "psycopg", "sqlite"], indirect=True)
def test_four_processes_handle_each_message_exactly_once(fleet: Fleet, outbox: Outbox) -> None:
    for _ in range(4):
        fleet.start(options={"max_workers": 4}, seconds=0.005)
    fleet.started()
    published = range(2_000)
    outbox.publish(*published)

    fleet.settled(within=30)

    fleet.report("4 processes, no fault", published)
    runs = fleet.ledger.runs()
    assert sorted(run.message for run in runs) == list(published)
    assert len({run.pid for run in runs}) > 1
    assert not any("Traceback" in worker.logged() for worker in fleet.workers)
