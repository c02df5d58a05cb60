"""What is declared or asked for wrongly is refused at the line where it is written."""

from datetime import timedelta
from math import inf, nan
from typing import Any

import pytest
from sqlalchemy.ext.asyncio import create_async_engine

from outbox_core.errors import InvalidHandler, InvalidMessage, OutboxError, UnknownOption, WrongType
from outbox_core.faststream.message import OutboxMessage
from outbox_core.options import check_timeout
from outbox_sqlalchemy import OutboxBroker
from tests.bad_inputs.calls import CALLS
from tests.bad_inputs.catalogue import BadCall, name_of
from tests.bad_inputs.operations import OPERATIONS
from tests.core.deliveries import delivery as make_delivery
from tests.places import Place, statements_on


def check(case: BadCall, error: OutboxError) -> None:
    assert (type(error), str(error)) == (case.error, case.message)
    assert isinstance(error, TypeError if case.error in (WrongType, UnknownOption, InvalidHandler) else ValueError)


@pytest.mark.parametrize("case", CALLS, ids=name_of)
def test_a_bad_declaration_is_refused(case: BadCall) -> None:
    with pytest.raises(OutboxError) as refused:
        case.call()

    check(case, refused.value)


@pytest.mark.parametrize("case", OPERATIONS, ids=name_of)
async def test_a_bad_operation_is_refused_before_it_connects(case: BadCall) -> None:
    broker = OutboxBroker(create_async_engine("postgresql+asyncpg://127.0.0.1:1/nowhere"))

    with pytest.raises(OutboxError) as refused:
        await case.call(broker)

    check(case, refused.value)


async def test_a_bad_operation_sends_nothing(place: Place) -> None:
    with statements_on(place.engine.sync_engine) as sent:
        for case in OPERATIONS:
            with pytest.raises(case.error):
                await case.call(place.broker())

    assert sent == []


DELAYS: list[tuple[Any, type[OutboxError]]] = [
    (-1, InvalidMessage),
    (nan, InvalidMessage),
    (inf, InvalidMessage),
    (10**400, InvalidMessage),
    (timedelta(seconds=-1), InvalidMessage),
    (timedelta.max, InvalidMessage),
    ("5", WrongType),
    (True, WrongType),
]


@pytest.mark.parametrize(("delay", "error"), DELAYS)
@pytest.mark.parametrize("vote", ["nack", "snooze"])
async def test_a_vote_with_a_bad_delay_is_no_vote(vote: str, delay: Any, error: type[OutboxError]) -> None:
    delivery = make_delivery()
    message = OutboxMessage(raw_message=delivery, body=b"")

    with pytest.raises(error, match=r"^delay must be "):
        await getattr(message, vote)(delay)

    assert delivery.vote is None


@pytest.mark.parametrize("timeout", [0, -1, nan, inf, 10**400, "5", True])
def test_a_pull_waits_for_a_time_that_ends(timeout: Any) -> None:
    with pytest.raises(OutboxError, match=r"^timeout must be "):
        check_timeout(timeout)
