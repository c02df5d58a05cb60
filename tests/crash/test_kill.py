"""`kill -9` of workers at named points, and of a publisher before its commit; the campaign kills at random."""

import pytest

from tests.crash.fleet import Fleet, Outbox, until

LEASE = 2.0
LATE = 2.0  # seconds after the lease in which a message must be handled again

POINTS = {"claimed": 0, "running": 2, "handled": 2, "settling": 2}  # and how many handlers have begun there


@pytest.mark.parametrize("backend", ["asyncpg", "psycopg", "sqlite"], indirect=True)
def test_a_worker_killed_at_any_point_loses_nothing(fleet: Fleet, outbox: Outbox) -> None:
    """Two messages for each point, of which one is to be retried, so that a settlement has two statements."""
    numbers = {point: (10 * place, 10 * place + 1) for place, point in enumerate(POINTS)}
    options = {"max_workers": 2, "lease_ttl_seconds": LEASE}
    doomed = {
        point: fleet.start(queues=[point], options=options, dies=point, seconds=0.1, failing=numbers[point][1:])
        for point in POINTS
    }
    for point in POINTS:
        outbox.publish(*numbers[point], queue=point)
    died = {point: until(lambda worker=worker: not worker.alive, 15, point) for point, worker in doomed.items()}
    begun = {point: len(fleet.ledger.runs(*numbers[point])) for point in POINTS}

    fleet.start(queues=[*POINTS], options=options)
    fleet.settled(within=15)

    redelivered = {
        point: [run for run in fleet.ledger.runs(*numbers[point]) if run.pid != doomed[point].pid] for point in POINTS
    }
    late = {point: max(run.begun for run in redelivered[point]) - died[point] for point in POINTS}
    published = [number for pair in numbers.values() for number in pair]
    fleet.report(f"killed when {', '.join(POINTS)}", published, max(late.values()))
    assert [worker.ended(within=0) for worker in doomed.values()] == [-9] * 4
    assert fleet.ledger.handled() == set(published)
    assert begun == POINTS
    assert fleet.ledger.duplicates() <= sum(POINTS.values())
    assert max(late.values()) < LEASE + LATE
    assert outbox.dead() == {}


def test_a_worker_killed_while_its_settlement_is_under_way_loses_nothing(fleet: Fleet, outbox: Outbox) -> None:
    options = {"max_workers": 2, "lease_ttl_seconds": LEASE}
    gate = fleet.folder / "gate"
    doomed = fleet.start(options=options, gate=str(gate))
    outbox.publish(1, 2)
    until(lambda: len(fleet.ledger.runs()) == 2, 15, "both handlers run")
    with outbox.locked():
        gate.touch()
        until(outbox.somebody_waits, 5, "the settlement was sent, and waits for the lock")
        died = doomed.kill()

    fleet.start(options=options)
    fleet.settled(within=10)

    late = max([run.begun - died for run in fleet.ledger.runs() if run.pid != doomed.pid], default=None)
    fleet.report("killed when the settlement was sent", [1, 2], late)
    assert fleet.ledger.handled() == {1, 2}
    assert fleet.ledger.duplicates() <= 2
    assert late is None or late < LEASE + LATE


def test_a_publisher_killed_before_its_commit_leaves_nothing(fleet: Fleet, outbox: Outbox) -> None:
    fleet.start()
    fleet.started()
    publisher = fleet.run("tests.crash.publisher", url=outbox.dsn)
    until(lambda: "inserted" in publisher.logged(), 15, "the publisher has inserted")

    publisher.kill()
    until(lambda: not outbox.somebody_is_in_a_transaction(), 5, "the server has seen it")
    outbox.publish(2)
    fleet.settled(within=5)

    fleet.report("publisher killed before its commit", [2])
    assert fleet.ledger.handled() == {2}
