"""A worker's statements, tried on no message before the first one comes."""

from collections.abc import Sequence

from outbox_core.envelope import compose
from outbox_core.outcome import Ack, DeadLetter, Release, Retry
from outbox_core.sql import Executor, Row, Statement
from outbox_core.sql.store import SqlLink
from tests.contract.harness import Outbox, bodies, claim, claim_keyed, settle


class Recorder(Executor):
    """Keeps what was executed, all white space as one blank."""

    def __init__(self, executor: Executor) -> None:
        self._executor = executor
        self.texts: list[str] = []

    async def execute(self, statement: Statement) -> Sequence[Row]:
        self.texts.append(" ".join(statement.text.split()))
        return await self._executor.execute(statement)

    def together(self):  # type: ignore[no-untyped-def]  # the protocol's
        return self._executor.together()

    async def close(self) -> None:
        await self._executor.close()


async def recorded(outbox: Outbox) -> tuple[SqlLink, Recorder]:
    link = await outbox.link()
    assert isinstance(link, SqlLink)
    recorder = Recorder(link._executor)
    return SqlLink(recorder, link._dialect), recorder


async def test_a_trial_changes_nothing(outbox: Outbox) -> None:
    link = await outbox.link()
    await outbox.publish(compose("free", "orders"), compose("keyed", "orders", key="k"))
    (delivery,) = await claim(link)

    await link.try_out()

    assert await link.ours([delivery]) == {delivery.id}
    assert bodies(await claim_keyed(link)) == ["keyed"]
    assert len(await outbox.pending()) == 2


async def test_a_trial_of_what_parks_its_dead_changes_nothing(parking_outbox: Outbox) -> None:
    link = await parking_outbox.link()
    await parking_outbox.publish(compose("keyed", "orders", key="k"))

    await link.try_out()

    assert bodies(await claim_keyed(link)) == ["keyed"]


async def test_everything_that_a_life_takes_was_tried_on_postgresql(postgres_outbox: Outbox) -> None:
    link, recorder = await recorded(postgres_outbox)
    await link.try_out()
    tried = set(recorder.texts)
    recorder.texts.clear()

    await postgres_outbox.publish(*(compose(str(number), "orders") for number in range(4)))
    await postgres_outbox.publish(*(compose(str(number), "orders", key=str(number)) for number in range(2)))
    await link.survey(["orders"])
    deliveries = [*await claim(link), *await claim_keyed(link)]
    assert len(deliveries) == 6
    await link.begin(deliveries[0])
    await link.extend(deliveries, 30.0)
    await link.ours(deliveries)
    halt = DeadLetter("rejected", halts=True)
    for delivery, outcome in zip(
        deliveries, [Ack(), Retry(1.0), Release(), DeadLetter("rejected"), halt, Ack()], strict=True
    ):
        assert await settle(link, delivery, outcome)

    assert set(recorder.texts) == tried
