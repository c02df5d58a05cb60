"""Handlers of a broker in this process: their threads, connections and dependencies, and what becomes of their messages."""

import asyncio
import logging
import threading
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from time import perf_counter, sleep
from typing import Annotated, Any

import pytest
from asgiref.sync import async_to_sync, sync_to_async
from django.contrib.auth.models import Group
from django.db import connections, transaction
from django.db.models import TextField
from django.db.models.expressions import RawSQL
from django.test import override_settings
from fast_depends import Provider
from faststream import BaseMiddleware, Context, Depends, Logger
from faststream.exceptions import RejectMessage
from pydantic import BaseModel
from sqlalchemy import URL

from outbox_core.errors import OptionError
from outbox_core.events import Event, Handled
from outbox_django import (
    ConstantRetry,
    NoRetry,
    OutboxBroker,
    OutboxMessage,
    OutboxResponse,
    OutboxRouter,
    apublish,
    publish,
    publish_batch,
)
from outbox_django.models import DeadLetter
from outbox_django.models import OutboxMessage as Row
from tests import processes
from tests.databases import execute
from tests.django.running import PATIENCE, consuming, drain, handle_until, until


def groups(alias: str) -> list[str]:
    return sorted(group.name for group in Group.objects.using(alias))


def bodies(alias: str, queue: str) -> list[Any]:
    return [message.body for message in Row.objects.using(alias).filter(queue=queue).order_by("id")]


def dead(alias: str) -> list[tuple[Any, str]]:
    return [(letter.body, letter.failure_reason) for letter in DeadLetter.objects.using(alias).order_by("id")]


def backend() -> int:
    """The process of the current thread's connection."""
    with connections["default"].cursor() as cursor:
        cursor.execute("SELECT pg_backend_pid()")
        pid: int = cursor.fetchone()[0]
        return pid


def where() -> tuple[int, object]:
    """The current thread, and its connection."""
    return threading.get_ident(), connections["default"]


# With the ORM


def test_synchronous_handlers_use_the_orm(alias: str) -> None:
    broker = OutboxBroker(alias)

    @broker.subscriber("groups")
    def create(name: str) -> None:
        Group.objects.using(alias).create(name=name)

    publish_batch("a", "b", queue="groups", using=alias, standalone=True)
    drain(broker)

    assert groups(alias) == ["a", "b"]
    assert Row.objects.using(alias).count() == 0


def test_a_queue_without_a_handler_is_pulled(alias: str) -> None:
    broker = OutboxBroker(alias)
    subscriber = broker.subscriber("groups")
    publish_batch("a", "b", queue="groups", using=alias, standalone=True)

    async def pull() -> list[Any]:
        async with consuming(broker):
            messages = [await subscriber.get_one(), await subscriber.get_one()]
            await messages[0].ack()
            return [await message.decode() for message in messages]

    assert asyncio.run(pull()) == ["a", "b"]
    assert bodies(alias, "groups") == ["b"]


def test_asynchronous_handlers_use_the_orm(alias: str) -> None:
    broker = OutboxBroker(alias)

    @broker.subscriber("groups")
    async def create(name: str) -> None:
        await Group.objects.using(alias).acreate(name=name)
        assert [group async for group in Group.objects.using(alias).filter(name=name)]

    publish_batch("a", "b", queue="groups", using=alias, standalone=True)
    drain(broker)

    assert groups(alias) == ["a", "b"]


def test_eight_lanes_run_eight_queries_of_the_asynchronous_orm_at_once(django_databases: object) -> None:
    broker = OutboxBroker(concurrency=8)
    Group.objects.create(name="only")
    lanes = set()

    @broker.subscriber("slow")
    async def sleep(n: int) -> None:
        slept = RawSQL("SELECT CAST(pg_sleep(0.05) AS text)", (), output_field=TextField())
        await Group.objects.annotate(slept=slept).aget()
        lanes.add(await sync_to_async(threading.get_ident)())

    publish_batch(*range(40), queue="slow", standalone=True)

    async def run() -> float:
        async with consuming(broker):
            started = perf_counter()
            await broker.drained()
            return perf_counter() - started

    seconds = asyncio.run(run())
    assert seconds < 1.0
    assert len(lanes) == 8
    assert Row.objects.count() == 0


