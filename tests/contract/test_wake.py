"""Wake-ups, on the stores that have them: publishers notify those who armed a queue, once they have committed."""

from contextlib import suppress

from outbox_core.envelope import compose
from outbox_core.outcome import DeadLetter
from outbox_core.store import Listener
from tests.contract.harness import Outbox, claim, settle, until


class Abort(Exception):
    """What makes a test's transaction roll back."""


class Ear:
    """Listens, and remembers what it heard."""

    def __init__(self, outbox: Outbox) -> None:
        self._outbox = outbox
        self.heard: list[str] = []

    async def __aenter__(self) -> "Ear":
        listener = await self._outbox.store.listen(self.heard.append)
        assert listener is not None
        self.listener: Listener = listener
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.listener.close()

    async def everything_so_far(self) -> list[str]:
        """What was heard before a message to oneself, which cannot overtake anything."""
        await (await self._outbox.link()).notify("mark")
        await until(lambda: "mark" in self.heard)
        return self.heard[: self.heard.index("mark")]


async def test_a_message_to_oneself_is_heard(waking_outbox: Outbox) -> None:
    async with Ear(waking_outbox) as ear:
        await (await waking_outbox.link()).notify("proof:1")

        await until(lambda: ear.heard == ["proof:1"])


async def test_a_committed_publish_is_heard_by_the_name_of_its_queue(waking_outbox: Outbox) -> None:
    link = await waking_outbox.link()
    async with Ear(waking_outbox) as ear:
        assert await link.arm(["orders", "mails"]) == "armed"

        await waking_outbox.publish(compose("a", "mails"))

        await until(lambda: ear.heard == ["mails"])


async def test_a_publish_is_heard_when_its_transaction_has_committed(waking_outbox: Outbox) -> None:
    link = await waking_outbox.link()
    async with Ear(waking_outbox) as ear:
        await link.arm(["orders"])
        async with waking_outbox.transaction() as session:
            await waking_outbox.store.insert([compose("a", "orders")], session)
            before_the_commit = await ear.everything_so_far()

        await until(lambda: "orders" in ear.heard)
        assert before_the_commit == []


async def test_a_rolled_back_publish_is_not_heard(waking_outbox: Outbox) -> None:
    link = await waking_outbox.link()
    async with Ear(waking_outbox) as ear:
        await link.arm(["orders"])
        with suppress(Abort):
            async with waking_outbox.transaction() as session:
                await waking_outbox.store.insert([compose("a", "orders")], session)
                raise Abort

        assert await ear.everything_so_far() == []


async def test_what_is_heard_can_be_claimed(waking_outbox: Outbox) -> None:
    link = await waking_outbox.link()
    async with Ear(waking_outbox) as ear:
        await link.arm(["orders"])
        await waking_outbox.publish(compose("a", "orders"))
        await until(lambda: ear.heard)

        assert len(await claim(link)) == 1


async def test_a_message_for_later_is_heard_too(waking_outbox: Outbox) -> None:
    link = await waking_outbox.link()
    async with Ear(waking_outbox) as ear:
        await link.arm(["orders"])

        await waking_outbox.publish(compose("a", "orders", timer_id="t"))

        await until(lambda: ear.heard == ["orders"])


async def test_a_redrive_is_heard(waking_outbox: Outbox) -> None:
    link = await waking_outbox.link()
    await waking_outbox.publish(compose("a", "orders"))
    await settle(link, (await claim(link))[0], DeadLetter("rejected"))
    async with Ear(waking_outbox) as ear:
        await link.arm(["orders"])

        await waking_outbox.redrive()

        await until(lambda: ear.heard == ["orders"])


async def test_everyone_who_listens_hears(waking_outbox: Outbox) -> None:
    link = await waking_outbox.link()
    async with Ear(waking_outbox) as one, Ear(waking_outbox) as two:
        await link.arm(["orders"])

        await waking_outbox.publish(compose("a", "orders"))

        await until(lambda: one.heard == two.heard == ["orders"])


async def test_a_closed_listener_hears_nothing_more(waking_outbox: Outbox) -> None:
    link = await waking_outbox.link()
    async with Ear(waking_outbox) as open_ear:
        async with Ear(waking_outbox) as closed_ear:
            pass
        await link.arm(["orders"])

        await waking_outbox.publish(compose("a", "orders"))

        await until(lambda: open_ear.heard == ["orders"])
        assert closed_ear.heard == []


async def test_arming_again_and_disarming_twice_do_no_harm(waking_outbox: Outbox) -> None:
    link = await waking_outbox.link()
    async with Ear(waking_outbox) as ear:
        await link.disarm()
        await link.arm(["orders"])
        assert await link.arm(["orders", "mails"]) == "armed"
        await waking_outbox.publish(compose("a", "mails"))
        await until(lambda: ear.heard == ["mails"])

        await link.disarm()
        await link.disarm()
        assert await link.arm(["orders"]) == "armed"
