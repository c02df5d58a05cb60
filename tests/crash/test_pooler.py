"""Django's worker behind PgBouncer in transaction mode, as the campaign has it for SQLAlchemy."""

from contextlib import closing
from pathlib import Path

from tests.crash.fleet import Fleet, Outbox, until
from tests.crash.pooler import needs_pgbouncer, pgbouncer
from tests.databases import OwnServer, execute


def test_a_django_worker_behind_a_pooler_handles_everything_and_warns_once(
    own_server: OwnServer, tmp_path: Path
) -> None:
    needs_pgbouncer()
    published = range(200)
    with own_server.database() as database, pgbouncer(own_server.socket.parent, "postgres", tmp_path) as port:
        pooled = database.set(drivername="postgresql+psycopg", host="127.0.0.1", port=port, query={})
        execute(database, "CREATE TABLE effects (n integer, attempt integer)")
        with closing(Fleet(Outbox.on(database.set(drivername="postgresql+psycopg")), tmp_path)) as fleet:
            for _ in range(2):
                fleet.run(
                    "tests.crash.transactional_worker",
                    url=pooled.render_as_string(hide_password=False),
                    ledger=str(fleet.ledger_file),
                    adapter="django",
                )
            fleet.started()
            fleet.outbox.publish(*published, queue="orders")

            until(
                lambda: not execute(database, "SELECT 1 FROM outbox WHERE queue = 'orders' LIMIT 1"),
                40,
                "all are handled",
            )

            assert execute(database, "SELECT n, attempt FROM effects ORDER BY n") == [(n, 1) for n in published]
            for worker in fleet.workers:
                warnings = [line for line in worker.logged().splitlines() if " WARNING " in line]
                assert len(warnings) == 1, warnings
                assert "no wake-ups" in warnings[0]
                assert "Traceback" not in worker.logged()
