"""An inbox never forgets a message that could still be redriven."""

from datetime import timedelta
from uuid import UUID

import pytest

from outbox_core.envelope import check_consumer, check_foreign_id
from outbox_core.errors import InvalidMessage, OptionError, WrongType
from outbox_core.inbox import Retention

DAY = timedelta(days=1)


@pytest.mark.parametrize(
    ("inbox", "dead_letters"), [(None, None), (None, DAY), (DAY, DAY), (2 * DAY, DAY), (DAY, timedelta(0))]
)
def test_an_inbox_may_be_kept_as_long_as_dead_letters_or_longer(
    inbox: timedelta | None, dead_letters: timedelta | None
) -> None:
    Retention(inbox=inbox, dead_letters=dead_letters)


def test_an_inbox_that_is_kept_shorter_than_dead_letters_is_refused_with_both_times() -> None:
    with pytest.raises(OptionError) as caught:
        Retention(inbox=7 * DAY, dead_letters=30 * DAY)

    assert str(caught.value) == (
        "retention must not be shorter than dead_letter_retention, got 7 days and 30 days: a dead letter that is redriven "
        "in between would be handled again; keep the inbox for at least 30 days, or dead letters for at most 7 days"
    )


def test_dead_letters_that_are_kept_for_ever_outlive_every_inbox() -> None:
    with pytest.raises(OptionError) as caught:
        Retention(inbox=30 * DAY, dead_letters=None)

    assert str(caught.value) == (
        "retention is 30 days, but dead_letter_retention is not set, so a dead letter could be redriven after that and "
        "be handled again; set dead_letter_retention to at most 30 days, and delete dead letters at that age"
    )


def test_a_purge_takes_the_retention_or_what_is_said() -> None:
    retention = Retention(inbox=30 * DAY, dead_letters=7 * DAY)

    assert retention.age(None) == 30 * DAY
    assert retention.age(7 * DAY) == 7 * DAY


def test_a_purge_of_what_is_kept_for_ever_asks_how_old() -> None:
    with pytest.raises(OptionError, match=r"^this inbox is kept for ever; set retention and dead_letter_retention, or"):
        Retention(inbox=None, dead_letters=DAY).age(None)


@pytest.mark.parametrize(
    ("dead_letters", "said"),
    [
        (7 * DAY, "older_than must not be shorter than dead_letter_retention, got 6 days and 7 days: "),
        (None, "older_than is 6 days, but dead_letter_retention is not set, "),
    ],
)
def test_a_purge_of_what_could_be_redriven_is_refused(dead_letters: timedelta | None, said: str) -> None:
    retention = Retention(inbox=None, dead_letters=dead_letters)

    with pytest.raises(OptionError, match=f"^{said}"):
        retention.age(6 * DAY)


@pytest.mark.parametrize("given", [30, "30d", 2.5])
def test_a_time_is_a_timedelta(given: object) -> None:
    with pytest.raises(WrongType, match=r"^retention must be a timedelta, got \w+; pass timedelta\(days=…\)$"):
        Retention(inbox=given, dead_letters=None)  # type: ignore[arg-type]  # the point
    with pytest.raises(WrongType, match=r"^older_than must be a timedelta"):
        Retention(inbox=None, dead_letters=None).age(given)  # type: ignore[arg-type]  # the point


def test_a_time_is_not_negative() -> None:
    with pytest.raises(OptionError, match=r"^dead_letter_retention must not be negative"):
        Retention(inbox=None, dead_letters=-DAY)


def test_the_names_of_the_times_are_those_of_whoever_declares_them() -> None:
    with pytest.raises(OptionError, match=r"^INBOX must not be shorter than DEAD, got 1 day and 2 days"):
        Retention(inbox=DAY, dead_letters=2 * DAY, inbox_name="INBOX", dead_letters_name="DEAD")


# Ids and consumers


def test_a_uuid_and_its_text_are_one_id() -> None:
    given = UUID("0197A3C0-0000-7000-8000-00000000000A")

    assert check_foreign_id(given) == check_foreign_id(str(given)) == "0197a3c0-0000-7000-8000-00000000000a"


@pytest.mark.parametrize("given", ["a", "evt_1", "orders-0-17", "ü" * 255, "1" * 255])
def test_any_text_may_be_an_id(given: str) -> None:
    assert check_foreign_id(given) == check_consumer(given) == given


@pytest.mark.parametrize("given", ["", "   ", "a" * 256, "a\x00b", "a\nb", "\ud800"])
def test_text_that_no_database_would_keep_is_refused(given: str) -> None:
    with pytest.raises(InvalidMessage, match=r"^message_id must "):
        check_foreign_id(given)
    with pytest.raises(InvalidMessage, match=r"^consumer must "):
        check_consumer(given)


@pytest.mark.parametrize("given", [None, 7, b"m1", True, ["m1"]])
def test_an_id_is_text_or_a_uuid(given: object) -> None:
    with pytest.raises(WrongType, match=r"^message_id must be a str or a UUID, got \w+$"):
        check_foreign_id(given)
    with pytest.raises(WrongType, match=r"^consumer must be a str, got \w+$"):
        check_consumer(given)