def test_two_hundred_handlers_of_which_a_third_fails_leave_exactly_their_rows(alias: str) -> None:
    broker = OutboxBroker(alias, concurrency=8 if alias == "default" else 2)

    @broker.subscriber("numbers", retry_strategy=NoRetry())
    def create(n: int) -> None:
        with transaction.atomic(using=alias):
            Group.objects.using(alias).create(name=f"{n:03}")
            publish(n, "followers", using=alias)
            if n % 3 == 0:
                raise ValueError(n)

    publish_batch(*range(200), queue="numbers", using=alias, standalone=True)
    drain(broker)

    assert groups(alias) == [f"{n:03}" for n in range(200) if n % 3]
    assert sorted(bodies(alias, "followers")) == [n for n in range(200) if n % 3]
    assert sorted(dead(alias)) == [(n, "retry_terminal") for n in range(200) if n % 3 == 0]
    assert bodies(alias, "numbers") == []


def test_a_failing_handler_is_tried_again_and_then_dead(alias: str) -> None:
    broker = OutboxBroker(alias)
    tries: Counter[str] = Counter()

    @broker.subscriber("q", retry_strategy=ConstantRetry(delay_seconds=0.01, max_attempts=3))
    def fail(body: str) -> None:
        tries[body] += 1
        if body == "always" or tries[body] == 1:
            raise ValueError(body)

    @broker.subscriber("rejected")
    def reject(body: str) -> None:
        raise RejectMessage

    async def empty() -> bool:
        return await Row.objects.using(alias).acount() == 0

    publish_batch("always", "once", queue="q", using=alias, standalone=True)
    publish("never", "rejected", using=alias, standalone=True)
    handle_until(broker, empty)

    assert tries == {"always": 3, "once": 2}
    assert sorted(dead(alias)) == [("always", "retry_terminal"), ("never", "rejected")]
    assert DeadLetter.objects.using(alias).get(queue="q").last_exception == "ValueError: always"


# Connections


def kill(server: URL, pid: int | None = None) -> int:
    """End all connections to the database, or one of them; how many there were."""
    condition = "pid <> pg_backend_pid()" if pid is None else f"pid = {pid}"
    return len(
        execute(
            server,
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() "
            f"AND backend_type = 'client backend' AND {condition}",
        )
    )


def test_connections_that_are_killed_lose_nothing(django_databases: Mapping[str, URL]) -> None:
    broker = OutboxBroker(concurrency=4)
    done: list[int] = []

    @broker.subscriber(
        "numbers", retry_strategy=ConstantRetry(delay_seconds=0.05), lease_ttl_seconds=1.0, max_fetch_interval=0.2
    )
    def create(n: int) -> None:
        with transaction.atomic():
            Group.objects.get_or_create(name=f"{n:03}")
            with connections["default"].cursor() as cursor:
                cursor.execute("SELECT pg_sleep(0.02)")
        done.append(n)

    @broker.subscriber(
        "async numbers", retry_strategy=ConstantRetry(delay_seconds=0.05), lease_ttl_seconds=1.0, max_fetch_interval=0.2
    )
    async def acreate(n: int) -> None:
        await Group.objects.aget_or_create(name=f"{n:03}")
        done.append(n)

    publish_batch(*range(150), queue="numbers", standalone=True)
    publish_batch(*range(150, 300), queue="async numbers", standalone=True)
    url = django_databases["default"]
    connections["default"].close()
    killed = []

    async def run() -> None:
        async with consuming(broker):
            for target in (30, 80, 130, 200):
                await until(lambda target=target: len(done) >= target)  # type: ignore[misc]  # a default of a lambda
                killed.append(await asyncio.to_thread(kill, url))
            await until(lambda: execute(url, "SELECT count(*) FROM outbox") == [(0,)])
            assert await broker.ping(5.0)

    asyncio.run(run())

    assert all(killed)
    assert groups("default") == [f"{n:03}" for n in range(300)]
    assert dead("default") == []


