"""FastStream's own options of a broker: all are accepted, and those that do something do it."""

import json
import logging
from contextlib import nullcontext
from typing import Annotated, Any

import pytest
from fast_depends import Provider
from fast_depends.pydantic import PydanticSerializer
from faststream import AckPolicy, BaseMiddleware, ContextRepo, Depends
from faststream.message import StreamMessage
from faststream.security import SASLPlaintext
from faststream.specification.schema import Tag

from outbox_core.errors import UnknownOption
from outbox_core.faststream.annotations import Context
from outbox_core.faststream.annotations import OutboxBroker as OurBroker
from outbox_core.retry import NoRetry
from outbox_sqlalchemy import OutboxBroker, OutboxResponse, OutboxRouter
from tests.places import Place, running, until


def test_every_option_of_a_broker_is_accepted(place: Place) -> None:
    broker = OutboxBroker(
        place.engine,
        outbox_table=place.tables,
        notify=False,
        listen_dsn=None,
        require_transaction="warn",
        observers=[lambda event: None],
        worker_name="worker-1",
        max_workers=2,
        lane=nullcontext,
        call_decorators=[lambda call: call],
        graceful_timeout=None,
        decoder=None,
        parser=None,
        codec=None,
        dependencies=[Depends(lambda: None)],
        middlewares=[BaseMiddleware],
        routers=[OutboxRouter()],
        ack_policy=AckPolicy.REJECT_ON_ERROR,
        id_generator=lambda: "id",
        security=SASLPlaintext(username="user", password="s3cret"),
        specification_url=["one", "two"],
        protocol="outbox",
        protocol_version="1",
        description="description",
        tags=[Tag(name="tag")],
        logger=logging.getLogger("test"),
        log_level=logging.INFO,
        apply_types=True,
        serializer=PydanticSerializer(),
        provider=Provider(),
        context=ContextRepo({"answer": 42}),
    )

    assert broker.context.get("answer") == 42


async def test_without_apply_types_the_handler_gets_what_was_decoded(place: Place) -> None:
    broker = place.broker(apply_types=False)
    got: list[object] = []

    @broker.subscriber("orders")
    async def handle(body: int) -> None:
        got.append(body)

    async with running(broker):
        await broker.publish("no int", "orders")
        await until(lambda: got, ["no int"])


class Reversed:
    """A codec that turns bodies around."""

    async def encode(self, msg: Any, serializer: Any = None) -> tuple[bytes, str | None]:
        return json.dumps(msg).encode()[::-1], "application/reversed"

    async def decode(self, msg: StreamMessage[Any]) -> Any:
        return json.loads(msg.body[::-1])

    async def encode_batch(self, msgs: Any, serializer: Any = None) -> list[tuple[bytes, str | None]]:
        return [await self.encode(msg) for msg in msgs]

    async def decode_batch(self, msg: StreamMessage[Any]) -> list[Any]:
        return [json.loads(body[::-1]) for body in msg.body]


async def test_a_codec_encodes_and_decodes(both: Place) -> None:
    broker = both.broker(codec=Reversed())
    got: list[object] = []

    await broker.publish({"id": 7}, "orders")
    await broker.publish_batch(1, 2, queue="letters")
    assert [(row.payload, row.headers["content-type"]) for row in both.rows()] == [
        (b'}7 :"di"{', "application/reversed"),
        (b"1", "application/reversed"),
        (b"2", "application/reversed"),
    ]

    @broker.subscriber("orders")
    async def handle(body: dict[str, int]) -> None:
        got.append(body)

    @broker.subscriber("letters", batch=True)
    async def handle_batch(bodies: list[int]) -> None:
        got.append(bodies)

    async with running(broker):
        await until(lambda: {"id": 7} in got and [1, 2] in got, True)


async def test_a_codec_of_a_subscriber_decodes_for_it_alone(place: Place) -> None:
    broker = place.broker()
    got: list[object] = []

    @broker.subscriber("orders", codec=Reversed())
    async def handle(body: dict[str, int]) -> None:
        got.append(body)

    async with running(broker):
        await broker.publish(b'}7 :"di"{', "orders")
        await until(lambda: got, [{"id": 7}])


async def test_a_codec_that_waits_works_asynchronously(place: Place) -> None:
    class Slow(Reversed):
        async def encode(self, msg: Any, serializer: Any = None) -> tuple[bytes, str | None]:
            import asyncio

            await asyncio.sleep(0)
            return await super().encode(msg, serializer)

    await place.broker(codec=Slow()).publish(12, "orders")

    assert [row.payload for row in place.rows()] == [b"21"]


async def test_a_codec_and_a_decoder_exclude_each_other(place: Place) -> None:
    async def decode(message: StreamMessage[Any]) -> object:
        return message.body

    broker = place.broker(codec=Reversed())

    @broker.subscriber("orders", decoder=decode)
    async def handle(body: object) -> None: ...

    with pytest.raises(ValueError, match="'codec' replaces 'decoder'"):
        await broker.start()

    assert broker.running is False


