"""What the models add to the columns: a decoded body and a name to be shown by."""

from sqlalchemy import URL

from tests.django.projects import Project


def test_a_row_shows_its_body_and_where_it_is() -> None:
    answer = Project(URL.create("sqlite", database=":memory:")).ask("""
from uuid import UUID
from django.utils.timezone import now

def body(payload, **headers):
    return OutboxMessage(payload=payload, headers=headers).body

message = dict(message_id=UUID(int=7), queue="orders")
answer = {
    "json": body(b'{"id": 7}', **{"content-type": "application/json"}),
    "text": body("é".encode(), **{"content-type": "text/plain"}),
    "bytes": body(b"\\x00"),
    "as psycopg2 reads it": body(memoryview(b"\\x00")),
    "archived": ArchivedMessage(payload=b"1", headers={"content-type": "application/json"}).body,
    "names": [
        str(row)
        for row in (
            OutboxMessage(**message),
            DeadLetter(**message),
            QueueControl(queue="orders"),
            QueueControl(queue="orders", paused_at=now()),
        )
    ],
}
""")

    assert answer == {
        "json": {"id": 7},
        "text": "é",
        "bytes": b"\x00",
        "as psycopg2 reads it": b"\x00",
        "archived": 1,
        "names": [
            "00000000-0000-0000-0000-000000000007 in 'orders'",
            "00000000-0000-0000-0000-000000000007 in 'orders'",
            "orders",
            "orders, paused",
        ],
    }