def test_a_lane_keeps_its_connection(django_databases: Mapping[str, URL]) -> None:
    assert connections["default"].settings_dict["CONN_MAX_AGE"] == 0
    broker = OutboxBroker(concurrency=4)
    seen: Counter[int] = Counter()
    backends = []

    @broker.subscriber("sync")
    def count(n: int) -> None:
        seen[backend()] += 1
        with connections["default"].cursor() as cursor:
            cursor.execute(
                "SELECT count(*) FROM pg_stat_activity "
                "WHERE datname = current_database() AND backend_type = 'client backend'"
            )
            backends.append(cursor.fetchone()[0])

    @broker.subscriber("async")
    async def acount(n: int) -> None:
        seen[await sync_to_async(backend)()] += 1

    publish_batch(*range(100), queue="sync", standalone=True)
    publish_batch(*range(100), queue="async", standalone=True)
    connections["default"].close()
    nobody_else_is_connected(django_databases["default"])
    drain(broker)

    assert seen.total() == 200
    assert len(seen) <= 4
    assert max(backends) <= 4 + 4
    nobody_else_is_connected(django_databases["default"])


def nobody_else_is_connected(url: URL) -> None:
    """Return when the only connection is that of the question; those that were closed take a moment to end."""
    open_ones = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
    processes.until(lambda: execute(url, open_ones), [(1,)])


@pytest.mark.parametrize(("conn_max_age", "connected"), [(0, 5), (None, 1), (600, 1)])
def test_a_connection_is_replaced_when_it_is_old(
    django_databases: object, conn_max_age: int | None, connected: int
) -> None:
    with override_settings(OUTBOX={"CONN_MAX_AGE": conn_max_age, "CONCURRENCY": 1}):
        broker = OutboxBroker()
    seen = set()

    @broker.subscriber("q")
    def see(n: int) -> None:
        seen.add(backend())

    publish_batch(*range(5), queue="q", standalone=True)
    drain(broker)

    assert len(seen) == connected


@pytest.mark.parametrize("asynchronous", [False, True], ids=["sync", "async"])
def test_a_connection_that_was_killed_while_idle_fails_nobody(
    django_databases: Mapping[str, URL], asynchronous: bool
) -> None:
    broker = OutboxBroker(concurrency=1)
    seen: list[int] = []

    if asynchronous:

        @broker.subscriber("q", retry_strategy=NoRetry())
        async def asee(n: int) -> None:
            seen.append(await sync_to_async(backend)())
            await Group.objects.acreate(name=str(n))

    else:

        @broker.subscriber("q", retry_strategy=NoRetry())
        def see(n: int) -> None:
            with transaction.atomic():
                seen.append(backend())
                Group.objects.create(name=str(n))

    async def run() -> None:
        async with consuming(broker):
            for n in range(3):
                await apublish(n, "q", standalone=True)
                await until(lambda n=n: broker.handled == n + 1)  # type: ignore[misc]  # a default of a lambda
                await asyncio.to_thread(kill, django_databases["default"], seen[-1])

    asyncio.run(run())

    assert groups("default") == ["0", "1", "2"]
    assert len(set(seen)) == 3
    assert dead("default") == []


def test_a_connection_that_was_killed_while_idle_fails_no_middleware_either(
    django_databases: Mapping[str, URL],
) -> None:
    class Looks(BaseMiddleware):
        async def consume_scope(self, call_next: Any, msg: Any) -> Any:
            await Group.objects.acount()
            return await call_next(msg)

    broker = OutboxBroker(concurrency=1, middlewares=[Looks])
    seen: list[int] = []

    @broker.subscriber("q", retry_strategy=NoRetry())
    def see(n: int) -> None:
        seen.append(backend())

    async def run() -> None:
        async with consuming(broker):
            for n in range(2):
                await apublish(n, "q", standalone=True)
                await until(lambda n=n: broker.handled == n + 1)  # type: ignore[misc]  # a default of a lambda
                await asyncio.to_thread(kill, django_databases["default"], seen[0])

    asyncio.run(run())

    assert len(seen) == 2


@pytest.mark.parametrize("how", ["atomic", "autocommit"])
def test_what_a_handler_leaves_open_is_not_the_next_ones(alias: str, how: str) -> None:
    broker = OutboxBroker(alias, concurrency=1)

    @broker.subscriber("q", retry_strategy=NoRetry())
    def leave(body: str) -> None:
        connection = connections[alias]
        assert connection.get_autocommit()
        assert not connection.in_atomic_block
        Group.objects.using(alias).create(name=f"{body} before")
        if body == "second":
            return
        if how == "atomic":
            transaction.atomic(using=alias).__enter__()
        else:
            connection.set_autocommit(False)
        Group.objects.using(alias).create(name=f"{body} inside")

    publish_batch("first", "second", queue="q", using=alias, standalone=True)
    drain(broker)

    assert dead(alias) == []
    assert groups(alias) == ["first before", "second before"]