async def test_a_batch_subscriber_wants_a_codec_that_decodes_batches(place: Place) -> None:
    class OneByOne:
        encode = Reversed.encode
        decode = Reversed.decode

    broker = place.broker(codec=OneByOne())

    @broker.subscriber("orders", batch=True)
    async def handle(bodies: list[object]) -> None: ...

    with pytest.raises(ValueError, match="codec implementing BatchCodecProto"):
        await broker.start()

    assert broker.running is False


async def test_a_codec_of_a_router_decodes_for_its_subscribers(place: Place) -> None:
    broker, router = place.broker(), OutboxRouter(codec=Reversed())
    got: list[object] = []

    @router.subscriber("orders")
    async def handle(body: dict[str, int]) -> None:
        got.append(body)

    broker.include_router(router)
    async with running(broker):
        await broker.publish(b'}7 :"di"{', "orders")
        await until(lambda: got, [{"id": 7}])


async def test_without_a_serializer_nothing_is_validated_and_all_is_injected(place: Place) -> None:
    broker = place.broker(serializer=None)
    got: list[tuple[object, ...]] = []

    def hundred() -> str:
        return "100"

    @broker.subscriber("orders")
    async def handle(body: int, value: Annotated[int, Depends(hundred)], its_broker: OurBroker) -> None:
        got.append((body, value, its_broker))

    async with running(broker):
        await broker.publish({"x": 1}, "orders")
        await until(lambda: got, [({"x": 1}, "100", broker)])


class Shouting(PydanticSerializer):
    @staticmethod
    def encode(message: Any) -> bytes:
        return json.dumps({"LOUD": message}).encode()


async def test_a_serializer_encodes_bodies_that_are_no_bytes_and_no_text(place: Place) -> None:
    broker = place.broker(serializer=Shouting())

    await broker.publish({"id": 7}, "orders")
    await broker.publish("text", "orders")
    await broker.publish(b"raw", "orders")

    assert [(row.payload, row.headers.get("content-type")) for row in place.rows()] == [
        (b'{"LOUD": {"id": 7}}', "application/json"),
        (b"text", "text/plain"),
        (b"raw", None),
    ]


async def test_a_provider_overrides_dependencies(place: Place) -> None:
    provider = Provider()
    broker = place.broker(provider=provider)
    got: list[str] = []

    def original() -> str:
        return "original"

    @broker.subscriber("orders")
    async def handle(body: int, value: str = Depends(original)) -> None:
        got.append(value)

    with provider.scope(original, lambda: "override"):
        async with running(broker):
            await broker.publish(1, "orders")
            await until(lambda: got, ["override"])


async def test_the_brokers_context_is_the_handlers(place: Place) -> None:
    broker = place.broker(context=ContextRepo({"answer": 42}))
    got: list[int] = []

    @broker.subscriber("orders")
    async def handle(body: int, answer: int = Context()) -> None:
        got.append(answer)

    async with running(broker):
        await broker.publish(1, "orders")
        await until(lambda: got, [42])


@pytest.mark.parametrize("graceful_timeout", [None, 0, 0.5])
async def test_every_graceful_timeout_stops(place: Place, graceful_timeout: float | None) -> None:
    broker = place.broker(graceful_timeout=graceful_timeout)

    @broker.subscriber("orders", retry_strategy=NoRetry())
    async def handle(body: int) -> None: ...

    async with running(broker, patience=5):
        await broker.publish(1, "orders")
        await until(place.rows, [])

    assert broker.running is False


async def test_without_a_logger_nothing_is_logged(place: Place, caplog: pytest.LogCaptureFixture) -> None:
    broker = place.broker(logger=None)

    @broker.subscriber("orders", retry_strategy=NoRetry())
    async def handle(body: int) -> None:
        raise ValueError(body)

    with caplog.at_level(logging.INFO):
        async with running(broker):
            await broker.publish(1, "orders")
            await until(lambda: len(place.rows(place.tables.dead_letters)), 1)

    assert [record for record in caplog.records if record.levelno >= logging.INFO] == []


async def test_the_default_logger_says_that_a_subscriber_waits(
    place: Place, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # FastStream adds a handler for each `sys.stdout` that it meets; those of earlier tests are closed, and complain.
    monkeypatch.setattr(logging.getLogger("faststream.access.outbox"), "handlers", [])
    broker = OutboxBroker(place.engine, outbox_table=place.tables)

    @broker.subscriber("orders")
    async def handle(body: int) -> None: ...

    async with running(broker):
        await broker.publish(1, "orders")
        await until(place.rows, [])

    captured = capsys.readouterr()
    (line,) = (captured.out + captured.err).splitlines()
    assert line.endswith("- orders |            - `Handle` waiting for messages")


@pytest.mark.parametrize("publish", ["publish", "publish_batch"])
async def test_an_option_that_a_publish_does_not_have_is_refused(publish: str) -> None:
    with pytest.raises(UnknownOption, match="publish has no option 'prority'; did you mean 'priority'"):
        await getattr(OutboxBroker(), publish)("body", queue="orders", prority=4)


async def test_so_is_one_of_a_publisher_and_of_a_response() -> None:
    publisher = OutboxBroker().publisher("orders")

    with pytest.raises(UnknownOption, match="publish has no option 'using'; it has activate_at, "):
        await publisher.publish("body", using="default")
    with pytest.raises(TypeError, match="no option 'using'"):
        OutboxResponse("body", queue="orders", using="default")
