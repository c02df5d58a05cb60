"""Messages whose handler ends the interpreter."""

from tests.crash.fleet import Fleet, Outbox, until

MAX_DELIVERIES = 2


def test_a_message_that_kills_its_worker_is_buried_and_takes_no_innocent_along(fleet: Fleet, outbox: Outbox) -> None:
    """The first start of a message is not counted, so a deadly one costs a worker more than `max_deliveries` says."""
    published, deadly = range(300), (5, 150)
    orders = {
        "options": {"max_workers": 4, "max_deliveries": MAX_DELIVERIES, "lease_ttl_seconds": 2.0},
        "seconds": 0.005,
        "deadly": deadly,
    }
    outbox.publish(*published)
    worker = fleet.start(**orders)
    taken_along: set[int] = set()

    def respawned_until_all_is_settled() -> bool:
        nonlocal worker
        if not worker.alive:
            taken_along.update(outbox.leased_numbers())
            worker = fleet.start(**orders)
        return outbox.live() == 0

    until(respawned_until_all_is_settled, 60, "every message is handled or dead")

    deaths = len(fleet.workers) - 1
    innocents = len(taken_along - set(deadly))
    fleet.report(f"2 deadly messages, {deaths} deaths, {innocents} innocents taken along", published)
    assert outbox.dead() == dict.fromkeys(deadly, "max_deliveries")
    assert fleet.ledger.handled() == set(published) - set(deadly)
    assert deaths == len(fleet.ledger.runs(*deadly)) <= 2 * (MAX_DELIVERIES + 1)
    assert innocents > 4