def test_what_a_handler_leaves_open_is_rolled_back_at_once(django_databases: Mapping[str, URL]) -> None:
    broker = OutboxBroker(concurrency=1)

    @broker.subscriber("q")
    def leave(body: str) -> None:
        transaction.atomic().__enter__()
        Group.objects.create(name="held")

    publish("x", "q", standalone=True)
    idle = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND state LIKE 'idle in tr%'"

    async def run() -> None:
        async with consuming(broker):
            await broker.drained()
            assert execute(django_databases["default"], idle) == [(0,)]

    asyncio.run(run())

    assert groups("default") == []


def test_a_transaction_around_the_handler_by_a_middleware_is_left_alone(alias: str) -> None:
    class Atomic(BaseMiddleware):
        async def consume_scope(self, call_next: Any, msg: Any) -> Any:
            block = transaction.atomic(using=alias)
            await sync_to_async(block.__enter__)()
            try:
                result = await call_next(msg)
            except BaseException as error:
                await sync_to_async(block.__exit__)(type(error), error, None)
                raise
            await sync_to_async(block.__exit__)(None, None, None)
            return result

    broker = OutboxBroker(alias, concurrency=1, middlewares=[Atomic])

    @broker.subscriber("q", retry_strategy=NoRetry())
    def create(name: str) -> None:
        assert connections[alias].in_atomic_block
        Group.objects.using(alias).create(name=name)
        if name == "b":
            raise ValueError

    publish_batch("a", "b", "c", queue="q", using=alias, standalone=True)
    drain(broker)

    assert groups(alias) == ["a", "c"]


# Lanes


def test_two_subscribers_share_the_lanes(django_databases: object) -> None:
    broker = OutboxBroker(concurrency=2)
    together = threading.Barrier(2, timeout=PATIENCE)
    running: list[int] = []
    most = []

    def meet(n: int) -> None:
        running.append(n)
        most.append(len(running))
        together.wait()
        running.remove(n)

    broker.subscriber("one")(meet)

    @broker.subscriber("two")
    async def ameet(n: int) -> None:
        await sync_to_async(meet)(n)

    publish_batch(*range(10), queue="one", standalone=True)
    publish_batch(*range(10, 20), queue="two", standalone=True)
    drain(broker)

    assert max(most) == 2
    assert len(most) == 20


def test_everything_of_a_delivery_is_in_one_thread(django_databases: object) -> None:
    seen: list[tuple[int, object]] = []

    class Middleware(BaseMiddleware):
        async def consume_scope(self, call_next: Any, msg: Any) -> Any:
            seen.append(await sync_to_async(where)())
            return await call_next(msg)

    broker = OutboxBroker(middlewares=[Middleware])

    def plain() -> int:
        seen.append(where())
        return 1

    def generator(value: Annotated[int, Depends(plain)]) -> Iterator[int]:
        seen.append(where())
        yield value + 1
        seen.append(where())

    class Dependency:
        def __init__(self) -> None:
            seen.append(where())

    async def asynchronous() -> AsyncIterator[int]:
        seen.append(await sync_to_async(where)())
        yield 3
        seen.append(await sync_to_async(where)())

    @broker.subscriber("q")
    def handle(
        body: str,
        two: Annotated[int, Depends(generator)],
        one: Annotated[int, Depends(plain)],
        three: Annotated[int, Depends(asynchronous)],
        made: Annotated[object, Depends(Dependency)],
    ) -> None:
        assert (one, two, three) == (1, 2, 3)
        seen.append(where())
        async_to_sync(inner)()

    async def inner() -> None:
        seen.append(await sync_to_async(where)())

    publish("x", "q", standalone=True)
    drain(broker)

    assert dead("default") == []
    assert len(seen) == 9
    assert len(set(seen)) == 1


