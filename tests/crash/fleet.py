"""The test's side: an outbox in a real database, worker processes, and waiting for facts with a deadline."""

import json
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic, sleep
from typing import Any

import psutil
from sqlalchemy import URL, Engine, MetaData, create_engine, func, select, text

from outbox_sqlalchemy import OutboxBroker, make_outbox_tables
from tests.crash.ledger import Ledger, number_in

ROOT = Path(__file__).parents[2]


def until(fact: Callable[[], object], within: float, what: str) -> float:
    """Wait for *fact*, looking every 20 ms; the monotonic time at which it was true."""
    deadline = monotonic() + within
    while not fact():
        assert monotonic() < deadline, f"not within {within:g} s: {what}"
        sleep(0.02)
    return monotonic()


class Outbox:
    """The tables in a database, seen synchronously and from outside."""

    def __init__(self, url: URL, engine: Engine) -> None:
        self.url = url  # with the driver of the workers
        self.engine = engine
        self.tables = make_outbox_tables(metadata := MetaData())
        metadata.create_all(engine)
        self._broker = OutboxBroker(outbox_table=self.tables, logger=None)

    @classmethod
    def on(cls, url: URL) -> "Outbox":
        """Asynchronous drivers are the workers'; the test looks with a synchronous one, however often it was cut off."""
        sync = url.set(drivername="sqlite" if url.get_backend_name() == "sqlite" else "postgresql+psycopg")
        return cls(url, create_engine(sync, pool_pre_ping=True))

    def close(self) -> None:
        self.engine.dispose()

    @property
    def dsn(self) -> str:
        """As workers are told it."""
        return self.url.render_as_string(hide_password=False)

    def publish(self, *numbers: int, queue: str = "crash") -> None:
        """Publish all in one transaction."""
        with self.engine.begin() as connection:
            self._broker.publish_batch_sync(*numbers, queue=queue, session=connection)

    def live(self) -> int:
        with self.engine.connect() as connection:
            return connection.scalar(select(func.count()).select_from(self.tables.outbox)) or 0

    def rows(self) -> list[dict[str, Any]]:
        """All live messages by id."""
        with self.engine.connect() as connection:
            rows = connection.execute(select(self.tables.outbox).order_by(self.tables.outbox.c.id))
            return [dict(row._mapping) for row in rows]

    def live_numbers(self) -> set[int]:
        """What was published and is neither acked nor dead."""
        return {number_in(row["payload"]) for row in self.rows()}

    def leased_numbers(self) -> set[int]:
        """What a worker holds, or took with it when it died."""
        return {number_in(row["payload"]) for row in self.rows() if row["acquired_token"] is not None}

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold a lock on every row, as an operator's open transaction would."""
        with self.engine.begin() as connection:
            connection.execute(select(self.tables.outbox.c.id).with_for_update())
            yield

    def somebody_waits(self) -> bool:
        """Whether a statement of another session's waits for a lock."""
        return self._sessions("wait_event_type = 'Lock'") > 0

    def somebody_is_in_a_transaction(self) -> bool:
        return self._sessions("state = 'idle in transaction'") > 0

    def _sessions(self, which: str) -> int:
        query = f"SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND {which}"
        with self.engine.connect() as connection:
            return connection.scalar(text(query)) or 0

    def dead(self) -> dict[int, str]:
        """The reason of each dead message."""
        table = self.tables.dead_letters
        assert table is not None
        with self.engine.connect() as connection:
            return {number_in(row.payload): row.failure_reason for row in connection.execute(select(table))}


@dataclass
class Worker:
    """One process, and what it logged."""

    process: subprocess.Popen[bytes]
    log: Path

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def alive(self) -> bool:
        return self.process.poll() is None

    def started(self) -> bool:
        return "consuming" in self.logged()

    def logged(self) -> str:
        return self.log.read_text()

    def send(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def frozen(self) -> bool:
        """Whether a SIGSTOP has arrived."""
        return psutil.Process(self.pid).status() == psutil.STATUS_STOPPED

    def kill(self) -> float:
        """SIGKILL; the monotonic time at which it was gone."""
        self.send(signal.SIGKILL)
        self.process.wait(10)
        return monotonic()

    def ended(self, within: float) -> int:
        """Its exit code."""
        return self.process.wait(within)


@dataclass
class Fleet:
    """Worker processes on one outbox, with one ledger of what their handlers did."""

    outbox: Outbox
    folder: Path
    workers: list[Worker] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.ledger_file = self.folder / "ledger"
        self.ledger = Ledger(self.ledger_file)

    def start(self, **orders: Any) -> Worker:
        """Start a process with these `worker.Orders`; it may not be ready yet."""
        return self.run("tests.crash.worker", **{"url": self.outbox.dsn, "ledger": str(self.ledger_file), **orders})

    def run(self, module: str, **orders: Any) -> Worker:
        log = self.folder / f"{len(self.workers)}.log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", module, json.dumps(orders)], cwd=ROOT, stdout=output, stderr=output
            )
        worker = Worker(process, log)
        self.workers.append(worker)
        return worker

    def started(self, *workers: Worker) -> None:
        """Wait until these, or all that are alive, consume."""
        for worker in workers or [worker for worker in self.workers if worker.alive]:
            until(lambda worker=worker: worker.started() or not worker.alive, 30, f"worker {worker.pid} consumes")
            assert worker.started(), f"worker {worker.pid} ended; it logged\n{worker.logged()}"

    def settled(self, within: float) -> float:
        """Wait until no message is left; the monotonic time."""
        return until(lambda: self.outbox.live() == 0, within, "every message is settled")

    def close(self) -> None:
        for worker in self.workers:
            if worker.alive:
                worker.kill()
        self.ledger.close()
        self.outbox.close()

    def report(self, what: str, published: Sequence[int], longest: float | None = None) -> None:
        """The line that says what was measured."""
        lost = len(set(published) - self.ledger.handled() - set(self.outbox.dead()))
        redelivery = "-" if longest is None else f"{longest:.1f} s"
        print(
            f"\n{what}: published {len(published)}, lost {lost}, duplicates {self.ledger.duplicates()}, "
            f"longest redelivery {redelivery}"
        )
