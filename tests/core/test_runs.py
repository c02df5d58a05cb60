"""What one claimant holds of each key."""

from outbox_core.message import Delivery
from outbox_core.runs import Runs
from tests.core.deliveries import delivery


def run(key: str, *numbers: int) -> list[Delivery]:
    return [delivery(number, key=key) for number in numbers]


def test_only_an_ack_lets_the_next_one_begin() -> None:
    runs = Runs()
    one, two, three = run("a", 1, 2, 3)

    assert list(runs.admit([one, two, three])) == [one]
    one.acked = True
    assert runs.leave([one]) == ([two], [])
    assert runs.leave([two]) == ([], [three])
    assert len(runs) == 0


def test_behind_a_message_that_has_begun_the_last_one_stays_until_that_has_ended() -> None:
    runs = Runs()
    one, two, three = run("a", 1, 2, 3)
    list(runs.admit([one, two, three]))

    assert runs.give_up([]) == [two]
    assert runs.give_up([]) == []
    assert len(runs) == 0
    one.acked = True
    assert runs.leave([one]) == ([], [three])
    assert runs.leave([one]) == ([], [])


def test_behind_a_message_that_has_not_begun_all_are_given_back() -> None:
    runs = Runs()
    one, two, three = run("a", 1, 2, 3)
    first, second = run("b", 4, 5)
    list(runs.admit([one, two, three, first, second]))

    assert runs.give_up([one]) == [two, three]
    assert runs.leave([first]) == ([], [second])
    assert list(runs.admit([one])) == [one]


def test_a_last_one_that_is_lost_is_not_given_back() -> None:
    runs = Runs()
    one, two, three = run("a", 1, 2, 3)
    list(runs.admit([one, two, three]))
    runs.give_up([])

    runs.drop(three)

    assert runs.leave([one]) == ([], [])
