"""Endpoints collected in routers and included into a broker."""

import pytest

from outbox_core.errors import NotStarted
from outbox_core.faststream import OutboxPublisherArgs
from outbox_core.retry import ConstantRetry
from outbox_sqlalchemy import OutboxBroker, OutboxMessage, OutboxRoute, OutboxRouter
from tests.places import Place, running, until


async def test_a_prefix_stands_before_queues_of_subscribers_and_publishers(both: Place) -> None:
    broker, router = both.broker(), OutboxRouter(prefix="shop.")
    got: list[tuple[str, int]] = []

    @router.subscriber(["orders", "returns"])
    @router.publisher("letters")
    async def handle(body: int, message: OutboxMessage) -> int:
        got.append((message.queue, body))
        return body

    broker.include_router(router)
    async with running(broker):
        await broker.publish(1, "shop.orders")
        await broker.publish(2, "shop.returns")
        await broker.publish(3, "orders")
        await until(lambda: sorted(got), [("shop.orders", 1), ("shop.returns", 2)])
        await until(lambda: sorted(row.queue for row in both.rows()), ["orders", "shop.letters", "shop.letters"])


async def test_nested_routers_put_their_prefixes_together(place: Place) -> None:
    outer, inner = OutboxRouter(prefix="shop."), OutboxRouter(prefix="eu.")
    got: list[str] = []

    @inner.subscriber("orders")
    async def handle(body: int, message: OutboxMessage) -> None:
        got.append(message.queue)

    outer.include_router(inner)
    broker = place.broker(routers=[outer])
    async with running(broker):
        await broker.publish(1, "shop.eu.orders")
        await until(lambda: got, ["shop.eu.orders"])


async def test_a_router_can_be_given_a_prefix_where_it_is_included(place: Place) -> None:
    broker, router = place.broker(), OutboxRouter()
    got: list[str] = []

    @router.subscriber("orders")
    async def handle(body: int, message: OutboxMessage) -> None:
        got.append(message.queue)

    broker.include_router(router, prefix="shop.")
    async with running(broker):
        await broker.publish(1, "shop.orders")
        await until(lambda: got, ["shop.orders"])


async def test_a_handler_added_after_the_router_was_included_is_served(place: Place) -> None:
    broker, router = place.broker(), OutboxRouter(prefix="shop.")
    got: list[int] = []
    broker.include_router(router)

    @router.subscriber("orders")
    async def handle(body: int) -> None:
        got.append(body)

    async with running(broker):
        await broker.publish(1, "shop.orders")
        await until(lambda: got, [1])


async def test_a_routers_publisher_publishes_by_itself(place: Place) -> None:
    broker, router = place.broker(), OutboxRouter(prefix="shop.")
    publisher = router.publisher("letters", headers={"from": "shop"})
    broker.include_router(router)

    await publisher.publish(1)

    assert [(row.queue, row.headers["from"]) for row in place.rows()] == [("shop.letters", "shop")]


async def test_a_publisher_of_a_router_without_a_broker_says_so() -> None:
    publisher = OutboxRouter().publisher("letters")

    with pytest.raises(Exception, match=r"(?i)producer|broker|database"):
        await publisher.publish(1)


async def test_handlers_can_be_listed_with_their_options(both: Place) -> None:
    got: list[tuple[str, int, int]] = []

    async def first(body: int, message: OutboxMessage) -> int:
        got.append((message.queue, body, message.attempt))
        if message.attempt == 1:
            raise ValueError(body)
        return body + 1

    def second(body: int) -> None:
        got.append(("second", body, 0))

    router = OutboxRouter(
        "shop.",
        handlers=[
            OutboxRoute(
                first,
                "orders",
                retry_strategy=ConstantRetry(delay_seconds=0.01),
                publishers=[OutboxPublisherArgs("letters")],
                title="First",
            ),
            OutboxRoute(second, ["letters"], max_workers=2, no_reply=True),
        ],
    )
    broker = both.broker(routers=[router])
    async with running(broker):
        await broker.publish(1, "shop.orders")
        await until(lambda: got, [("shop.orders", 1, 1), ("shop.orders", 1, 2), ("second", 2, 0)])


async def test_one_router_serves_two_brokers_only_by_its_own_handlers(place: Place) -> None:
    first, second = OutboxRouter(), OutboxRouter()
    got: list[str] = []

    @first.subscriber("orders")
    async def orders(body: int) -> None:
        got.append("orders")

    @second.subscriber("letters")
    async def letters(body: int) -> None:
        got.append("letters")

    broker = place.broker(routers=[first])
    broker.include_routers(second)
    async with running(broker):
        await broker.publish(1, "orders")
        await broker.publish(1, "letters")
        await until(lambda: sorted(got), ["letters", "orders"])


async def test_subscribers_of_a_broker_without_a_database_do_not_start() -> None:
    broker = OutboxBroker()

    @broker.subscriber("orders")
    async def handle(body: int) -> None: ...

    with pytest.raises(NotStarted) as caught:
        await broker.start()

    assert "create the broker with an engine" in str(caught.value)
