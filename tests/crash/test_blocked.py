"""Handlers that block the event loop: for a while, for ever, and without letting any other thread run."""

from itertools import pairwise
from signal import SIGVTALRM
from time import monotonic

import pytest

from outbox_core.watchdog import STUCK_EXIT_CODE
from tests.crash.fleet import Fleet, Outbox, Worker, until

MAX_DELIVERIES = 2


@pytest.mark.parametrize("backend", ["asyncpg", "psycopg", "sqlite"], indirect=True)
def test_a_loop_that_is_blocked_for_three_leases_keeps_its_messages(fleet: Fleet, outbox: Outbox) -> None:
    orders = {"options": {"max_workers": 3, "lease_ttl_seconds": 1.0}, "seconds": 0.1, "blocking": [0], "blocks": 3.3}
    for _ in range(2):
        fleet.start(**orders)
    fleet.started()
    published = range(8)
    outbox.publish(*published)

    fleet.settled(within=15)

    fleet.report("a loop blocked for three leases", published)
    assert sorted(run.message for run in fleet.ledger.runs()) == list(published)
    assert not any("lost the lease" in worker.logged() for worker in fleet.workers)


@pytest.mark.parametrize("backend", ["asyncpg", "sqlite"], indirect=True)
def test_a_message_that_blocks_for_ever_ends_its_worker_and_is_buried_and_the_others_go_on(
    fleet: Fleet, outbox: Outbox
) -> None:
    published, poison = range(120), 7
    orders = {
        "options": {"max_workers": 3, "max_deliveries": MAX_DELIVERIES, "lease_ttl_seconds": 2.0},
        "seconds": 0.02,
        "blocking": [poison],
        "stuck_timeout": 2.0,
    }
    outbox.publish(*published)
    living = [fleet.start(**orders) for _ in range(2)]
    ended: list[Worker] = []

    def respawned_until_all_is_settled() -> bool:
        for place, worker in enumerate(living):
            if not worker.alive:
                ended.append(worker)
                living[place] = fleet.start(**orders)
        return outbox.live() == 0

    begin = monotonic()
    innocents = set(published) - {poison}
    until(lambda: respawned_until_all_is_settled() or fleet.ledger.handled() == innocents, 20, "the others are handled")
    others = monotonic() - begin
    until(respawned_until_all_is_settled, 40, "every message is handled or dead")

    fleet.report(f"{len(ended)} workers were stuck, the others were handled in {others:.1f} s", published)
    assert outbox.dead() == {poison: "max_deliveries"}
    assert fleet.ledger.handled() == innocents
    beside = [first for number in innocents for first, _ in pairwise(fleet.ledger.runs(number))]
    assert {run.pid for run in beside} <= {worker.pid for worker in ended}, "others than who ran beside it"
    assert len(beside) <= 5 * len(ended), "two that ran, and those whose end could not be written down any more"
    assert [worker.ended(1) for worker in ended] == [STUCK_EXIT_CODE] * len(fleet.ledger.runs(poison))
    assert len(ended) == MAX_DELIVERIES + 1
    for worker in ended:
        assert "time.sleep(orders.blocks)" in worker.logged()
        assert "in 'crash'" in worker.logged()
        assert "exit code 70" in worker.logged()


def test_a_handler_that_lets_no_other_thread_run_is_ended_by_the_kernel(fleet: Fleet, outbox: Outbox) -> None:
    stuck = fleet.start(options={"lease_ttl_seconds": 2.0}, spinning=[0], stuck_timeout=1.0)
    fleet.started()
    outbox.publish(0, 1)

    assert stuck.ended(within=60) == -SIGVTALRM
    assert "re.match" in stuck.logged() or "in work" in stuck.logged()


def test_a_worker_that_is_killed_loses_its_message_to_another_within_twelve_seconds(
    fleet: Fleet, outbox: Outbox
) -> None:
    gate = fleet.folder / "gate"
    doomed = fleet.start(gate=str(gate))
    fleet.started()
    outbox.publish(1)
    until(lambda: len(fleet.ledger.runs()) == 1, 5, "its handler runs")
    fleet.started(fleet.start())
    begin = monotonic()
    until(lambda: monotonic() > begin + 4, 5, "the lease has been extended once")

    died = doomed.kill()
    fleet.settled(within=15)

    longest = fleet.ledger.runs()[-1].begun - died
    fleet.report("kill -9 with default options", [1], longest)
    assert longest < 12
