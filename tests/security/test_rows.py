"""Rows that somebody wrote by hand: what they say is data, and a worker outlives it."""

import pickle
from typing import Any

import pytest

from outbox_core.envelope import decode
from outbox_sqlalchemy import OutboxMessage
from tests.places import Place, running, until

BOMB = b"[" * 100_000 + b"]" * 100_000


class Opened(Exception):
    """What a payload does that is unpickled."""

    def __reduce__(self) -> Any:
        return (exec, ("raise SystemExit('pickled')",))


async def insert(place: Place, payload: bytes, content_type: str, **more: str) -> None:
    async with place.engine.begin() as connection:
        await connection.execute(
            place.tables.outbox.insert().values(
                queue="orders", payload=payload, headers={"content-type": content_type, **more}
            )
        )


def reasons(place: Place) -> list[tuple[str, int]]:
    return [(row.failure_reason, row.attempts_count) for row in place.rows(place.tables.dead_letters)]


@pytest.mark.parametrize(
    ("payload", "content_type"),
    [
        (BOMB, "application/json"),
        (b'{"a":' * 100_000 + b"1" + b"}" * 100_000, "application/json"),
        (b"[" * 100_000, "application/json"),
        (b"1" * 100_000, "application/json"),  # more digits than Python turns into a number
        (b"\xff\xfe", "application/json"),
        (b"", "application/json"),
        (b"\xff", "text/plain"),
    ],
    ids=["lists", "objects", "unfinished", "digits", "no text", "nothing", "no utf-8"],
)
async def test_a_body_that_cannot_be_decoded_is_dead_at_once_and_the_worker_goes_on(
    both: Place, payload: bytes, content_type: str
) -> None:
    broker = both.broker()
    seen: list[object] = []

    @broker.subscriber("orders")
    async def handle(message: OutboxMessage) -> None:
        seen.append(await message.decode())

    await insert(both, payload, content_type)
    async with running(broker):
        await until(lambda: reasons(both), [("undecodable", 1)])
        await broker.publish("next", "orders")
        await until(lambda: seen, ["next"])


@pytest.mark.parametrize(
    "content_type",
    [
        "application/python-pickle",
        "application/x-python-serialize",
        "application/x-msgpack",
        "avro/binary",
        "builtins.exec",
    ],
)
async def test_a_header_chooses_no_codec(both: Place, content_type: str) -> None:
    pickled = pickle.dumps(Opened())
    broker = both.broker()
    seen: list[object] = []

    @broker.subscriber("orders")
    async def handle(message: OutboxMessage) -> None:
        seen.append(await message.decode())

    await insert(both, pickled, content_type, **{"content-encoding": "gzip", "codec": "pickle"})
    async with running(broker):
        await until(lambda: seen, [pickled])


def test_the_core_decodes_json_and_text_and_nothing_else() -> None:
    assert decode(b"[1]", "application/json") == [1]
    assert decode(b"a", "text/plain") == "a"
    assert decode(b"\x80\x04.", "application/python-pickle") == b"\x80\x04."
