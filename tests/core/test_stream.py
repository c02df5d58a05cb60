"""A listener on a stream of payloads: it hears until the stream ends, breaks, or is closed."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from outbox_core.sql.stream import StreamListener


class Stream:
    """Payloads as they are sent, and a connection that is closed."""

    def __init__(self) -> None:
        self._sent: asyncio.Queue[str | Exception | None] = asyncio.Queue()
        self.send = self._sent.put_nowait
        self.heard: list[str] = []
        self.closed = 0
        self.listener = StreamListener(self._payloads(), self.heard.append, self._close)

    async def _payloads(self) -> AsyncIterator[str]:
        while (sent := await self._sent.get()) is not None:
            if isinstance(sent, Exception):
                raise sent
            yield sent

    async def _close(self) -> None:
        self.closed += 1


async def test_payloads_are_heard_in_order() -> None:
    stream = Stream()
    for payload in ("orders", "mails", "orders"):
        stream.send(payload)
    stream.send(None)

    await stream.listener.closed()

    assert stream.heard == ["orders", "mails", "orders"]
    await stream.listener.close()


@pytest.mark.parametrize("end", [None, OSError("the connection broke")], ids=["end", "error"])
async def test_a_stream_that_ends_is_closed(end: Exception | None) -> None:
    stream = Stream()
    closed = asyncio.create_task(stream.listener.closed())
    await asyncio.sleep(0)
    assert not closed.done()

    stream.send(end)

    async with asyncio.timeout(1):
        await closed
    await stream.listener.close()
    assert stream.closed == 1


async def test_closing_gives_the_connection_up_and_hears_no_more() -> None:
    stream = Stream()
    await asyncio.sleep(0)

    await stream.listener.close()
    stream.send("late")

    async with asyncio.timeout(1):
        await stream.listener.closed()
    assert (stream.closed, stream.heard) == (1, [])
