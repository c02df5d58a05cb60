"""How many statements a worker sends: the number does not grow with the number of messages."""

from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import pytest

from outbox_core.message import Delivery
from outbox_core.outcome import Ack, DeadLetter, Outcome, Release, Retry
from outbox_core.sql import Row, Statement, begun
from outbox_core.sql.store import SqlLink
from outbox_core.store import Band, KeyWant, Settlement, Want
from outbox_sqlalchemy import OutboxTables, SqlAlchemyStore, make_outbox_tables
from tests.places import Place


class Counting:
    """An executor that remembers what it was told."""

    def __init__(self, inner: object) -> None:
        self._inner = inner
        self.sent: list[str] = []

    async def execute(self, statement: Statement) -> Sequence[Row]:
        self.sent.append(" ".join(statement.text.split()))
        return await self._inner.execute(statement)  # type: ignore[attr-defined,no-any-return]

    def together(self) -> AbstractAsyncContextManager[None]:
        return begun(self)

    async def close(self) -> None:
        await self._inner.close()  # type: ignore[attr-defined]


@asynccontextmanager
async def counted_link(place: Place, tables: OutboxTables | None = None) -> AsyncIterator[tuple[SqlLink, list[str]]]:
    store = place.broker(outbox_table=tables or place.tables).store
    assert isinstance(store, SqlAlchemyStore)
    assert store.dialect is not None
    executor = Counting(await store.open())
    yield SqlLink(executor, store.dialect), executor.sent
    await executor.close()


async def claim(link: SqlLink, count: int) -> list[Delivery]:
    return await link.claim([Want(Band("orders"), count)], total=count, lease=30.0)


def of_every_kind(deliveries: Sequence[Delivery]) -> list[Settlement]:
    kinds: tuple[Outcome, ...] = (
        Ack(),
        Retry(5.0),
        Retry(5.0, failed=False),
        Release(),
        DeadLetter("rejected", "ValueError: seven"),
    )
    return [Settlement(delivery, kinds[place % 5]) for place, delivery in enumerate(deliveries)]


async def test_a_claim_is_one_statement_for_any_number_of_queues_and_messages(place: Place) -> None:
    broker = place.broker()
    await broker.publish_batch(*range(300), queue="orders")
    await broker.publish_batch(*range(200), queue="letters", priority=5)
    async with counted_link(place) as (link, sent):
        wants = [Want(Band("orders"), 500), Want(Band("letters", 5), 500), Want(Band("letters"), 500)]
        deliveries = await link.claim(wants, total=500, lease=30.0)

    assert len(deliveries) == 500
    assert [statement.split()[:2] for statement in sent] == [["UPDATE", '"outbox"']]


async def test_settling_five_hundred_messages_of_every_kind_takes_three_statements(postgres: Place) -> None:
    await postgres.broker().publish_batch(*range(500), queue="orders")
    async with counted_link(postgres) as (link, sent):
        batch = of_every_kind(await claim(link, 500))
        sent.clear()

        ours = await link.settle(batch, worker="w")

    assert len(ours) == 500
    assert [statement.split()[0] for statement in sent] == ["DELETE", "UPDATE", "WITH"]
    assert len(postgres.rows()) == 300
    assert len(postgres.rows(postgres.tables.dead_letters)) == 100


async def test_settling_on_sqlite_takes_three_statements_in_one_transaction(sqlite: Place) -> None:
    await sqlite.broker().publish_batch(*range(500), queue="orders")
    async with counted_link(sqlite) as (link, sent):
        batch = of_every_kind(await claim(link, 500))
        sent.clear()

        ours = await link.settle(batch, worker="w")

    assert len(ours) == 500
    assert [statement.split()[0] for statement in sent] == ["BEGIN", "INSERT", "DELETE", "UPDATE", "COMMIT"]
    assert len(sqlite.rows()) == 300
    assert len(sqlite.rows(sqlite.tables.dead_letters)) == 100


