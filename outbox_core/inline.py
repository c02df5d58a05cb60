"""The engine without its loops: claim, dispatch, settle, one delivery after another, on one link.

For tests, which see every outcome where it happens and on their own connection, and for a worker that is to handle one
message and go. There is no lease to extend and nobody to share with; for everything else there is `outbox_core.worker`.
"""

from collections.abc import AsyncIterator, Sequence
from contextlib import nullcontext
from time import perf_counter

from outbox_core.dispatch import refuse
from outbox_core.events import Handled
from outbox_core.message import Delivery
from outbox_core.outcome import Ack
from outbox_core.slots import Consumer
from outbox_core.store import Band, KeyWant, Link, Settlement, Want

WORKER = "inline"


async def drain(link: Link, consumers: Sequence[Consumer]) -> AsyncIterator[Handled]:
    """Handle what is due, the highest priority first and what has a key last, until nothing is.

    Each run is reported once it is settled.

    A message whose handler fails comes back when its retry is due, which is rarely within the same call.
    """
    by_queue = {queue: consumer for consumer in consumers for queue in consumer.options.queues}
    while batch := await _claim(link, by_queue):
        for handled in await _handle(link, by_queue[batch[0].queue], batch):
            yield handled


async def _claim(link: Link, by_queue: dict[str, Consumer]) -> list[Delivery]:
    survey = await link.survey(list(by_queue))
    bands = [band for band in survey.bands if band.queue not in survey.paused]
    for band in sorted(bands, key=lambda band: -band.priority):
        options = by_queue[band.queue].options
        most = options.max_records if options.batch else 1
        want = Want(Band(band.queue, band.priority), most)
        if batch := await link.claim([want], total=most, lease=options.lease_ttl_seconds):
            return batch
    for queue in sorted(survey.keyed - survey.paused):
        if batch := await _claim_keyed(link, queue, by_queue[queue]):
            return batch
    return []


async def _claim_keyed(link: Link, queue: str, consumer: Consumer) -> list[Delivery]:
    """The first messages of the first key that has any, or, for a handler of batches, of as many keys as it takes."""
    options, after = consumer.options, None
    most = options.max_records if options.batch else 1
    while True:
        want = KeyWant(queue, most, most, after)
        batch, after, _ = await link.claim_keyed(want, lease=options.lease_ttl_seconds)
        if batch or after is None:
            return batch


async def _handle(link: Link, consumer: Consumer, batch: list[Delivery]) -> list[Handled]:
    refused = {delivery: outcome for delivery in batch if (outcome := refuse(delivery, consumer.options)) is not None}
    handled = [Handled(delivery, outcome, None, 0.0) for delivery, outcome in refused.items()]
    if startable := [delivery for delivery in batch if delivery not in refused]:
        if consumer.ack_first:
            await _settle(link, [Settlement(delivery, Ack()) for delivery in startable])
        handled += await _run(link, consumer, startable)
    await _settle(link, [Settlement(one.delivery, one.outcome) for one in handled])
    return handled


async def _settle(link: Link, settlements: list[Settlement]) -> None:
    """Those whose handler's own transaction has not done it."""
    open_ones = [one for one in settlements if one.delivery.completion != "committed"]
    if open_ones:
        await link.settle(open_ones, worker=WORKER)


async def _run(link: Link, consumer: Consumer, batch: list[Delivery]) -> list[Handled]:
    for delivery in batch:
        if delivery.suspect:
            delivery.begun = await link.begin(delivery)
    error: Exception | None = None
    started = perf_counter()
    try:
        async with consumer.lane() if consumer.lane is not None else nullcontext():
            await consumer.call(batch)
    except Exception as raised:
        error = raised
    seconds = perf_counter() - started
    return [Handled(one, consumer.decide(one, error, seconds), error, seconds) for one in batch]