def test_a_generator_dependency_puts_its_handler_into_a_transaction(alias: str) -> None:
    broker = OutboxBroker(alias, concurrency=8 if alias == "default" else 2)
    threads: dict[int, list[int]] = {}

    def in_atomic(n: int) -> Iterator[None]:
        threads[n] = [threading.get_ident()]
        with transaction.atomic(using=alias):
            yield
        threads[n].append(threading.get_ident())

    @broker.subscriber("sync", retry_strategy=NoRetry(), dependencies=[Depends(in_atomic)])
    def create(n: int) -> None:
        threads[n].append(threading.get_ident())
        assert connections[alias].in_atomic_block
        Group.objects.using(alias).create(name=f"{n:03}")
        publish(n, "followers", using=alias)
        if n % 3 == 0:
            raise ValueError(n)

    @broker.subscriber("async", retry_strategy=NoRetry())
    async def acreate(n: int, block: Annotated[None, Depends(in_atomic)]) -> None:
        threads[n].append(await sync_to_async(threading.get_ident)())
        await Group.objects.using(alias).acreate(name=f"{n:03}")
        await apublish(n, "followers", using=alias)
        if n % 3 == 0:
            raise ValueError(n)

    publish_batch(*range(50), queue="sync", using=alias, standalone=True)
    publish_batch(*range(50, 100), queue="async", using=alias, standalone=True)
    drain(broker)

    kept = [n for n in range(100) if n % 3]
    assert groups(alias) == [f"{n:03}" for n in kept]
    assert sorted(bodies(alias, "followers")) == kept
    assert sorted(dead(alias)) == [(n, "retry_terminal") for n in range(100) if n % 3 == 0]
    assert all(len(set(idents)) == 1 for idents in threads.values())
    assert {len(threads[n]) for n in kept} == {3}


def test_a_dependency_is_resolved_once_a_delivery(alias: str) -> None:
    broker = OutboxBroker(alias)
    calls = []

    def common() -> int:
        calls.append(1)
        return len(calls)

    def left(value: int = Depends(common)) -> int:
        return value

    def right(value: int = Depends(common)) -> int:
        return value

    @broker.subscriber("q", retry_strategy=NoRetry())
    def handle(body: str, a: int = Depends(left), b: int = Depends(right)) -> None:
        assert a == b

    publish_batch("x", "y", queue="q", using=alias, standalone=True)
    drain(broker)

    assert len(calls) == 2
    assert dead(alias) == []


def test_dependencies_are_overridden_through_the_broker(django_databases: object) -> None:
    broker = OutboxBroker()
    seen = []

    def original() -> str:
        return "original"

    def replacement() -> Iterator[str]:
        with transaction.atomic():
            yield "replacement"

    @broker.subscriber("q")
    def handle(body: str, value: str = Depends(original)) -> None:
        seen.append((value, connections["default"].in_atomic_block))

    with broker.provider.scope(original, replacement):
        publish("x", "q", standalone=True)
        drain(broker)
    publish("x", "q", standalone=True)
    drain(broker)

    assert seen == [("replacement", True), ("original", False)]


def test_another_provider_is_refused_since_its_dependencies_run_anywhere() -> None:
    with pytest.raises(OptionError, match="LaneProvider"):
        OutboxBroker(provider=Provider())


def test_an_asynchronous_dependency_of_a_synchronous_handler_is_awaited(alias: str) -> None:
    broker = OutboxBroker(alias)

    async def name() -> str:
        return f"group {await Group.objects.using(alias).acount()}"

    async def block() -> AsyncIterator[None]:
        await Group.objects.using(alias).acreate(name="block")
        yield
        await Group.objects.using(alias).filter(name="block").adelete()

    @broker.subscriber("q", retry_strategy=NoRetry(), dependencies=[Depends(block)])
    def create(body: str, name: str = Depends(name)) -> None:
        Group.objects.using(alias).create(name=name)

    publish("x", "q", using=alias, standalone=True)
    drain(broker)

    assert groups(alias) == ["group 1"]


# FastStream's own


class Order(BaseModel):
    number: int
    item: str = "bread"


@pytest.mark.parametrize("asynchronous", [False, True], ids=["sync", "async"])
def test_context_logger_message_and_models(
    django_databases: object, caplog: pytest.LogCaptureFixture, asynchronous: bool
) -> None:
    broker = OutboxBroker()
    seen: list[object] = []

    def see(order: Order, message: OutboxMessage, logger: Logger, queue: str) -> None:
        logger.warning("seen %d", order.number)
        seen.append((order, message.headers["a"], message.correlation_id, message.attempt, queue))

    if asynchronous:

        @broker.subscriber("q")
        async def ahandle(
            order: Order, message: OutboxMessage, logger: Logger, queue: str = Context("message.raw_message.queue")
        ) -> None:
            see(order, message, logger, queue)

    else:

        @broker.subscriber("q")
        def handle(
            order: Order, message: OutboxMessage, logger: Logger, queue: str = Context("message.raw_message.queue")
        ) -> None:
            see(order, message, logger, queue)

    publish(Order(number=7), "q", standalone=True, headers={"a": "b"}, correlation_id="trace")
    publish({"number": "no number"}, "q", standalone=True)
    with caplog.at_level(logging.WARNING, "outbox.handlers"):
        drain(broker)

    assert seen == [(Order(number=7), "b", "trace", 1, "q")]
    assert "seen 7" in caplog.messages


