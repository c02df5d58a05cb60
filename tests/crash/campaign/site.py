"""Where a scenario takes place: a database, workers that are replaced when they were struck, and what may strike them."""

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from signal import SIGKILL, SIGTERM, Signals
from time import monotonic, sleep

import psycopg
from sqlalchemy import URL

from outbox_core.options import ConsumerOptions
from outbox_core.watchdog import STUCK_EXIT_CODE
from tests.crash.campaign import previous
from tests.crash.campaign.scenario import Scenario, Size
from tests.crash.fleet import Fleet, Outbox, Worker
from tests.crash.pooler import pgbouncer
from tests.crash.proxy import Proxy
from tests.crash.shop import METADATA
from tests.crash.worker import EXIT_AS_ORDERED
from tests.databases import OwnServer, execute, plain

ROLE = "shop"  # an ordinary role, as an application has; the superuser is left to the strikes
LOOK = 0.02  # seconds between looks
RARE = ("begun", "extended")  # points to which a worker does not come often


@dataclass
class Site:
    """The run of one scenario in one size."""

    scenario: Scenario
    size: Size
    server: OwnServer
    database: URL  # as the superuser
    fleet: Fleet
    workers_url: str
    proxy: Proxy | None = None
    random: Random = field(default_factory=lambda: Random(7))
    died: dict[int, float] = field(default_factory=dict)  # struck or as ordered, when it was seen
    gave_up: list[Worker] = field(default_factory=list)
    strikes: list[tuple[float, float]] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)  # what strikes have seen that must not be
    previous: Path | None = None  # the packages of an earlier version, while they work
    _fates: dict[int, str] = field(default_factory=dict)
    _crew: list[Worker] = field(default_factory=list)
    _leaving: list[Worker] = field(default_factory=list)

    @classmethod
    @contextmanager
    def of(cls, scenario: Scenario, size: Size, server: OwnServer, folder: Path) -> "Iterator[Site]":
        """Empty tables, and nobody at work yet; no process survives it."""
        with ExitStack() as stack:
            database = stack.enter_context(server.database())
            _hand_over(database, scenario)
            outbox = Outbox.on(database.set(drivername=f"postgresql+{scenario.driver}", username=ROLE))
            METADATA.create_all(outbox.engine)
            fleet = Fleet(outbox, folder)
            stack.callback(fleet.close)
            site = cls(scenario, size, server, database, fleet, outbox.dsn)
            site._lay_way(stack, folder)
            if scenario.upgrades:
                site.previous = previous.unpack(folder)
                previous.create_tables(site.previous, outbox.engine, outbox.dsn)
            yield site

    def _lay_way(self, stack: ExitStack, folder: Path) -> None:
        url = self.fleet.outbox.url
        if self.scenario.way == "proxy":
            self.proxy = stack.enter_context(Proxy.running(str(self.server.socket)))
            url = url.set(host="127.0.0.1", port=self.proxy.port, query={})
        elif self.scenario.way == "pooler":
            port = stack.enter_context(pgbouncer(self.server.socket.parent, ROLE, folder))
            url = url.set(host="127.0.0.1", port=port, query={})
        self.workers_url = url.render_as_string(hide_password=False)

    # Workers

    @property
    def crew(self) -> list[Worker]:
        """Those that shall be at work."""
        return [worker for worker in self._crew if worker.alive]

    def hire(self) -> Worker:
        """Start one more worker, with its share of the scenario's orders."""
        worker = self._hired()
        self._crew.append(worker)
        return worker

    def _hired(self) -> Worker:
        orders = dict(self.scenario.handling)
        options = dict(self.scenario.options)
        if self.size.lease != ConsumerOptions.lease_ttl_seconds:
            options["lease_ttl_seconds"] = self.size.lease
        point = self._next_point()
        if point is not None:
            orders["dies"] = point
            orders["spares"] = 0 if point in RARE else self.random.randrange(2, 12)
        if leases := orders.pop("slow_leases", None):
            orders["slow_seconds"] = leases * self.size.lease
        if self.previous is not None:
            module, its = previous.MODULE, {"product": str(self.previous), "ledger": str(self.fleet.ledger_file)}
            return self.fleet.run(module, url=self.workers_url, options=options, **its, **orders)
        worker = self.fleet.start(url=self.workers_url, options=options, **orders)
        if point is not None:
            self._fates[worker.pid] = point
        return worker

    def _next_point(self) -> str | None:
        """Where the next worker shall kill itself, if it shall; half of a crew is never told to, so somebody goes on."""
        doomed = sum(worker.pid in self._fates for worker in self.crew)
        points = self.scenario.mortal
        if not points or len(self._fates) == self.size.strikes or doomed >= self.size.workers // 2:
            return None
        return points[len(self._fates) % len(points)]

    @property
    def points_met(self) -> set[str]:
        """Where workers have killed themselves."""
        return {self._fates[pid] for pid in self.died}

    def victim(self) -> Worker:
        """One of those that consume, when half of the crew do: on a busy machine nobody would live to do anything else."""
        while len(consuming := [worker for worker in self.crew if worker.started()]) < self.size.workers / 2:
            self.rest(LOOK)
        return self.random.choice(consuming)

    def kill(self, worker: Worker) -> None:
        self._crew.remove(worker)
        self.died[worker.pid] = worker.kill()

    def dismiss(self, worker: Worker) -> None:
        """Ask it to end; it may take its time."""
        self._crew.remove(worker)
        self._leaving.append(worker)
        worker.send(SIGTERM)

    def look_after(self) -> None:
        """Replace the workers that died as ordered, and note those that gave up by themselves."""
        for worker in [worker for worker in self._crew if not worker.alive]:
            self._crew.remove(worker)
            if self._as_ordered(worker.process.returncode):
                self.died[worker.pid] = monotonic()
                self.strikes += [(monotonic(), monotonic())] if self.scenario.mortal else []
                self.hire()
            else:
                self.gave_up.append(worker)
        for worker in [worker for worker in self._leaving if not worker.alive]:
            self._leaving.remove(worker)
            if worker.process.returncode != 0:
                self.gave_up.append(worker)

    def _as_ordered(self, code: int) -> bool:
        if code == STUCK_EXIT_CODE:
            return bool(self.scenario.handling.get("blocking"))
        return code == EXIT_AS_ORDERED or (bool(self.scenario.mortal) and code == -SIGKILL)

    def rest(self, seconds: float) -> None:
        """Let time go by, and look after the workers."""
        until = monotonic() + seconds
        while (left := until - monotonic()) > 0:
            self.look_after()
            sleep(min(LOOK, left))

    @property
    def all_gone(self) -> bool:
        """Whether nobody is left who is on the way out."""
        return not self._leaving

    # What strikes them

    def signal(self, worker: Worker, number: Signals) -> None:
        os.kill(worker.pid, number)

    def sql(self, statement: str) -> None:
        """As the superuser."""
        execute(self.database, statement)

    def cut_sessions(self) -> None:
        """pg_terminate_backend of everything that the application has."""
        self.sql(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = '{ROLE}'")

    @contextmanager
    def superuser(self) -> Iterator[psycopg.Connection]:
        with psycopg.connect(plain(self.database)) as connection:
            yield connection


def _hand_over(database: URL, scenario: Scenario) -> None:
    """Make the database the application's, with the settings of the scenario."""
    name = database.database
    execute(database, f"DO $$ BEGIN CREATE ROLE {ROLE} LOGIN; EXCEPTION WHEN duplicate_object THEN NULL; END $$")
    execute(database, f'ALTER DATABASE "{name}" OWNER TO {ROLE}')
    for setting, value in scenario.settings.items():
        execute(database, f"ALTER DATABASE \"{name}\" SET {setting} = '{value}'")
