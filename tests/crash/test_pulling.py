"""`kill -9` of processes that have pulled messages in hand."""

import pytest

from tests.crash.fleet import Fleet, Outbox, Worker, until

LEASE = 1.0
MAX_DELIVERIES = 2


def start(fleet: Fleet, *deadly: int, at_once: int) -> Worker:
    return fleet.run(
        "tests.crash.puller",
        url=fleet.outbox.dsn,
        ledger=str(fleet.ledger_file),
        gate=str(fleet.folder / "gate"),
        deadly=deadly,
        at_once=at_once,
        options={"lease_ttl_seconds": LEASE, "max_deliveries": MAX_DELIVERIES},
    )


def begun_by(fleet: Fleet, worker: Worker) -> set[int]:
    return {run.message for run in fleet.ledger.runs() if run.pid == worker.pid}


@pytest.mark.parametrize("backend", ["asyncpg", "sqlite"], indirect=True)
def test_a_message_that_kills_whoever_pulls_it_is_buried_and_takes_no_innocent_along(
    fleet: Fleet, outbox: Outbox
) -> None:
    """Its first start is not counted; the innocents in hand beside it become suspects, and are not counted either."""
    outbox.publish(1, 2, 3)
    first = start(fleet, 1, at_once=3)
    until(lambda: begun_by(fleet, first) == {1, 2, 3}, 15, f"all are in hand; it logged\n{first.logged()}")
    first.kill()
    (fleet.folder / "gate").touch()

    for _ in range(MAX_DELIVERIES):
        doomed = start(fleet, 1, at_once=1)
        until(lambda doomed=doomed: 1 in begun_by(fleet, doomed), 15, f"1 is in hand; it logged\n{doomed.logged()}")
        doomed.kill()
    start(fleet, 1, at_once=3)
    until(lambda: outbox.live() == 0, 15, "every message is acked or dead")

    assert outbox.dead() == {1: "max_deliveries"}
    assert fleet.ledger.handled() == {2, 3}
    assert [run.delivery for run in fleet.ledger.runs(1)] == [1, 1, 2]
    assert [run.delivery for run in fleet.ledger.runs(2, 3)] == [1, 1, 1, 1]
