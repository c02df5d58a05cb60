"""`outbox purge --inbox`: what was received is forgotten, and nothing that can come again."""

import json
from collections.abc import AsyncIterator

import pytest
from sqlalchemy import MetaData, Table, func, insert, select, text

from outbox_sqlalchemy import make_inbox_table
from tests.cli.conftest import Shop

MONTH = ("--inbox", "--older-than", "30d")


@pytest.fixture(params=["outbox_inbox", "received"])
async def inbox(request: pytest.FixtureRequest, shop: Shop) -> AsyncIterator[Table]:
    """`old` was received 31 days ago and `new` now; the table is named after the outbox, or otherwise."""
    table = make_inbox_table(MetaData(), request.param)
    earlier = "now() - interval '31 days'" if shop.place.is_postgresql else "strftime('%Y-%m-%d', 'now', '-31 days')"
    async with shop.place.engine.begin() as connection:
        await connection.run_sync(table.create)
        await connection.execute(insert(table).values(consumer="billing", message_id="new"))
        await connection.execute(insert(table).values(consumer="billing", message_id="old", received_at=text(earlier)))
    yield table
    async with shop.place.engine.begin() as connection:
        await connection.run_sync(table.drop)


async def kept(shop: Shop, inbox: Table) -> list[str]:
    async with shop.place.engine.connect() as connection:
        return [*await connection.scalars(select(inbox.c.message_id).order_by(inbox.c.id))]


def named(inbox: Table) -> tuple[str, ...]:
    return () if inbox.name == "outbox_inbox" else ("--inbox-table", inbox.name)


async def test_what_was_received_long_ago_is_forgotten(shop: Shop, inbox: Table) -> None:
    done = shop.run("purge", shop.url, *MONTH, "--dead-letter-retention", "14d", *named(inbox), "--json")

    assert (done.code, done.err) == (0, "")
    assert json.loads(done.out) == {"deleted": 1}
    assert await kept(shop, inbox) == ["new"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "--older-than is 30 days, but --dead-letter-retention is not set"),
        (("--dead-letter-retention", "60d"), "--older-than must not be shorter than --dead-letter-retention"),
        (("--dead-letter-retention", "14d", "--queue", "orders"), "--queue is for dead letters; an inbox has none"),
    ],
)
async def test_what_could_come_again_is_not_forgotten(
    shop: Shop, inbox: Table, arguments: tuple[str, ...], said: str
) -> None:
    done = shop.run("purge", shop.url, *MONTH, *arguments, *named(inbox))

    assert (done.code, done.out) == (2, "")
    assert done.err.startswith(f"outbox purge: {said}")
    assert await kept(shop, inbox) == ["new", "old"]


async def test_dead_letters_are_left_alone_and_so_is_the_inbox(shop: Shop, inbox: Table) -> None:
    table = shop.place.tables.dead_letters
    assert table is not None
    async with shop.place.engine.begin() as connection:
        await connection.execute(insert(table).values(queue="orders", payload=b"x", failure_reason="rejected"))

    forever = ("--older-than", "0", "--dead-letter-retention", "0")
    assert shop.run("purge", shop.url, "--inbox", *forever, *named(inbox)).out == "2 received messages deleted\n"
    async with shop.place.engine.connect() as connection:
        assert await connection.scalar(select(func.count()).select_from(table)) == 1


def test_its_options_are_about_an_inbox(lite_shop: Shop) -> None:
    done = lite_shop.run("purge", lite_shop.url, "--older-than", "30d", "--dead-letter-retention", "14d")

    assert (done.code, done.err) == (2, "outbox purge: --dead-letter-retention is about the inbox; add --inbox\n")


@pytest.mark.parametrize("where", ["url", "broker"])
def test_without_an_inbox_it_says_how_to_make_one(lite_shop: Shop, where: str) -> None:
    place = lite_shop.url if where == "url" else "shop:broker"

    done = lite_shop.run("purge", place, *MONTH, "--dead-letter-retention", "14d")

    assert done.code == 78
    assert done.err == ("outbox purge: purge_inbox needs the inbox table; make it with make_inbox_table(metadata)\n")
