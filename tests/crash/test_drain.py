"""SIGTERM: what runs may finish, what has not begun goes to others at once."""

from signal import SIGTERM
from time import monotonic

import pytest

from tests.crash.fleet import Fleet, Outbox, until


@pytest.mark.parametrize("backend", ["asyncpg", "psycopg", "sqlite"], indirect=True)
def test_a_terminated_worker_finishes_what_runs_and_gives_back_what_does_not(fleet: Fleet, outbox: Outbox) -> None:
    gate = fleet.folder / "gate"
    leaving = fleet.start(options={"max_workers": 2, "prefetch": 10, "lease_ttl_seconds": 30.0}, gate=str(gate))
    fleet.started()
    published = range(10)
    outbox.publish(*published)
    until(lambda: len(outbox.leased_numbers()) == 10 and len(fleet.ledger.runs()) == 2, 5, "two run and eight are held")
    staying = fleet.start(options={"max_workers": 2})
    fleet.started(staying)

    leaving.send(SIGTERM)
    told = monotonic()
    taken = until(lambda: len(fleet.ledger.handled()) == 8, 5, "the other worker has handled what was given back")
    gate.touch()
    code = leaving.ended(within=5)
    fleet.settled(within=5)

    fleet.report("SIGTERM", published, taken - told)
    assert code == 0
    assert fleet.ledger.handled() == set(published)
    assert fleet.ledger.duplicates() == 0
    assert {run.delivery for run in fleet.ledger.runs()} == {1}
    assert [run.message for run in fleet.ledger.runs() if run.pid == leaving.pid] == [0, 1]
    assert taken - told < 3.0
    assert not any("Traceback" in worker.logged() for worker in fleet.workers)
