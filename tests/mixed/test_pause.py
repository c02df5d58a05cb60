"""A queue that one framework paused is paused for the workers of the other."""

from tests.mixed.consumers import Consumer
from tests.mixed.place import Shared
from tests.mixed.publishers import QUEUE


async def test_a_pause_of_one_side_is_obeyed_by_the_other(shared: Shared, consumer: Consumer) -> None:
    await consumer.other.pause(QUEUE)
    await shared.sqlalchemy.publish({}, QUEUE)
    await shared.sqlalchemy.publish({}, "mails")

    async with consumer.running(QUEUE, "mails"):
        await consumer.until_seen(1)
        assert consumer.seen[0].queue == "mails"  # though the other one is older

        await consumer.other.resume(QUEUE)
        await consumer.until_seen(2)
        assert consumer.seen[1].queue == QUEUE
