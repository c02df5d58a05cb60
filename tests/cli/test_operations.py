"""What an operator types, on a URL and on a broker, each command a process of its own."""

import json
from uuid import UUID

import pytest

from tests.cli.conftest import Shop
from tests.places import Place

ONE = UUID("0197a3c0-0000-7000-8000-000000000001")


@pytest.fixture(params=["url", "broker"])
def where(request: pytest.FixtureRequest, shop: Shop) -> str:
    """Both ways to say where the outbox is."""
    return shop.url if request.param == "url" else "shop:broker"


async def bury(place: Place, *bodies: str) -> None:
    table = place.tables.dead_letters
    assert table is not None
    async with place.engine.begin() as connection:
        for body in bodies:
            await connection.execute(
                table.insert().values(queue="orders", payload=body.encode(), failure_reason="rejected", message_id=ONE)
            )


async def test_stats_list_and_show(shop: Shop, where: str) -> None:
    await shop.place.broker().publish({"card": "4111"}, "orders", message_id=ONE, headers={"tenant": "acme"})

    stats = shop.run("stats", where)
    assert stats.code == 0, stats.err
    heads, line = stats.out.splitlines()
    assert heads.split() == ["queue", "ready", "scheduled", "leased", "blocked", "keys", "dead", "oldest"]
    assert line.split()[:6] == ["orders", "1", "0", "0", "0", "0"]
    assert json.loads(shop.run("stats", where, "--json").out)["queues"]["orders"]["ready"] == 1

    (listed,) = json.loads(shop.run("list", where, "--json").out)
    assert (listed["queue"], listed["message_id"]) == ("orders", str(ONE))
    assert "4111" not in shop.run("list", where).out

    for id in (str(listed["id"]), str(ONE)):
        (shown,) = json.loads(shop.run("show", where, id, "--json").out)
        assert json.loads(shown["payload"]) == {"card": "4111"}
        assert shown["headers"]["tenant"] == "acme"
    assert "header tenant: acme" in shop.run("show", where, str(ONE)).out


async def test_dead_letters_are_listed_redriven_and_purged(shop: Shop, where: str) -> None:
    await bury(shop.place, "a", "b", "c")

    assert len(json.loads(shop.run("list", where, "--dead", "--json").out)) == 3
    assert shop.run("redrive", where, "--queue", "orders", "--limit", "1", "--dry-run").out == (
        "1 dead letter would be put back\n"
    )
    assert json.loads(shop.run("redrive", where, "--limit", "1", "--json").out) == {"redriven": 1, "dry_run": False}
    assert shop.run("purge", where, "--older-than", "0").out == "2 dead letters deleted\n"
    assert [row.payload for row in shop.place.rows()] == [b"a"]


def test_a_pause_lasts_until_it_is_resumed(shop: Shop, where: str) -> None:
    assert shop.run("pause", where, "orders", "mails").out == "orders is paused\nmails is paused\n"
    assert shop.run("resume", where, "mails").out == "mails goes on\n"

    stats = json.loads(shop.run("stats", where, "--json").out)
    assert {name: queue["paused"] for name, queue in stats["queues"].items()} == {"orders": True}


def test_tables_that_fit_and_tables_that_do_not(shop: Shop, where: str) -> None:
    assert shop.run("validate", where).code == 0

    shop.place.run("DROP INDEX outbox_ready_idx")
    try:
        done = shop.run("validate", where)
    finally:
        shop.place.run(
            "CREATE INDEX outbox_ready_idx ON outbox (queue, priority, next_attempt_at, id) "
            "WHERE failure_reason IS NULL AND key IS NULL"
        )

    assert done.code == 78
    assert "index outbox_ready_idx on (queue, priority, next_attempt_at, id)" in done.err
    assert done.err.count("\n") == 1


async def test_a_table_of_another_name_is_found_with_what_belongs_to_it(shop: Shop) -> None:
    shop.place.run("CREATE TABLE events AS SELECT * FROM outbox")
    try:
        done = shop.run("pause", shop.url, "orders", "--table", "events")
    finally:
        shop.place.run("DROP TABLE events")

    assert done.code == 78
    assert done.err.startswith("outbox pause: pause needs the queues table; make it with make_outbox_tables(metadata)")


async def test_a_terminal_obeys_nothing_that_a_message_says(lite_shop: Shop) -> None:
    await lite_shop.place.broker().publish("\x1b[2Jcleared\rforged\n", "orders", message_id=ONE, key="k")

    shown = lite_shop.run("show", lite_shop.url, str(ONE)).out

    assert "\x1b" not in shown
    assert "\r" not in shown
    assert r"\x1b[2Jcleared\rforged" in shown
