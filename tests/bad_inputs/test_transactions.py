"""A refused publish sends nothing, and the transaction that it was tried in goes on and commits."""

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session

from outbox_core.errors import OutboxError
from tests.bad_inputs.catalogue import Bad, told
from tests.bad_inputs.publishes import PUBLISHES
from tests.places import Place, statements_on

PURCHASE = text("INSERT INTO purchases (name) VALUES (:name)")
BATCHES = tuple(case for case in PUBLISHES if case.fits_a_batch)


def names(place: Place) -> list[str]:
    with place.sync_engine.connect() as connection:
        return list(connection.scalars(text("SELECT name FROM purchases")))


async def attempt(place: Place, publish: str, case: Bad, connected: bool) -> tuple[object, list[str]]:
    """What is said, and what is sent, between two writes of the application's own, which are committed."""
    error = None
    async with AsyncSession(place.engine) as session, session.begin():
        target = await session.connection() if connected else session
        await session.execute(PURCHASE, {"name": "before"})
        with case.arguments() as (body, others), statements_on(place.engine.sync_engine) as sent:
            try:
                await getattr(place.broker(), publish)(body, session=target, **others)
            except OutboxError as refused:
                error = refused
        await session.execute(PURCHASE, {"name": "after"})
    return told(error), sent


@pytest.mark.parametrize("connected", [False, True], ids=["session", "connection"])
@pytest.mark.parametrize(("publish", "cases"), [("publish", PUBLISHES), ("publish_batch", BATCHES)])
async def test_asynchronous_sessions_and_connections(
    place: Place, publish: str, cases: tuple[Bad, ...], connected: bool
) -> None:
    seen = [await attempt(place, publish, case, connected) for case in cases]

    assert seen == [(case.said, []) for case in cases]
    assert names(place) == ["before", "after"] * len(cases)
    assert place.rows() == []


def attempt_sync(place: Place, publish: str, case: Bad) -> tuple[object, list[str]]:
    error = None
    with Session(place.sync_engine) as session, session.begin():
        session.execute(PURCHASE, {"name": "before"})
        with case.arguments() as (body, others), statements_on(place.sync_engine) as sent:
            try:
                getattr(place.broker(), publish)(body, session=session, **others)
            except OutboxError as refused:
                error = refused
        session.execute(PURCHASE, {"name": "after"})
    return told(error), sent


@pytest.mark.parametrize(("publish", "cases"), [("publish_sync", PUBLISHES), ("publish_batch_sync", BATCHES)])
def test_synchronous_sessions(sync_place: Place, publish: str, cases: tuple[Bad, ...]) -> None:
    seen = [attempt_sync(sync_place, publish, case) for case in cases]

    assert seen == [(case.said, []) for case in cases]
    assert names(sync_place) == ["before", "after"] * len(cases)
    assert sync_place.rows() == []
