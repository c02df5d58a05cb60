"""What a subscriber may be told."""

from typing import Any

import pytest

from outbox_core.errors import InvalidMessage, OptionError, WrongType
from outbox_core.options import ConsumerOptions
from outbox_core.retry import ConstantRetry, ExponentialRetry, NoRetry


def test_the_defaults_suit_most() -> None:
    options = ConsumerOptions.of("orders", {})

    assert options.queues == ("orders",)
    assert options.max_workers == 1
    assert options.max_deliveries == 20
    assert options.lease_ttl_seconds == 10.0
    assert options.prefetch is None
    assert options.batch is False
    assert options.handler_timeout is None
    assert isinstance(options.retry_strategy, ExponentialRetry)
    assert options.retry_strategy.max_attempts == 10


def test_no_strategy_means_the_default() -> None:
    options = ConsumerOptions.of("orders", {"retry_strategy": None})

    assert isinstance(options.retry_strategy, ExponentialRetry)


def test_one_subscriber_may_have_several_queues() -> None:
    assert ConsumerOptions.of(["orders", "mails"], {}).queues == ("orders", "mails")


def test_everything_given_is_taken() -> None:
    options = ConsumerOptions.of("orders", {"max_workers": 5, "retry_strategy": NoRetry(), "max_deliveries": None})

    assert (options.max_workers, options.retry_strategy, options.max_deliveries) == (5, NoRetry(), None)


def test_a_strategy_of_somebody_elses_is_one_if_it_looks_like_one() -> None:
    class Theirs:
        def get_next_attempt_delay(self, **_: object) -> float | None:
            return 1.0

    assert isinstance(ConsumerOptions.of("orders", {"retry_strategy": Theirs()}).retry_strategy, Theirs)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"queues": ()}, "subscriber needs at least one queue, got none"),
        ({"queues": ("a", "b", "a")}, r"queues must be different from each other, got \['a', 'b', 'a'\]"),
        ({"max_workers": 0}, "max_workers must be between 1 and 1,000, got 0"),
        ({"max_workers": 1_001}, "max_workers must be between 1 and 1,000, got 1,001"),
        ({"max_records": 0}, "max_records must be between 1 and 10,000, got 0"),
        ({"max_records": 10_001}, "max_records must be between 1 and 10,000, got 10,001"),
        ({"max_deliveries": 0}, "max_deliveries must be between 1 and 1,000,000, got 0"),
        ({"prefetch": 0}, "prefetch must be between 1 and 10,000, got 0"),
        ({"lease_ttl_seconds": 0.9}, "lease_ttl_seconds must be between 1 and 3600 seconds, got 0.9"),
        ({"lease_ttl_seconds": 3_601}, "lease_ttl_seconds must be between 1 and 3600 seconds, got 3601"),
        ({"lease_ttl_seconds": float("nan")}, "lease_ttl_seconds must be between 1 and 3600 seconds, got nan"),
        ({"min_fetch_interval": 0}, "min_fetch_interval must be between 0.001 and 3600 seconds, got 0"),
        ({"max_fetch_interval": float("inf")}, "max_fetch_interval must be between 0.05 and 3600 seconds, got inf"),
        (
            {"min_fetch_interval": 2.0, "max_fetch_interval": 1.0},
            "max_fetch_interval must be between 2 and 3600 seconds, got 1.0",
        ),
        ({"handler_timeout": 0}, "handler_timeout must be between 0.001 and 86400 seconds, got 0"),
    ],
)
def test_an_option_out_of_range_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        ConsumerOptions(**{"queues": ("orders",), **options})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_workers": "4"}, "max_workers must be an int, got str"),
        ({"max_workers": True}, "max_workers must be an int, got bool"),
        ({"max_workers": 2.0}, "max_workers must be an int, got float"),
        ({"max_deliveries": "20"}, "max_deliveries must be an int, got str"),
        ({"prefetch": 1.5}, "prefetch must be an int, got float"),
        ({"lease_ttl_seconds": "30"}, "lease_ttl_seconds must be a number of seconds, got str"),
        ({"lease_ttl_seconds": None}, "lease_ttl_seconds must be a number of seconds, got NoneType"),
        ({"handler_timeout": "1"}, "handler_timeout must be a number of seconds, got str"),
        ({"retry_strategy": 5}, "retry_strategy must be a retry strategy such as ExponentialRetry"),
        ({"retry_strategy": ConstantRetry}, "retry_strategy must be a retry strategy such as ExponentialRetry"),
        ({"queues": (5,)}, "queue must be a str, got int"),
    ],
)
def test_an_option_of_another_type_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(WrongType, match=message):
        ConsumerOptions(**{"queues": ("orders",), **options})


@pytest.mark.parametrize("queue", ["", " ", "q" * 256, "a\nb"])
def test_a_queue_that_nobody_could_publish_to_is_refused(queue: str) -> None:
    with pytest.raises(InvalidMessage, match="queue must"):
        ConsumerOptions.of(queue, {})
