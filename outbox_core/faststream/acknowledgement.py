"""FastStream's acknowledgement policies, as votes.

Upstream enters a middleware for every message to ack it in the end. Here the end is known where the pipeline returns or
raises, and acking only records a vote, so one function says the same for a sixth of the pipeline's cost.

`AckPolicy.MANUAL` casts no vote; the engine then takes silence for a retry, never for a deletion. `AckPolicy.ACK_FIRST`
casts none either: its message has been completed before the handler began.
"""

from collections.abc import Sequence
from typing import Any

from faststream.exceptions import HandlerException, NackMessage, RejectMessage
from faststream.middlewares import AckPolicy

from outbox_core.envelope import check_delay
from outbox_core.message import Delivery
from outbox_core.outcome import ACK, Nack, Reject, Vote

_AFTER_FAILURE: dict[AckPolicy, Vote] = {
    AckPolicy.NACK_ON_ERROR: Nack(),
    AckPolicy.REJECT_ON_ERROR: Reject(),
    AckPolicy.ACK: ACK,
}


def vote_after_return(policy: AckPolicy, deliveries: Sequence[Delivery]) -> None:
    """The pipeline returned: ack, unless the policy leaves that to the handler."""
    if policy is not AckPolicy.MANUAL and policy is not AckPolicy.ACK_FIRST:
        for delivery in deliveries:
            delivery.cast(ACK)


def vote_after_failure(policy: AckPolicy, deliveries: Sequence[Delivery]) -> None:
    """The pipeline raised: what the policy says."""
    vote = _AFTER_FAILURE.get(policy)
    if vote is not None:
        for delivery in deliveries:
            delivery.cast(vote)


def vote_of_exception(policy: AckPolicy, raised: HandlerException, deliveries: Sequence[Delivery]) -> None:
    """The handler raised its vote: `AckMessage`, `NackMessage(delay=…)`, `RejectMessage`; `SkipMessage` acks."""
    if policy is AckPolicy.ACK_FIRST:
        return
    for delivery in deliveries:
        delivery.cast(_vote(raised))


def _vote(raised: HandlerException) -> Vote:
    options: dict[str, Any] = getattr(raised, "extra_options", {})
    match raised:
        case NackMessage():
            delay = options.get("delay")
            return Nack(None if delay is None else check_delay("delay", delay))
        case RejectMessage():
            return Reject()
        case _:
            return ACK
