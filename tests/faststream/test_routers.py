"""Endpoints collected in routers and included into a broker."""

import inspect
from collections.abc import Callable
from typing import Any

import pytest
from faststream import Depends

from outbox_core.errors import NoTransaction, NotStarted
from outbox_core.faststream import OutboxBroker as CoreBroker
from outbox_core.faststream import OutboxPublisherArgs
from outbox_core.faststream.annotations import OutboxBroker as Annotation
from outbox_core.faststream.broker import BrokerOptions
from outbox_core.faststream.router import PublisherOptions, RouteOptions
from outbox_core.options import SubscriberOptions
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


async def test_a_routers_publisher_takes_the_prefix_of_where_it_is_included(place: Place) -> None:
    broker, router = place.broker(), OutboxRouter("eu.")
    publisher = router.publisher("letters")

    @router.subscriber("orders")
    async def handle(body: int) -> None:
        await publisher.publish(body)

    broker.include_router(router, prefix="shop.")
    async with running(broker):
        await broker.publish(1, "shop.eu.orders")
        await until(lambda: [row.queue for row in place.rows()], ["shop.eu.letters"])


async def test_a_subscriber_of_a_nested_router_can_be_made_while_the_broker_runs(place: Place) -> None:
    inner = OutboxRouter("eu.")
    broker = place.broker(routers=[OutboxRouter("shop.", routers=[inner])])
    got: list[int] = []

    async with running(broker):
        subscriber = inner.subscriber("orders")

        @subscriber
        def handle(body: int) -> None:
            got.append(body)

        await subscriber.start()
        await broker.publish(1, "shop.eu.orders")
        await until(lambda: got, [1])


async def test_dependencies_of_broker_include_routers_and_subscriber_run_in_this_order(place: Place) -> None:
    events: list[str] = []

    def noting(name: str) -> list[Any]:
        async def note() -> None:
            events.append(name)

        return [Depends(note)]

    inner = OutboxRouter(dependencies=noting("inner"))
    outer = OutboxRouter(dependencies=noting("outer"))

    @inner.subscriber("orders", dependencies=noting("subscriber"))
    async def handle(body: int) -> None:
        events.append("handler")

    outer.include_router(inner)
    broker = place.broker(dependencies=noting("broker"))
    broker.include_router(outer, dependencies=noting("include"))
    async with running(broker):
        await broker.publish(1, "orders")
        await until(lambda: events, ["broker", "include", "outer", "inner", "subscriber", "handler"])


async def test_including_a_router_twice_is_including_it_once(place: Place) -> None:
    broker, router = place.broker(), OutboxRouter("shop.")
    got: list[str] = []

    @router.subscriber("orders")
    async def handle(body: int, message: OutboxMessage) -> None:
        got.append(message.queue)

    broker.include_router(router)
    broker.include_router(router)
    assert len(broker.subscribers) == 1
    async with running(broker):
        await broker.publish(1, "shop.orders")
        await until(lambda: got, ["shop.orders"])


async def test_a_router_that_is_included_elsewhere_moves_there(place: Place) -> None:
    first, second, router = place.broker(), place.broker(), OutboxRouter("shop.")
    got: list[OutboxBroker] = []

    @router.subscriber("orders")
    async def handle(its_broker: Annotation) -> None:
        got.append(its_broker)

    first.include_router(router)
    async with running(first):
        await first.publish(1, "shop.orders")
        await until(lambda: got, [first])
    second.include_router(router)
    async with running(second):
        await first.publish(1, "shop.orders")
        await until(lambda: got, [first, second])

    assert first.subscribers == []


async def test_publishers_of_routers_publish_through_the_broker_around_them(place: Place) -> None:
    broker, inner = place.broker(require_transaction="error"), OutboxRouter()
    publisher = inner.publisher("letters")
    broker.include_router(OutboxRouter(routers=[inner]))

    with pytest.raises(NoTransaction):
        await publisher.publish(1)
    await publisher.publish(2, standalone=True)

    assert [row.payload for row in place.rows()] == [b"2"]


async def test_a_listed_handler_may_be_transactional(place: Place) -> None:
    async def handle(body: int, message: OutboxMessage) -> int:
        assert message.session is not None
        return body

    publishers = [OutboxPublisherArgs("letters", headers={"from": "shop"}, key="k", priority=2, reply_to="answers")]
    route = OutboxRoute(handle, "orders", transactional=True, publishers=publishers)
    broker = place.broker(routers=[OutboxRouter(handlers=[route])])
    async with running(broker):
        await broker.publish(1, "orders")
        await until(lambda: [row.queue for row in place.rows()], ["letters"])

    (row,) = place.rows()
    assert (row.headers["from"], row.key, row.priority, row.headers["reply_to"]) == ("shop", "k", 2, "answers")


# Options are written down where they are taken and once more for type checkers.


def test_a_route_takes_the_options_of_a_subscriber() -> None:
    assert RouteOptions.__annotations__.keys() - SubscriberOptions.__annotations__.keys() == options(
        OutboxBroker.subscriber
    )


def test_a_routes_publisher_takes_the_options_of_a_publisher() -> None:
    assert PublisherOptions.__annotations__.keys() == options(OutboxBroker.publisher)


def test_a_router_takes_what_a_broker_hands_down() -> None:
    of_routers = {"prefix", "handlers", "include_in_schema"}
    handed_down = {"dependencies", "middlewares", "routers", "parser", "decoder", "codec", "ack_policy"}
    assert options(OutboxRouter.__init__) | {"prefix", "handlers"} == of_routers | handed_down
    assert handed_down <= BrokerOptions.__annotations__.keys()


def test_the_brokers_options_are_those_of_its_constructor() -> None:
    assert BrokerOptions.__annotations__.keys() == options(CoreBroker.__init__)


def options(function: Callable[..., Any]) -> set[str]:
    """Its keyword-only arguments."""
    parameters = inspect.signature(function).parameters.values()
    return {parameter.name for parameter in parameters if parameter.kind is parameter.KEYWORD_ONLY}


async def test_subscribers_of_a_broker_without_a_database_do_not_start() -> None:
    broker = OutboxBroker()

    @broker.subscriber("orders")
    async def handle(body: int) -> None: ...

    with pytest.raises(NotStarted) as caught:
        await broker.start()

    assert "create the broker with an engine" in str(caught.value)
