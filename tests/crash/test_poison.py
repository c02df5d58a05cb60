"""A message whose handler ends the interpreter."""

from tests.crash.fleet import Fleet, Outbox, until


def test_a_message_that_kills_its_worker_is_buried_and_takes_no_innocent_along(fleet: Fleet, outbox: Outbox) -> None:
    published = range(300)
    deadly = (5, 150)
    orders = {
        "options": {"max_workers": 4, "max_deliveries": 2, "lease_ttl_seconds": 2.0},
        "seconds": 0.005,
        "deadly": deadly,
    }
    outbox.publish(*published)
    worker = fleet.start(**orders)

    def respawned_until_all_is_settled() -> bool:
        nonlocal worker
        if not worker.alive:
            worker = fleet.start(**orders)
        return outbox.live() == 0

    until(respawned_until_all_is_settled, 60, "every message is handled or dead")

    deaths = len(fleet.workers) - 1
    fleet.report(f"poison, {deaths} deaths", published)
    assert outbox.dead() == dict.fromkeys(deadly, "max_deliveries")
    assert fleet.ledger.handled() == set(published) - set(deadly)
    print([(run.message) for run in fleet.ledger.runs(*deadly)])
