"""For tests: what was published, and the project's handlers run where the test sees what they do.

    publish --> rows in the test's transaction --drain--> the project's handlers, on the test's connection

Nothing is replaced. Messages are rows, read back on the connection that the test uses, and handlers are called by the engine
(`outbox_core.inline`), so what a `TestCase` rolls back at its end takes all of it along. `outbox` is for everybody; an
`OutboxTestMixin` has it as `self.outbox`, and pytest as the fixture `outbox`.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import aclosing, contextmanager
from typing import ClassVar, TypedDict, Unpack
from unittest.mock import ANY

from asgiref.sync import async_to_sync, sync_to_async
from django.db import DatabaseError
from django.utils import timezone
from django.utils.asyncio import async_unsafe

from outbox_core.envelope import CONTENT_TYPE, CORRELATION_ID, decode, encode
from outbox_core.errors import CannotEncode, OutboxError, SchemaMismatch
from outbox_core.events import Handled
from outbox_core.sql.refusals import first_line, is_schema_refused
from outbox_django import inline
from outbox_django.models import DeadLetter, OutboxMessage
from outbox_django.publishing import publishing_store
from outbox_django.settings import outbox_settings

MOST_SHOWN = 20  # messages in the text of a failure


class EndlessDrain(OutboxError, RuntimeError):
    """A drain has handled more messages than a test can mean."""

    def __init__(self, limit: int, queue: str) -> None:
        self.limit = limit
        self.queue = queue
        super().__init__(
            f"the drain has handled more than {limit} messages, the last of them in {queue!r}; does its handler publish to "
            "that queue again? If there are so many, pass limit="
        )


class DrainOptions(TypedDict, total=False):
    """The options of `Outbox.drain`, which `Outbox.adrain` explains."""

    raise_errors: bool
    delayed: bool
    limit: int


class Outbox:
    """The outbox as a test sees it. In asynchronous tests, await the methods that begin with an `a`.

    It looks where the ORM looks: in an asynchronous test of pytest's, that is another connection than the one whose
    transaction `django_db` has opened, so that such a test needs `django_db(transaction=True)`.

    *using*: the alias of the database; None: the one that `publish` writes to.
    """

    def __init__(self, using: str | None = None) -> None:
        self._using = using

    @property
    def alias(self) -> str:
        return self._using or publishing_store().alias

    # What is published

    @async_unsafe("messages() waits for the database; in asynchronous tests use await outbox.amessages()")
    def messages(self, queue: str | None = None) -> list[OutboxMessage]:
        """What waits to be handled, scheduled messages too, in the order in which it was published.

        Each has `queue`, `body` (decoded), `headers`, `key`, `priority`, `next_attempt_at` and the other columns.
        """
        with _named_errors():
            return list(OutboxMessage.objects.using(self.alias).filter(**_in_queue(queue)).order_by("id"))

    @async_unsafe("dead_letters() waits for the database; in asynchronous tests use await outbox.adead_letters()")
    def dead_letters(self, queue: str | None = None) -> list[DeadLetter]:
        """What was given up, with `failure_reason` and `last_exception`."""
        with _named_errors():
            return list(DeadLetter.objects.using(self.alias).filter(**_in_queue(queue)).order_by("id"))

    def assert_published(
        self,
        queue: str,
        body: object = ANY,
        *,
        times: int | None = 1,
        headers: Mapping[str, str] | None = None,
    ) -> list[OutboxMessage]:
        """Check that *times* messages with this *body*, and at least these *headers*, wait in *queue*; return them.

        *body* is what was published, or what arrives: a pydantic model, say, or its dict. *times* may be None: one or more.
        """
        __tracebackhide__ = True
        every = self.messages()
        found = [message for message in every if message.queue == queue and _is_like(message, body, headers or {})]
        if len(found) == times or (times is None and found):
            return found
        wanted = "" if body is ANY else f" with body {body!r}"
        wanted += f" with headers {dict(headers)!r}" if headers else ""
        expected = "a message" if times is None else f"{times} message{'' if times == 1 else 's'}"
        raise AssertionError(f"expected {expected}{wanted} in {queue!r}, found {len(found)}; {_shown(every)}")

    def assert_nothing_published(self, queue: str | None = None) -> None:
        """Check that nothing waits in *queue*, or anywhere."""
        __tracebackhide__ = True
        if found := self.messages(queue):
            raise AssertionError(f"expected no message{'' if queue is None else f' in {queue!r}'}; {_shown(found)}")

    # Handling it

    @async_unsafe("drain() waits for handlers; in asynchronous tests use await outbox.adrain()")
    def drain(self, *queues: str, **options: Unpack[DrainOptions]) -> list[Handled]:
        """Run the project's handlers, here and now; see `adrain`."""
        return async_to_sync(self.adrain)(*queues, **options)

    async def adrain(
        self, *queues: str, raise_errors: bool = True, delayed: bool = False, limit: int = 1_000
    ) -> list[Handled]:
        """Run the project's handlers until nothing is due in *queues*, or in any queue; each run and its outcome, in order.

        The first error of a handler is raised, once its message is settled; *raise_errors=False* has it among the results
        instead. *delayed*: also what is scheduled for later, in that order and each message once, as if its time had come; a
        retry that is scheduled meanwhile takes another drain. More than *limit* runs raise `EndlessDrain`.
        """
        handled: list[Handled] = []
        with _named_errors():
            async with aclosing(inline.drain(self.alias, queues, delayed=delayed)) as deliveries:
                async for one in deliveries:
                    handled.append(one)
                    if raise_errors and one.error is not None:
                        one.error.add_note(f"(message {one.delivery.id} in {one.delivery.queue!r}: {one.outcome})")
                        raise one.error
                    if len(handled) > limit:
                        raise EndlessDrain(limit, one.delivery.queue)
        return handled

    # The same for asynchronous tests

    async def amessages(self, queue: str | None = None) -> list[OutboxMessage]:
        """`messages` in an asynchronous test."""
        return await sync_to_async(self.messages)(queue)

    async def adead_letters(self, queue: str | None = None) -> list[DeadLetter]:
        """`dead_letters` in an asynchronous test."""
        return await sync_to_async(self.dead_letters)(queue)

    async def aassert_published(
        self,
        queue: str,
        body: object = ANY,
        *,
        times: int | None = 1,
        headers: Mapping[str, str] | None = None,
    ) -> list[OutboxMessage]:
        """`assert_published` in an asynchronous test."""
        __tracebackhide__ = True
        return await sync_to_async(self.assert_published)(queue, body, times=times, headers=headers)

    async def aassert_nothing_published(self, queue: str | None = None) -> None:
        """`assert_nothing_published` in an asynchronous test."""
        __tracebackhide__ = True
        await sync_to_async(self.assert_nothing_published)(queue)


