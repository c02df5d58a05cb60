"""The faults. Each is one strike at a site, and returns when it is over."""

from signal import SIGCONT, SIGSTOP

from tests.crash.campaign import previous
from tests.crash.campaign.scenario import Strike
from tests.crash.campaign.site import ROLE, Site
from tests.crash.fleet import until


def kill_one(site: Site) -> None:
    site.kill(site.victim())
    site.hire()


def roll_one(site: Site) -> None:
    """A new worker, and SIGTERM to an old one once it consumes, as a deployment does."""
    victim, successor = site.victim(), site.hire()
    until(successor.started, 30, "the new worker consumes")
    site.dismiss(victim)


def freeze_one(site: Site) -> None:
    """SIGSTOP beyond the lease, and then it goes on as if nothing had been."""
    victim = site.victim()
    site.signal(victim, SIGSTOP)
    until(victim.frozen, 5, "the worker is frozen")
    site.rest(site.size.lasting)
    site.signal(victim, SIGCONT)


def cut_sessions(site: Site) -> None:
    site.cut_sessions()


def restart_server(site: Site) -> None:
    """A fast shutdown, as before an upgrade."""
    site.server.stop()
    site.rest(site.size.lasting)
    site.server.start()


def crash_server(site: Site) -> None:
    site.server.crash()
    site.rest(site.size.lasting)
    site.server.start()


def lose_answers(site: Site) -> None:
    """What was asked is done, COMMIT included, but the answer is lost with the connection."""
    assert site.proxy is not None
    site.proxy.swallow_answers()
    site.rest(site.size.lasting)
    site.proxy.cut()


def fall_silent(site: Site) -> None:
    assert site.proxy is not None
    site.proxy.fall_silent()


def refuse_writes(site: Site) -> None:
    """What clients of a server see that has become a standby: they can read.

    The default of the database alone would not do, since the workers' own sessions ask to write.
    """
    name = site.database.database
    with site.superuser() as connection:
        connection.execute(_REFUSE)
        connection.execute(
            "CREATE TRIGGER standby BEFORE INSERT OR UPDATE OR DELETE ON outbox EXECUTE FUNCTION refuse()"
        )
        connection.execute(f'ALTER DATABASE "{name}" SET default_transaction_read_only = on')
    site.cut_sessions()
    site.rest(site.size.lasting)
    with site.superuser() as connection:
        connection.execute("SET TRANSACTION READ WRITE")
        connection.execute("DROP TRIGGER standby ON outbox")
        connection.execute(f'ALTER DATABASE "{name}" RESET default_transaction_read_only')
    site.cut_sessions()


_REFUSE = """CREATE OR REPLACE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
    RAISE 'cannot execute % in a read-only transaction', TG_OP USING ERRCODE = 'read_only_sql_transaction';
END $$"""


def refuse_connections(site: Site) -> None:
    """Too many connections: SQLSTATE 53300 for everybody who connects, after all were cut."""
    site.sql(f"ALTER ROLE {ROLE} CONNECTION LIMIT 0")
    site.cut_sessions()
    site.rest(site.size.lasting)
    site.sql(f"ALTER ROLE {ROLE} CONNECTION LIMIT -1")


def migrate(site: Site) -> None:
    """A migration holds ACCESS EXCLUSIVE."""
    with site.superuser() as connection:
        connection.execute("LOCK TABLE outbox IN ACCESS EXCLUSIVE MODE")
        site.rest(site.size.lasting)


def upgrade(site: Site) -> None:
    """Today's worker refuses the table of an earlier version; it is migrated, and its workers are replaced one by one."""
    if site.previous is not None:
        site.previous = None
        newcomer = site.fleet.start(url=site.workers_url)
        until(lambda: not newcomer.alive or newcomer.started(), 30, "the new worker has seen the table")
        if newcomer.alive or previous.COLUMN not in newcomer.logged():
            site.complaints.append(
                f"a new worker on the old table did not end with an error that names {previous.COLUMN}"
            )
            newcomer.kill()
        previous.migrate(site.fleet.outbox.engine)
    roll_one(site)


def go_back(site: Site) -> None:
    """A later version has added a column of which the workers of today know nothing, and they are replaced one by one."""
    if not site.strikes:
        site.sql("ALTER TABLE outbox ADD COLUMN of_tomorrow text")
        site.sql("ALTER TABLE outbox_dlq ADD COLUMN of_tomorrow text")
    roll_one(site)


def in_turn(*strikes: Strike) -> Strike:
    """One after the other."""

    def strike(site: Site) -> None:
        strikes[len(site.strikes) % len(strikes)](site)

    return strike
