"""Doing something when a message begins to exist: after the commit of its transaction, and never after a rollback."""

import asyncio
from contextlib import suppress

import pytest

from outbox_core.errors import WrongType
from tests.contract.harness import Outbox


class Abort(Exception):
    """What makes a test's transaction roll back."""


class Todo:
    """Notes what was done, and in which way; raises *error* then."""

    def __init__(self, done: list[str], name: str = "todo", error: Exception | None = None) -> None:
        self._done = done
        self._name = name
        self._error = error

    async def run(self) -> None:
        await asyncio.sleep(0)
        self._done.append(self._name)
        if self._error is not None:
            raise self._error

    def run_sync(self) -> None:
        self._done.append(f"{self._name}, synchronously")


async def test_it_is_done_when_the_commit_returns(outbox: Outbox) -> None:
    done: list[str] = []
    async with outbox.store.transaction() as session:
        await outbox.store.after_commit(session, Todo(done, "first"))
        await outbox.store.after_commit(session, Todo(done, "second"))
        await asyncio.sleep(0.01)
        assert done == []

    assert done == ["first", "second"]


async def test_it_is_not_done_after_a_rollback(outbox: Outbox) -> None:
    done: list[str] = []
    with suppress(Abort):
        async with outbox.store.transaction() as session:
            await outbox.store.after_commit(session, Todo(done))
            raise Abort
    async with outbox.store.transaction() as session:
        await outbox.store.after_commit(session, Todo(done, "of the next transaction"))

    assert done == ["of the next transaction"]


async def test_without_a_session_it_is_done_at_once(outbox: Outbox) -> None:
    done: list[str] = []

    await outbox.store.after_commit(None, Todo(done))

    assert done == ["todo"]


async def test_the_commit_raises_what_it_raises(outbox: Outbox) -> None:
    done: list[str] = []
    with pytest.raises(Abort):
        async with outbox.store.transaction() as session:
            await outbox.store.after_commit(session, Todo(done, error=Abort()))

    assert done == ["todo"]


async def test_what_is_no_session_is_refused(outbox: Outbox) -> None:
    for stranger in outbox.strangers:
        with pytest.raises(WrongType):
            await outbox.store.after_commit(stranger, Todo([]))
        with pytest.raises(WrongType):
            outbox.store.after_commit_sync(stranger, Todo([]))
