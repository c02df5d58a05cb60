"""Connections that are cut, and a server that goes away and comes back; the campaign does so to asyncpg."""

import signal
from contextlib import closing
from pathlib import Path
from time import monotonic

import pytest
from sqlalchemy import URL

from tests.crash.fleet import Fleet, Outbox, until
from tests.databases import OwnServer, execute

CUTS = """SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
          WHERE datname = %s AND pid <> pg_backend_pid() AND backend_type = 'client backend'"""


@pytest.mark.parametrize("backend", ["psycopg"], indirect=True)
def test_workers_whose_connections_are_cut_four_times_a_second_lose_nothing(
    fleet: Fleet, outbox: Outbox, server: URL
) -> None:
    for _ in range(2):
        fleet.start(options={"max_workers": 4, "lease_ttl_seconds": 5.0}, seconds=0.02)
    fleet.started()
    published = range(2_200)
    outbox.publish(*published)
    cut = 0

    begin = monotonic()
    for number in range(20):
        until(lambda number=number: monotonic() > begin + number / 4, 1, "a quarter of a second later")
        cut += execute(server, CUTS, outbox.url.database)[0][0]
    last = monotonic()
    before = len(fleet.ledger.handled())
    resumed = until(lambda: len(fleet.ledger.handled()) > before + 50, 5, "handling goes on") - last
    fleet.settled(within=30)

    fleet.report(f"{cut} connections cut in 5 s, {before} handled meanwhile, resumed after {resumed:.1f} s", published)
    assert all(worker.alive for worker in fleet.workers)
    assert fleet.ledger.handled() == set(published)
    assert outbox.dead() == {}
    assert cut > 60
    assert before < len(published)
    assert fleet.ledger.duplicates() <= 20


@pytest.mark.parametrize("backend", ["psycopg"], indirect=True)
def test_workers_come_back_by_themselves_when_the_server_was_restarted(
    own_server: OwnServer, backend: str, tmp_path: Path
) -> None:
    with own_server.database() as url:
        outbox = Outbox.on(url.set(drivername=f"postgresql+{backend}"))
        with closing(Fleet(outbox, tmp_path)) as fleet:
            for _ in range(2):
                fleet.start(options={"max_workers": 4, "lease_ttl_seconds": 5.0}, seconds=0.02)
            fleet.started()
            published = range(1_000)
            outbox.publish(*published)
            until(lambda: len(fleet.ledger.handled()) > 100, 5, "a hundred are handled")

            own_server.stop()
            begin = monotonic()
            until(lambda: monotonic() > begin + 3, 4, "three seconds of outage")
            own_server.start()
            up = monotonic()
            before = len(fleet.ledger.handled())
            resumed = until(lambda: len(fleet.ledger.handled()) > before + 50, 5, "handling goes on") - up
            fleet.settled(within=30)

            fleet.report(f"server stopped for 3 s, {before} handled before, resumed after {resumed:.1f} s", published)
            assert all(worker.alive for worker in fleet.workers)
            assert before < len(published)
            assert fleet.ledger.handled() == set(published)
            assert outbox.dead() == {}
            assert fleet.ledger.duplicates() <= 20


def test_a_worker_that_is_terminated_while_the_server_is_down_ends_soon_and_loses_nothing(
    own_server: OwnServer, tmp_path: Path
) -> None:
    with own_server.database() as url:
        outbox = Outbox.on(url.set(drivername="postgresql+asyncpg"))
        with closing(Fleet(outbox, tmp_path)) as fleet:
            options = {"max_workers": 4, "lease_ttl_seconds": 2.0}
            leaving = fleet.start(options={**options, "prefetch": 10}, seconds=0.05)
            fleet.started()
            published = range(200)
            outbox.publish(*published)
            until(lambda: len(fleet.ledger.handled()) > 20, 5, "some are handled")

            own_server.stop()
            leaving.send(signal.SIGTERM)
            told = monotonic()
            code = leaving.ended(within=15)
            took = monotonic() - told
            own_server.start()
            fleet.start(options=options)
            fleet.settled(within=20)

            fleet.report(f"SIGTERM while the server is down: it took {took:.1f} s", published)
            assert code == 0
            assert took < 10
            assert fleet.ledger.handled() == set(published)
            assert fleet.ledger.duplicates() <= 14, "more than it held"
