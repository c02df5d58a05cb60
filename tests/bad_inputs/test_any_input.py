"""Whatever is passed to a publish: either it is stored as it is, or it is refused and the transaction goes on."""

import asyncio
from collections.abc import Mapping
from datetime import UTC, timedelta
from typing import Any
from uuid import UUID

from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st
from sqlalchemy import Row, select, text
from sqlalchemy.ext.asyncio import AsyncSession

from outbox_core.envelope import CONTENT_TYPE, CORRELATION_ID, REPLY_TO, decode
from outbox_core.errors import OutboxError
from tests.places import Place

SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text()
DATA = st.recursive(SCALARS, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=8)
JUNK = (
    DATA
    | st.binary()
    | st.sampled_from([object(), print, int, ..., {1, 2}, 1 + 2j, range(3), ValueError("no"), 10**5_000, -(10**400)])
    | st.timedeltas()
    | st.datetimes()
)
PRINTABLE = st.characters(codec="utf-8", exclude_categories=["Cc", "Zl", "Zp"])
# Names that are one, or nearly.
NAMES = (
    st.sampled_from(["orders", "Ümläut", "🚲"]) | st.text(PRINTABLE, min_size=1, max_size=256) | st.text(max_size=20)
)
TOKENS = st.text(st.sampled_from("abcXYZ0189-_.~!"), min_size=1, max_size=20)
HEADERS = st.dictionaries(TOKENS, st.text(PRINTABLE), max_size=5)


def likely(good: st.SearchStrategy[Any], bad: st.SearchStrategy[Any] = JUNK) -> st.SearchStrategy[Any]:
    """Mostly *good*, so that a publish of many arguments is not refused for one of them every time."""
    return st.sampled_from([good] * 15 + [bad]).flatmap(lambda chosen: chosen)


ARGUMENTS = st.fixed_dictionaries(
    {"message": likely(DATA | st.binary() | st.text()), "queue": likely(NAMES)},
    optional={
        "headers": likely(HEADERS),
        "correlation_id": likely(NAMES),
        "reply_to": likely(NAMES),
        "message_id": likely(st.uuids() | st.uuids().map(str)),
        "key": likely(NAMES),
        "priority": likely(st.integers(-32_768, 32_767)),
        "activate_in": likely(st.timedeltas(timedelta(0), timedelta(days=3_660))),
        "timer_id": likely(NAMES),
        "timer_conflict": likely(st.sampled_from(["ignore", "extend", "replace"])),
    },
) | st.fixed_dictionaries(
    {"message": likely(DATA), "queue": likely(NAMES), "activate_at": likely(st.datetimes(timezones=st.just(UTC)))}
)


def test_it_is_stored_as_it_is_or_refused(idle_place: Place) -> None:
    with asyncio.Runner() as runner:

        @settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow])
        @given(ARGUMENTS)
        def attempt(arguments: Mapping[str, Any]) -> None:
            runner.run(published_or_refused(idle_place, arguments))

        try:
            attempt()
        finally:
            runner.run(idle_place.close())


async def published_or_refused(place: Place, arguments: Mapping[str, Any]) -> None:
    async with AsyncSession(place.engine) as session, session.begin() as transaction:
        try:
            await place.broker().publish(session=session, **arguments)
        except OutboxError as error:
            event(type(error).__name__)
            assert (await session.execute(select(place.tables.outbox))).all() == []
        else:
            event("stored")
            check((await session.execute(select(place.tables.outbox))).one(), arguments)
        await session.execute(text("INSERT INTO purchases (name) VALUES ('after')"))
        await transaction.rollback()


def check(row: Row[Any], arguments: Mapping[str, Any]) -> None:
    headers = dict(row.headers)
    assert same(decode(row.payload, headers.pop(CONTENT_TYPE, None)), arguments["message"])
    given = {name: value for name, value in (arguments.get("headers") or {}).items() if name != CONTENT_TYPE}
    correlation_id, reply_to = headers.pop(CORRELATION_ID), headers.pop(REPLY_TO, "")
    assert headers == given
    assert correlation_id == (str(row.message_id) if (asked := arguments.get("correlation_id")) is None else asked)
    assert reply_to == (arguments.get("reply_to") or "")
    assert arguments.get("message_id") in (None, row.message_id, str(row.message_id))
    assert isinstance(row.message_id, UUID)
    assert (row.queue, row.key, row.priority, row.timer_id) == (
        arguments["queue"],
        arguments.get("key"),
        arguments.get("priority", 0),
        arguments.get("timer_id"),
    )
    if (delay := arguments.get("activate_in")) is not None:
        assert abs(row.next_attempt_at - row.created_at - delay) < timedelta(minutes=1)
    if (due := arguments.get("activate_at")) is not None:
        assert row.next_attempt_at.replace(tzinfo=UTC) == due


def same(read: object, published: object) -> bool:
    """Equal, with its types, where JSON has that type; a time or a span arrives as text or seconds."""
    match published:
        case timedelta():
            return read == published.total_seconds()
        case bytes() | bool() | str() | None:
            return type(read) is type(published) and read == published
        case int() | float() | list() | dict():
            return read == published
    return read == published.isoformat()  # type: ignore[attr-defined]  # nothing else is stored