def test_routers(alias: str) -> None:
    broker = OutboxBroker(alias)
    router = OutboxRouter(prefix="shop.")
    inner = OutboxRouter(prefix="inner.")
    seen = []

    def in_atomic() -> Iterator[str]:
        with transaction.atomic(using=alias):
            yield threading.current_thread().name

    @inner.subscriber("q", dependencies=[Depends(in_atomic)])
    def handle(body: str, thread: str = Depends(in_atomic)) -> None:
        seen.append((body, connections[alias].in_atomic_block, thread == threading.current_thread().name))

    @router.subscriber("q")
    @router.publisher("out")
    async def ahandle(body: str) -> str:
        return body.upper()

    router.include_router(inner)
    broker.include_router(router)
    publish("deep", "shop.inner.q", using=alias, standalone=True)
    publish("shallow", "shop.q", using=alias, standalone=True)
    drain(broker)

    assert seen == [("deep", True, True)]
    assert bodies(alias, "shop.out") == ["SHALLOW"]


@pytest.mark.parametrize("asynchronous", [False, True], ids=["sync", "async"])
def test_batches(alias: str, asynchronous: bool) -> None:
    broker = OutboxBroker(alias)

    if asynchronous:

        @broker.subscriber("q", batch=True, max_records=10)
        async def acreate(names: list[str]) -> None:
            await Group.objects.using(alias).abulk_create([Group(name=name) for name in names])

    else:

        @broker.subscriber("q", batch=True, max_records=10)
        def create(names: list[str]) -> None:
            with transaction.atomic(using=alias):
                Group.objects.using(alias).bulk_create([Group(name=name) for name in names])

    publish_batch(*(f"{n:02}" for n in range(25)), queue="q", using=alias, standalone=True)
    drain(broker)

    assert groups(alias) == [f"{n:02}" for n in range(25)]


def test_filters_choose_the_handler(alias: str) -> None:
    broker = OutboxBroker(alias)
    subscriber = broker.subscriber("q")
    seen = []

    def is_loud(message: OutboxMessage) -> bool:
        return message.headers.get("volume") == "loud"

    @subscriber(filter=is_loud)
    def loud(body: str) -> None:
        seen.append(("loud", body))

    @subscriber
    async def quiet(body: str) -> None:
        seen.append(("quiet", body))

    publish("a", "q", using=alias, standalone=True, headers={"volume": "loud"})
    publish("b", "q", using=alias, standalone=True)
    drain(broker)

    assert sorted(seen) == [("loud", "a"), ("quiet", "b")]


def test_a_synchronous_filter_runs_in_the_lane(alias: str) -> None:
    broker = OutboxBroker(alias, concurrency=1)
    subscriber = broker.subscriber("q", retry_strategy=NoRetry())
    seen = []

    def is_first(message: OutboxMessage) -> bool:
        seen.append(threading.get_ident())
        return not Group.objects.using(alias).exists()

    @subscriber(filter=is_first)
    def first(body: str) -> None:
        seen.append(threading.get_ident())
        Group.objects.using(alias).create(name=f"first {body}")

    @subscriber
    def other(body: str) -> None:
        Group.objects.using(alias).create(name=f"other {body}")

    publish("a", "q", using=alias, standalone=True)
    drain(broker)
    publish("b", "q", using=alias, standalone=True)
    drain(broker)

    assert groups(alias) == ["first a", "other b"]
    assert seen[0] == seen[1]