outbox = Outbox()


class OutboxTestMixin:
    """For Django's test cases: `self.outbox`. For another database: `outbox = Outbox("alias")` in the class."""

    outbox: ClassVar[Outbox] = outbox


# Comparing and showing


def _in_queue(queue: str | None) -> dict[str, str]:
    return {} if queue is None else {"queue": queue}


def _is_like(message: OutboxMessage, body: object, headers: Mapping[str, str]) -> bool:
    if not headers.items() <= message.headers.items():
        return False
    there = message.body
    return bool(body == there or _as_it_arrives(body) == there)


def _as_it_arrives(body: object) -> object:
    try:
        return decode(*encode(body))
    except CannotEncode:  # something that only compares, such as `mock.ANY`
        return body


def _shown(messages: Sequence[OutboxMessage]) -> str:
    if not messages:
        return "nothing is waiting (what a drain has handled is gone; drain() returns it)"
    lines = [_line(message) for message in messages[:MOST_SHOWN]]
    if len(messages) > MOST_SHOWN:
        lines.append(f"and {len(messages) - MOST_SHOWN} more")
    return "\n  ".join(["waiting are:", *lines])


def _line(message: OutboxMessage) -> str:
    headers = {name: value for name, value in message.headers.items() if name not in (CONTENT_TYPE, CORRELATION_ID)}
    facts = {
        "headers": headers,
        "key": message.key,
        "priority": message.priority,
        "timer_id": message.timer_id,
        "attempts_count": message.attempts_count,
        "next_attempt_at": message.next_attempt_at if message.next_attempt_at > timezone.now() else None,
    }
    told = [f"{name}={value!r}" for name, value in facts.items() if value]
    return " ".join([f"{message.queue!r}: {message.body!r}", *told])


@contextmanager
def _named_errors() -> Iterator[None]:
    """A table that is missing in the test's database, with the way out."""
    try:
        yield
    except DatabaseError as error:
        cause = error.__cause__ or error
        settings = outbox_settings()
        if settings.managed or not is_schema_refused(cause):
            raise
        way_out = 'OUTBOX["MANAGED"] is False, so the test database gets no outbox; set it to True for tests'
        raise SchemaMismatch(settings.table, [f"{first_line(cause)}; {way_out}"]) from error
