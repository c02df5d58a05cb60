"""Each statement of a message's life on no message at all: a database looks at privileges and columns before rows."""

from collections.abc import Iterator
from time import time
from uuid import UUID, uuid4

from outbox_core.message import Delivery
from outbox_core.outcome import Ack, DeadLetter, Outcome, Release, Retry
from outbox_core.sql.dialect import Dialect, Settlements, Statement
from outbox_core.store import Band, KeyWant, Settlement, Want

NOWHERE = ""  # a queue that nobody can publish to
NO_KEY = ""
LEASE = 1.0

OUTCOMES: tuple[Outcome, ...] = (
    Ack(),
    Retry(1.0),
    Release(),
    DeadLetter("rejected"),
    DeadLetter("rejected", halts=True),
)


def trial(dialect: Dialect) -> Iterator[Statement]:
    """What a worker's link executes, each to be executed on its own; none changes anything."""
    token, suspect = uuid4(), uuid4()
    yield dialect.survey([NOWHERE])
    yield dialect.claim([Want(Band(NOWHERE), 1)], total=1, most_bytes=1, lease=LEASE, token=token, suspect=suspect)
    yield dialect.look_at_keys(KeyWant(NOWHERE, limit=1, run=1))
    yield dialect.claim_keys(NOWHERE, {NO_KEY: 1}, most_bytes=1, lease=LEASE, token=token, suspect=suspect)
    if dialect.claims_collide:
        yield dialect.rivals(NOWHERE, [NO_KEY], token=token, suspect=suspect)
    nothing = _nothing(token)
    yield dialect.begin(nothing)
    yield dialect.extend([nothing], LEASE)
    yield dialect.ours([nothing])
    park = dialect.tables.dead_letters is None
    for outcome in OUTCOMES:
        yield from dialect.settle(Settlements.of([Settlement(nothing, outcome)], park=park), worker="")


def _nothing(token: UUID) -> Delivery:
    """A delivery of a row that no table has."""
    now = time()
    return Delivery(
        id=-1,
        message_id=UUID(int=0),
        queue=NOWHERE,
        key=None,
        payload=b"",
        headers={},
        priority=0,
        attempts=0,
        deliveries=0,
        created=now,
        first_attempt=None,
        due=now,
        claimed=now,
        token=token,
    )
