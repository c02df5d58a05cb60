"""Rows that somebody wrote by hand: dead at once with a reason where they cannot be read, and no harm to the others."""

from typing import Any

import pytest
from sqlalchemy import text

from outbox_sqlalchemy import OutboxBroker
from tests.places import Place, running, until

BAD_HEADERS = ["[]", "5", '"text"', "null", "[1, 2]"]


def write(place: Place, headers: str, payload: bytes = b"1") -> None:
    """A row with all the database's own defaults."""
    stored = "CAST(:headers AS jsonb)" if place.is_postgresql else ":headers"
    with place.sync_engine.begin() as connection:
        connection.execute(
            text(f"INSERT INTO outbox (queue, payload, headers) VALUES ('orders', :payload, {stored})"),
            {"payload": payload, "headers": headers},
        )


def serving(place: Place, **options: Any) -> tuple[OutboxBroker, list[Any]]:
    broker, got = place.broker(), []

    @broker.subscriber("orders", **options)
    async def handle(body: Any) -> None:
        got.append(body)

    return broker, got


def graves(place: Place) -> list[tuple[str, str]]:
    return [(row.failure_reason, row.last_exception) for row in place.rows(place.tables.dead_letters)]


@pytest.mark.parametrize("headers", BAD_HEADERS)
@pytest.mark.parametrize("batch", [False, True], ids=["single", "batch"])
async def test_headers_that_are_no_object(place: Place, headers: str, batch: bool) -> None:
    write(place, headers)
    await place.broker().publish("good", "orders")
    broker, got = serving(place, batch=batch)

    async with running(broker):
        await until(place.rows, [])

    assert got == ([["good"]] if batch else ["good"])
    assert graves(place) == [("undecodable", "Undecodable: the headers are no JSON object")]


@pytest.mark.parametrize("place", ["aiosqlite"], indirect=True)
async def test_headers_that_are_no_json(place: Place) -> None:
    write(place, "{nonsense")
    await place.broker().publish("good", "orders")
    broker, got = serving(place)

    async def counts() -> tuple[int, int]:
        stats = (await broker.stats())["orders"]
        return stats.ready + stats.leased, stats.dead

    async with running(broker):
        await until(counts, (0, 1))

    assert got == ["good"]


async def test_headers_of_other_types_are_handed_on(place: Place) -> None:
    write(place, '{"attempt": 1, "nested": {"a": null}, "content-type": 5, "correlation_id": 7}', b"raw \xff")
    broker, got = serving(place)

    async with running(broker):
        await until(lambda: got, [b"raw \xff"])
        await until(place.rows, [])


@pytest.mark.parametrize("payload", [b"{", b"\xff", b"", b"[" * 100_000])
async def test_a_payload_that_is_not_what_its_content_type_says(place: Place, payload: bytes) -> None:
    write(place, '{"content-type": "application/json"}', payload)
    broker, got = serving(place)

    async with running(broker):
        await until(place.rows, [])

    ((reason, error),) = graves(place)
    assert (reason, error.startswith("Undecodable: the body is not application/json: "), got) == (
        "undecodable",
        True,
        [],
    )


async def test_a_content_type_that_nobody_knows_is_bytes(place: Place) -> None:
    write(place, '{"content-type": "application/x-own"}', b"\x00\x01")
    broker, got = serving(place)

    async with running(broker):
        await until(lambda: got, [b"\x00\x01"])
