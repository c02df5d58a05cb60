"""Handlers that outlive their lease, and workers that are frozen for longer than it."""

from signal import SIGCONT, SIGSTOP

import pytest

from tests.crash.fleet import Fleet, Outbox, until


@pytest.mark.parametrize("backend", ["sqlite"], indirect=True)
def test_a_handler_three_leases_long_runs_once_among_several_workers(fleet: Fleet, outbox: Outbox) -> None:
    for _ in range(3):
        fleet.start(options={"max_workers": 2, "lease_ttl_seconds": 1.0}, seconds=3.3)
    fleet.started()
    published = range(5)
    outbox.publish(*published)

    fleet.settled(within=10)

    fleet.report("handlers of three leases", published)
    assert sorted(run.message for run in fleet.ledger.runs()) == list(published)
    assert not any("lost the lease" in worker.logged() for worker in fleet.workers)


def test_a_worker_frozen_beyond_its_lease_changes_nothing_when_it_thaws(fleet: Fleet, outbox: Outbox) -> None:
    """The other worker has acked 1, planned a retry of 2 in an hour, and buried 3."""
    options = {"max_workers": 3, "lease_ttl_seconds": 2.0}
    gate = fleet.folder / "gate"
    frozen = fleet.start(options=options, gate=str(gate))
    fleet.started()
    outbox.publish(1, 2, 3)
    until(lambda: len(fleet.ledger.runs()) == 3, 5, "all three handlers run")
    frozen.send(SIGSTOP)
    froze = until(frozen.frozen, 5, "the worker is frozen")
    other = fleet.start(options=options, failing=[2], rejected=[3], retry=3_600.0)
    until(
        lambda: len(fleet.ledger.handled()) == 3 and not outbox.leased_numbers(), 10, "the other worker has settled all"
    )
    longest = max(run.begun for run in fleet.ledger.runs()) - froze
    rows, dead = outbox.rows(), outbox.dead()

    gate.touch()
    frozen.send(SIGCONT)
    until(lambda: frozen.logged().count("lost the lease") == 3, 10, "the thawed worker says what it lost")

    assert all(run.ended for run in fleet.ledger.runs())
    assert outbox.rows() == rows
    assert [(int(row["payload"]), row["attempts_count"], row["acquired_token"]) for row in rows] == [(2, 1, None)]
    assert outbox.dead() == dead == {3: "rejected"}
    other.kill()
    outbox.publish(4)
    until(lambda: 4 in fleet.ledger.handled(), 5, "the thawed worker goes on")
    fleet.report("frozen beyond the lease", [1, 2, 3, 4], longest)
    assert frozen.alive
    assert fleet.ledger.duplicates() == 3
    assert longest < 4.0