def test_replies(alias: str) -> None:
    broker = OutboxBroker(alias)

    @broker.subscriber("sync")
    @broker.publisher("replies", headers={"a": "b"})
    def reply(body: str) -> str:
        return f"sync {body}"

    @broker.subscriber("async")
    @broker.publisher("replies")
    async def areply(body: str) -> str:
        return f"async {body}"

    @broker.subscriber("sync response")
    @broker.publisher("replies")
    def respond(body: str) -> OutboxResponse:
        with transaction.atomic(using=alias):
            publish("chained", "responses", using=alias)
        return OutboxResponse(f"sync {body}", queue="responses", key="k")

    @broker.subscriber("async response")
    async def arespond(body: str) -> OutboxResponse:
        return OutboxResponse(f"async {body}", queue="responses", key="k")

    for queue in ("sync", "async", "sync response", "async response"):
        publish(queue, queue, using=alias, standalone=True, reply_to="answers", correlation_id="trace")
    drain(broker)

    assert dead(alias) == []
    assert sorted(bodies(alias, "replies")) == ["async async", "sync sync", "sync sync response"]
    assert sorted(bodies(alias, "responses")) == ["async async response", "chained", "sync sync response"]
    assert sorted(bodies(alias, "answers")) == [
        "async async",
        "async async response",
        "sync sync",
        "sync sync response",
    ]
    followers = Row.objects.using(alias).exclude(headers__correlation_id="trace")
    assert [message.body for message in followers] == ["chained"]


@pytest.mark.parametrize("asynchronous", [False, True], ids=["sync", "async"])
def test_a_handler_is_still_a_plain_function(django_databases: object, asynchronous: bool) -> None:
    broker = OutboxBroker()

    @broker.subscriber("sync")
    @broker.publisher("replies")
    def handle(body: str) -> str:
        return body.upper()

    @broker.subscriber("async")
    async def ahandle(body: str) -> str:
        return body.upper()

    async def run() -> str:
        async with consuming(broker):
            return await ahandle("b")

    assert handle("a") == "A"
    assert asyncio.run(run()) == "B"
    assert handle("a") == "A"
    assert Row.objects.count() == 0


def test_a_handler_that_takes_too_long_is_not_given_to_a_second_lane_meanwhile(
    django_databases: Mapping[str, URL],
) -> None:
    broker = OutboxBroker(concurrency=1)
    events: list[str] = []
    claimed = "SELECT queue FROM outbox WHERE queue = 'fast' AND leased_until IS NOT NULL"

    @broker.subscriber("slow", handler_timeout=0.05, retry_strategy=NoRetry())
    def slow(body: str) -> None:
        with transaction.atomic():
            Group.objects.create(name="slow")
            events.append("slow begins")
            processes.until(lambda: execute(django_databases["default"], claimed), [("fast",)], patience=10)
            sleep(0.1)  # the time that it has ends
            events.append("slow ends")

    @broker.subscriber("fast")
    def fast(body: str) -> None:
        events.append("fast")

    publish("x", "slow", standalone=True, priority=1)

    async def run() -> None:
        async with consuming(broker):
            await until(lambda: events != [])
            await apublish("y", "fast", standalone=True)
            await broker.drained()

    asyncio.run(run())

    assert events == ["slow begins", "slow ends", "fast"]
    assert groups("default") == ["slow"]
    assert dead("default") == []


def test_a_worker_knows_what_time_it_is_without_time_zones(alias: str) -> None:
    with override_settings(USE_TZ=False, TIME_ZONE="Asia/Kathmandu"):
        broker = OutboxBroker(alias)
        ages = []

        @broker.subscriber("q", retry_strategy=ConstantRetry(delay_seconds=0.01))
        async def handle(body: str, message: OutboxMessage) -> None:
            delivery = message.raw_message
            ages.append((datetime.now(UTC) - delivery.created_at, delivery.claimed_at - delivery.due_at))
            if len(ages) == 1:
                raise ValueError

        publish("x", "q", using=alias, standalone=True)
        handle_until(broker, lambda: broker.handled == 2)
        connections[alias].close()

    assert all(abs(age) < timedelta(minutes=1) for pair in ages for age in pair)
    assert Row.objects.using(alias).count() == 0


def test_observers_are_told(django_databases: object) -> None:
    told: list[Event] = []
    broker = OutboxBroker(observers=[told.append])

    @broker.subscriber("q")
    def handle(body: str) -> None: ...

    publish("x", "q", standalone=True)
    drain(broker)

    assert [event.error for event in told if isinstance(event, Handled)] == [None]
    assert broker.handled == 1
