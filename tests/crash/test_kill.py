"""`kill -9` at named points, and of random workers."""

from random import Random

import pytest

from tests.crash.fleet import Fleet, Outbox, Worker, until

LEASE = 2.0
LATE = 2.0  # seconds after the lease in which a message must be handled again

# Where the worker dies, and what it had then: messages whose handler had begun, messages that were settled.
POINTS = ["claimed", "running", "handled", "settling"]


@pytest.mark.parametrize("backend", ["asyncpg", "psycopg", "sqlite"], indirect=True)
def test_a_worker_killed_at_any_point_loses_nothing(fleet: Fleet, outbox: Outbox) -> None:
    numbers = {point: (10 * place, 10 * place + 1) for place, point in enumerate(POINTS)}
    options = {"max_workers": 2, "lease_ttl_seconds": LEASE}
    doomed = {
        point: fleet.start(queues=[point], options=options, dies=point, seconds=0.1, failing=numbers[point][1:])
        for point in POINTS
    }
    for point in POINTS:
        outbox.publish(*numbers[point], queue=point)
    died = {point: until(lambda worker=worker: not worker.alive, 15, point) for point, worker in doomed.items()}
    begun = {point: [run.message for run in fleet.ledger.runs(*numbers[point])] for point in POINTS}

    fleet.start(queues=POINTS, options=options)
    fleet.settled(within=15)

    for point in POINTS:
        later = [run for run in fleet.ledger.runs(*numbers[point]) if run.pid != doomed[point].pid]
        assert doomed[point].ended(within=0) == -9, point
        assert {run.message for run in later} | fleet.ledger.handled() >= set(numbers[point]), point
        assert sum(run.message in begun[point] for run in later) <= len(begun[point]), point
        assert max(run.begun for run in later) - died[point] < LEASE + LATE, point
    assert [len(begun[point]) for point in POINTS] == [0, 2, 2, 2]
    everything = [number for pair in numbers.values() for number in pair]
    longest = max(run.begun for run in fleet.ledger.runs()) - min(died.values())
    fleet.report(f"killed when {', '.join(POINTS)}", everything, longest)
    assert fleet.ledger.duplicates() <= 6


def test_a_worker_killed_while_its_settlement_waits_in_the_database_loses_nothing(fleet: Fleet, outbox: Outbox) -> None:
    options = {"max_workers": 2, "lease_ttl_seconds": LEASE}
    gate = fleet.folder / "gate"
    doomed = fleet.start(options=options, gate=str(gate))
    outbox.publish(1, 2)
    until(lambda: len(fleet.ledger.runs()) == 2, 15, "both handlers run")
    with outbox.locked():
        gate.touch()
        until(outbox.somebody_waits, 5, "the settlement waits for the lock")
        died = doomed.kill()

    fleet.start(options=options)
    fleet.settled(within=10)

    longest = max(run.begun for run in fleet.ledger.runs()) - died
    fleet.report("killed when the settlement was sent", [1, 2], longest)
    assert fleet.ledger.handled() == {1, 2}
    assert fleet.ledger.duplicates() <= 2
    assert longest < LEASE + LATE


def test_random_kills_of_a_fleet_repeat_no_more_than_was_in_flight(fleet: Fleet, outbox: Outbox) -> None:
    random = Random(7)
    orders = {"options": {"max_workers": 4, "lease_ttl_seconds": LEASE}, "seconds": 0.01}
    for _ in range(3):
        fleet.start(**orders)
    fleet.started()
    published = range(2_000)
    outbox.publish(*published)
    in_flight = 0
    longest = 0.0
    died: list[tuple[Worker, float]] = []

    for _ in range(8):
        handled = len(fleet.ledger.handled())
        until(lambda handled=handled: len(fleet.ledger.handled()) > handled + 100, 10, "a hundred more are handled")
        victim = random.choice([worker for worker in fleet.workers if worker.alive])
        died.append((victim, victim.kill()))
        in_flight += len(outbox.live_numbers() & {run.message for run in fleet.ledger.runs() if run.pid == victim.pid})
        fleet.start(**orders)
    fleet.settled(within=30)

    for worker, moment in died:
        cut = {run.message for run in fleet.ledger.runs() if run.pid == worker.pid and run.ended is None}
        again = [run.begun for run in fleet.ledger.runs(*cut) if run.begun > moment] if cut else []
        longest = max([longest, *(begun - moment for begun in again)])
    fleet.report(f"8 random kills, {in_flight} messages in flight", published, longest)
    assert fleet.ledger.handled() == set(published)
    assert outbox.dead() == {}
    assert fleet.ledger.duplicates() <= in_flight
    assert longest < LEASE + LATE


def test_a_publisher_killed_before_its_commit_leaves_nothing(fleet: Fleet, outbox: Outbox) -> None:
    fleet.start()
    fleet.started()
    publisher = fleet.run("tests.crash.publisher", url=str(outbox.url))
    until(lambda: "inserted" in publisher.logged(), 15, "the publisher has inserted")

    publisher.kill()
    until(lambda: not outbox.somebody_is_in_a_transaction(), 5, "the server has seen it")
    outbox.publish(2)
    fleet.settled(within=5)

    fleet.report("publisher killed before its commit", [2])
    assert fleet.ledger.handled() == {2}