async def test_parking_takes_three_statements_too(place: Place) -> None:
    await place.broker().publish_batch(*range(500), queue="orders")
    async with counted_link(place, OutboxTables(place.tables.outbox)) as (link, sent):
        batch = of_every_kind(await claim(link, 500))
        sent.clear()

        ours = await link.settle(batch, worker="w")

    assert len(ours) == 500
    assert len([statement for statement in sent if statement.split()[0] not in ("BEGIN", "COMMIT")]) == 3
    assert len([row for row in place.rows() if row.failure_reason == "rejected"]) == 100


async def test_an_archive_costs_no_statement_on_postgresql(fresh_postgres: Place) -> None:
    tables = make_outbox_tables(fresh_postgres.metadata, "mail", archive=True)
    fresh_postgres.metadata.create_all(fresh_postgres.sync_engine)
    await fresh_postgres.broker(outbox_table=tables).publish_batch(*range(500), queue="orders")
    async with counted_link(fresh_postgres, tables) as (link, sent):
        batch = of_every_kind(await claim(link, 500))
        sent.clear()

        ours = await link.settle(batch, worker="w")

    assert (len(ours), len(sent)) == (500, 3)
    assert len(fresh_postgres.rows(tables.archive)) == 100


@pytest.mark.parametrize(
    ("outcome", "statements"), [(Ack(), 1), (Retry(1.0), 1), (Release(), 1), (DeadLetter("rejected"), 1)]
)
async def test_a_batch_of_one_kind_is_one_statement_on_postgresql(
    postgres: Place, outcome: Outcome, statements: int
) -> None:
    await postgres.broker().publish_batch(*range(50), queue="orders")
    async with counted_link(postgres) as (link, sent):
        batch = [Settlement(delivery, outcome) for delivery in await claim(link, 50)]
        sent.clear()

        ours = await link.settle(batch, worker="w")

    assert (len(ours), len(sent)) == (50, statements)


async def test_extending_five_hundred_leases_is_one_statement(place: Place) -> None:
    await place.broker().publish_batch(*range(500), queue="orders")
    async with counted_link(place) as (link, sent):
        deliveries = await claim(link, 500)
        sent.clear()

        ours = await link.extend(deliveries, 30.0)

    assert (len(ours), len(sent)) == (500, 1)


async def test_a_survey_is_one_statement(place: Place) -> None:
    for priority in range(5):
        await place.broker().publish(1, "orders", priority=priority)
    async with counted_link(place) as (link, sent):
        survey = await link.survey(["orders", "letters"])

    assert ([band.priority for band in survey.bands], len(sent)) == ([4, 3, 2, 1, 0], 1)


async def test_the_text_of_a_statement_is_the_same_for_any_number_of_messages(postgres: Place) -> None:
    await postgres.broker().publish_batch(*range(61), queue="orders")
    async with counted_link(postgres) as (link, sent):
        for count in (1, 60):
            await link.settle(of_every_kind(await claim(link, count)), worker="w")

    claims = {statement for statement in sent if statement.startswith("UPDATE") and "SKIP LOCKED" in statement}
    acks = {statement for statement in sent if statement.startswith("DELETE")}
    assert (len(claims), len(acks)) == (1, 1)


async def test_statements_carry_nothing_of_the_messages(place: Place) -> None:
    queue, key = "robert'); DROP TABLE outbox; --", "k'\"k"
    await place.broker().publish({"id": "$$payload"}, queue, key=key, headers={"h": "'header"})
    async with counted_link(place) as (link, sent):
        (delivery,), _, _ = await link.claim_keyed(KeyWant(queue, 1, 1), lease=30.0)
        await link.settle([Settlement(delivery, DeadLetter("rejected", "o'error"))], worker="w'orker")

    (grave,) = place.rows(place.tables.dead_letters)
    assert (grave.queue, grave.key, grave.last_exception, grave.worker) == (queue, key, "o'error", "w'orker")
    for words in ("robert", "k'", "payload'", "header'", "o'error", "w'orker"):
        assert [statement for statement in sent if words in statement] == []
