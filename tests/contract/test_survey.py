"""A survey: bands, the next due time and pauses, without a lease."""

from datetime import timedelta

import pytest

from outbox_core.envelope import compose
from outbox_core.outcome import DeadLetter, Retry
from outbox_core.store import Band, Survey
from tests.contract.harness import Outbox, bodies, claim, settle


async def test_empty_queues_have_nothing_to_survey(outbox: Outbox) -> None:
    link = await outbox.link()

    assert await link.survey(["orders", "mails"]) == Survey(
        bands=(), due_in=None, keyed=frozenset(), paused=frozenset()
    )


async def test_bands_are_the_priorities_that_each_queue_has(outbox: Outbox) -> None:
    link = await outbox.link()
    await outbox.publish(
        compose("a", "orders", priority=5),
        compose("b", "orders", priority=5),
        compose("c", "orders", priority=-2),
        compose("d", "mails"),
        compose("e", "others"),
    )

    survey = await link.survey(["orders", "mails", "empty"])

    assert len(survey.bands) == 3
    assert set(survey.bands) == {Band("orders", 5), Band("orders", -2), Band("mails", 0)}


async def test_leased_and_scheduled_rows_belong_to_their_band(outbox: Outbox) -> None:
    link = await outbox.link()
    await outbox.publish(compose("a", "orders"), compose("b", "orders", priority=3, activate_in=timedelta(hours=1)))
    await claim(link)

    assert set((await link.survey(["orders"])).bands) == {Band("orders", 0), Band("orders", 3)}


async def test_the_next_due_time_is_the_earliest_of_all_queues(outbox: Outbox) -> None:
    link = await outbox.link()
    await outbox.publish(
        compose("a", "orders", activate_in=timedelta(seconds=300)),
        compose("b", "orders", priority=7, activate_in=timedelta(seconds=200)),
        compose("c", "mails", activate_in=timedelta(seconds=100)),
        compose("d", "others", activate_in=timedelta(seconds=50)),
    )

    assert (await link.survey(["orders"])).due_in == pytest.approx(200, abs=1)
    assert (await link.survey(["orders", "mails"])).due_in == pytest.approx(100, abs=1)


async def test_a_message_that_is_due_now_is_due_in_no_time(outbox: Outbox) -> None:
    link = await outbox.link()
    await outbox.publish(compose("a", "orders", activate_in=timedelta(hours=1)), compose("b", "orders"))

    due_in = (await link.survey(["orders"])).due_in

    assert due_in is not None
    assert due_in <= 0


async def test_a_leased_message_is_not_due(outbox: Outbox) -> None:
    link = await outbox.link()
    await outbox.publish(compose("a", "orders"))
    await claim(link)

    assert (await link.survey(["orders"])).due_in is None


async def test_a_retry_is_due_after_its_delay(outbox: Outbox) -> None:
    link = await outbox.link()
    await outbox.publish(compose("a", "orders"))
    await settle(link, (await claim(link))[0], Retry(120))

    assert (await link.survey(["orders"])).due_in == pytest.approx(120, abs=1)


async def test_the_dead_are_not_surveyed(outbox: Outbox) -> None:
    link = await outbox.link()
    await outbox.publish(compose("a", "orders"))
    await settle(link, (await claim(link))[0], DeadLetter("rejected"))

    assert await link.survey(["orders"]) == Survey(bands=(), due_in=None, keyed=frozenset(), paused=frozenset())


async def test_paused_queues_are_told_whether_they_have_rows_or_not(outbox: Outbox) -> None:
    link = await outbox.link()
    await outbox.publish(compose("a", "orders"), compose("b", "mails"))
    for queue in ("orders", "empty", "others"):
        await outbox.store.set_paused(queue, True, None)

    survey = await link.survey(["orders", "mails", "empty"])

    assert survey.paused == {"orders", "empty"}
    assert set(survey.bands) == {Band("orders", 0), Band("mails", 0)}


async def test_a_survey_leases_nothing(outbox: Outbox) -> None:
    link = await outbox.link()
    await outbox.publish(compose("a", "orders"))

    await link.survey(["orders"])

    assert bodies(await claim(link)) == ["a"]
