"""A bad publish is refused by name, by each of the publishes, without any database."""

from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy.ext.asyncio import create_async_engine

from outbox_core.envelope import compose
from outbox_core.errors import OutboxError, PayloadTooLarge, WrongType
from outbox_sqlalchemy import OutboxBroker
from tests.bad_inputs.catalogue import Bad, name_of
from tests.bad_inputs.publishes import PUBLISHES
from tests.bad_inputs.values import ONE

BATCHES = tuple(case for case in PUBLISHES if case.fits_a_batch)


def broker() -> OutboxBroker:
    """A broker whose database is not there, so that whoever asks it is told so."""
    return OutboxBroker(create_async_engine("postgresql+asyncpg://127.0.0.1:1/nowhere"))


async def refused(publish: Callable[..., Any], case: Bad) -> OutboxError:
    with case.arguments() as (body, others), pytest.raises(OutboxError) as caught:
        await publish(body, **others)
    return caught.value


@pytest.mark.parametrize("case", PUBLISHES, ids=name_of)
def test_a_bad_argument_is_refused_by_name(case: Bad) -> None:
    with case.arguments() as (body, others), pytest.raises(OutboxError) as refused:
        compose(body, **others)

    assert (type(refused.value), str(refused.value)) == case.said
    assert isinstance(refused.value, TypeError if case.error is WrongType else ValueError)


@pytest.mark.parametrize("case", PUBLISHES, ids=name_of)
async def test_a_publish_says_the_same_before_it_connects(case: Bad) -> None:
    error = await refused(broker().publish, case)

    assert (type(error), str(error)) == case.said


@pytest.mark.parametrize("case", BATCHES, ids=name_of)
async def test_so_does_one_of_a_batch(case: Bad) -> None:
    error = await refused(broker().publish_batch, case)

    assert (type(error), str(error)) == case.said


@pytest.mark.parametrize("case", [case for case in BATCHES if "queue" not in case.given], ids=name_of)
async def test_so_does_a_publisher(case: Bad) -> None:
    publisher = broker().publisher("orders")

    error = await refused(publisher.publish, case)

    assert (type(error), str(error)) == case.said


def test_a_wrong_type_carries_argument_and_value() -> None:
    with pytest.raises(WrongType) as refused:
        compose("body", "orders", priority="high")  # type: ignore[arg-type]  # what is refused

    assert (refused.value.argument, refused.value.value) == ("priority", "high")


def test_a_payload_that_is_too_large_carries_both_numbers() -> None:
    with pytest.raises(PayloadTooLarge) as refused:
        compose(b"12345", "orders", max_payload_bytes=4)

    assert (refused.value.size, refused.value.limit) == (5, 4)


@pytest.mark.parametrize(
    "encoded",
    [("text", None), (b"", 5), b"payload", None, (b"", "a", "b")],
    ids=["text", "type", "bytes", "none", "three"],
)
async def test_what_a_codec_returns_is_looked_at(encoded: Any) -> None:
    class Codec:
        async def encode(self, msg: Any, serializer: Any = None) -> Any:
            return encoded

        async def decode(self, *_: Any) -> Any: ...

    with pytest.raises(OutboxError, match=r"^what a codec's encode returns must be bytes and a content type, got "):
        await OutboxBroker(codec=Codec()).publish(ONE, "orders")


async def test_a_codec_chooses_no_content_type_with_a_line_end() -> None:
    class Codec:
        async def encode(self, msg: Any, serializer: Any = None) -> Any:
            return b"", "text/plain\r\nInjected: 1"

        async def decode(self, *_: Any) -> Any: ...

    with pytest.raises(OutboxError, match="the content type that a codec returns must not contain control characters"):
        await OutboxBroker(codec=Codec()).publish(ONE, "orders")
