"""A middleware that tells of each of its calls."""

from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Any

from faststream import BaseMiddleware
from faststream.message import StreamMessage


def telling(reach: Callable[[str, object], None], *, forgives: bool = False) -> type[BaseMiddleware]:
    """It calls *reach* with each stage and what that is about, and with *forgives* lets no exception out."""

    class Telling(BaseMiddleware):
        async def on_receive(self) -> None:
            reach("receive", self.msg)
            await super().on_receive()

        async def consume_scope(self, call_next: Callable[..., Awaitable[Any]], msg: StreamMessage[Any]) -> Any:
            reach("consume", msg)
            result = await call_next(msg)
            reach("consumed", result)
            return result

        async def publish_scope(self, call_next: Callable[..., Awaitable[Any]], cmd: Any) -> Any:
            reach("publish", cmd.destination)
            return await call_next(cmd)

        async def after_processed(
            self,
            exc_type: type[BaseException] | None = None,
            exc_val: BaseException | None = None,
            exc_tb: TracebackType | None = None,
        ) -> bool | None:
            reach("exit", exc_val)
            return forgives or await super().after_processed(exc_type, exc_val, exc_tb)

    return Telling
