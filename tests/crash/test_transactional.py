"""Exactly-once effect when the process dies, or its connection, at each point of the end of a handler's transaction.

A handler writes into a table without any unique constraint and publishes in every way there is. Whatever happens, its
effect, its messages and the end of its own message are there together, and once.
"""

import signal
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from sqlalchemy import URL, create_engine, text

from outbox_sqlalchemy import OutboxBroker
from tests.crash.cutting import POINTS, Cutting, Point
from tests.crash.fleet import Fleet, Outbox, Worker, until
from tests.databases import execute

LEASE = 1.0
LATE = 2.0
ADAPTERS = ["sqlalchemy-asyncpg", "sqlalchemy-psycopg", "middleware-asyncpg", "fastapi-asyncpg", "django-psycopg"]
FOLLOWERS = {"mails", "replies", "chosen", "answers"}  # published on the broker, stacked, chosen, and by `reply_to`


class Shop:
    """An outbox, the handlers' table, and workers of one adapter."""

    def __init__(self, database: URL, adapter: str, fleet: Fleet) -> None:
        self.database = database
        self.adapter, _, self._driver = adapter.partition("-")
        self.fleet = fleet
        self._engine = create_engine(fleet.outbox.url.set(drivername="postgresql+psycopg"))
        self._broker = OutboxBroker(outbox_table=fleet.outbox.tables, logger=None)
        execute(database, "CREATE TABLE effects (n integer, attempt integer)")

    def close(self) -> None:
        self._engine.dispose()

    def work(self, url: URL | None = None, **options: object) -> Worker:
        """A worker process that consumes through *url*."""
        url = (url or self.database).set(drivername=f"postgresql+{self._driver}")
        worker = self.fleet.run(
            "tests.crash.transactional_worker",
            url=url.render_as_string(hide_password=False),
            ledger=str(self.fleet.ledger_file),
            adapter=self.adapter,
            options={"lease_ttl_seconds": LEASE, **options},
        )
        self.fleet.started(worker)
        return worker

    def publish(self, *numbers: int) -> None:
        with self._engine.begin() as connection:
            self._broker.publish_batch_sync(*numbers, queue="orders", session=connection, reply_to="answers")

    def effects(self) -> list[tuple[object, ...]]:
        """Number and attempt of each."""
        return execute(self.database, "SELECT n, attempt FROM effects ORDER BY n, attempt")

    def followers(self) -> Counter[tuple[str, int]]:
        return Counter((row["queue"], int(row["payload"])) for row in self._rows() if row["queue"] != "orders")

    def waiting(self) -> int:
        return sum(row["queue"] == "orders" for row in self._rows())

    def _rows(self) -> list[dict[str, object]]:
        with self._engine.connect() as connection:
            rows = connection.execute(text("SELECT queue, convert_from(payload, 'UTF8') AS payload FROM outbox"))
            return [dict(row._mapping) for row in rows]

    def done(self, within: float) -> None:
        until(lambda: self.waiting() == 0, within, "every message has come to its end")

    def check(self, *numbers: int) -> None:
        """Everything is there once, for each number, and nobody has failed."""
        assert self.effects() == [(number, 1) for number in numbers]
        assert self.followers() == Counter((queue, number) for queue in FOLLOWERS for number in numbers)
        assert self.fleet.outbox.dead() == {}


@pytest.fixture(params=ADAPTERS)
def shop(request: pytest.FixtureRequest, database: URL, outbox: Outbox, fleet: Fleet) -> Iterator[Shop]:
    """Each adapter in turn."""
    shop = Shop(database, request.param, fleet)
    yield shop
    shop.close()


@contextmanager
def doomed(shop: Shop, point: Point) -> Iterator[Worker]:
    """A worker that is killed when its first transaction is at *point*."""
    victims: list[Worker] = []
    proxy = Cutting(shop.database, point, strike=lambda: victims[0].send(signal.SIGKILL))
    with proxy.serving() as url:
        victims.append(shop.work(url))
        yield victims[0]


@pytest.mark.parametrize("point", POINTS)
def test_a_killed_process_leaves_all_of_it_or_nothing(shop: Shop, point: Point) -> None:
    with doomed(shop, point) as victim:
        shop.publish(7)
        assert victim.ended(within=10) == -signal.SIGKILL

    took_place = point == "after the commit"
    until(lambda: (len(shop.effects()) == 1) == took_place, 5, "the server has seen the end of the connection")
    assert len(shop.effects()) == sum(shop.followers().values()) / len(FOLLOWERS) == int(took_place)
    assert shop.waiting() == int(not took_place)

    shop.work()
    shop.done(within=LEASE + LATE)
    shop.check(7)
    assert len(shop.fleet.ledger.runs(7)) == (1 if took_place else 2)


def test_a_commit_whose_answer_is_lost_took_place_once_and_nobody_has_failed(shop: Shop) -> None:
    numbers = range(8)
    proxy = Cutting(shop.database, "after the commit", times=5)
    with proxy.serving() as url:
        worker = shop.work(url, max_workers=2)
        shop.publish(*numbers)
        shop.done(within=15)
        until(lambda: len(shop.fleet.ledger.handled()) == len(numbers), 5, "all are handled")

        assert proxy.struck == 5
        shop.check(*numbers)
        assert [len(shop.fleet.ledger.runs(number)) for number in numbers] == [1] * len(numbers)
        assert "lost the lease" not in worker.logged()


def test_a_commit_that_never_arrived_is_an_ordinary_failure(shop: Shop) -> None:
    """The connection is the handler's, so its end is; what it did is not there, and is done once more."""
    proxy = Cutting(shop.database, "before the commit")
    with proxy.serving() as url:
        worker = shop.work(url)
        shop.publish(7)
        shop.done(within=15)

        assert shop.effects() == [(7, 2)]
        assert shop.followers() == Counter((queue, 7) for queue in FOLLOWERS)
        assert "lost the lease" not in worker.logged()


def test_a_lease_that_was_lost_takes_all_of_it_back(shop: Shop) -> None:
    """A second worker has the message by the time that the first one, which could not be told, deletes its row."""

    def steal() -> None:
        execute(
            shop.database,
            "UPDATE outbox SET acquired_token = gen_random_uuid(), leased_until = clock_timestamp() + interval '1 hour'",
        )

    proxy = Cutting(shop.database, "before the delete", strike=steal, cuts=False)
    with proxy.serving() as url:
        worker = shop.work(url, max_deliveries=None)
        shop.publish(7)
        until(lambda: "lost the lease" in worker.logged(), 10, "the first worker has lost it")
        assert (shop.effects(), shop.followers(), shop.waiting()) == ([], Counter(), 1)

        worker.kill()
        execute(shop.database, "UPDATE outbox SET leased_until = clock_timestamp()")
        shop.work()
        shop.done(within=LEASE + LATE)
        shop.check(7)
