"""Where the next claim of keys begins, and whether there may be more."""

import pytest

from outbox_core.claimer import _Keys
from outbox_core.message import Delivery
from outbox_core.store import KeyClaim, KeyWant
from tests.core.deliveries import delivery

ONE = [delivery(queue="orders")]


@pytest.fixture
def keys() -> _Keys:
    keys = _Keys()
    keys.seen({"orders"})
    return keys


def claimed(keys: _Keys, deliveries: list[Delivery], after: str | None, due_in: float | None = None) -> bool:
    """A claim that came to *after*; whether there may be more."""
    want = KeyWant("orders", 10, 10, keys.after("orders"))
    return keys.learn(want, KeyClaim(deliveries, after, due_in))


def test_a_claim_that_passes_all_keys_is_the_last(keys: _Keys) -> None:
    assert not claimed(keys, ONE, None)
    assert not claimed(keys, [], None)


def test_a_claim_goes_on_after_the_last_key_and_begins_again_at_the_end(keys: _Keys) -> None:
    assert claimed(keys, ONE, "m")
    assert keys.after("orders") == "m"
    assert claimed(keys, ONE, None)
    assert keys.after("orders") is None


def test_many_keys_without_anything_to_claim_are_passed_once(keys: _Keys) -> None:
    assert claimed(keys, [], "m")
    assert claimed(keys, [], "t")
    assert not claimed(keys, [], None)


def test_keys_without_anything_to_claim_are_left_out_for_a_moment(keys: _Keys) -> None:
    claimed(keys, [], "m")
    claimed(keys, [], "t")
    assert claimed(keys, ONE, None)

    assert keys.after("orders") == "t"


def test_the_first_that_is_due_is_remembered(keys: _Keys) -> None:
    claimed(keys, [], "m", due_in=100.0)
    claimed(keys, [], None, due_in=50.0)
    first = keys.due_at
    claimed(keys, [], None, due_in=200.0)

    assert first is not None
    assert keys.due_at == first


def test_queues_take_turns_at_being_asked_first(keys: _Keys) -> None:
    assert {keys.in_turn(["a", "b"])[0] for _ in range(2)} == {"a", "b"}
