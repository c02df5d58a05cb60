"""A publish on its way through FastStream's middlewares, and a handler's reply that chooses where it goes."""

from collections.abc import Mapping, Sequence
from typing import Any, Unpack

from faststream.response import BatchPublishCommand, PublishCommand, PublishType, Response

from outbox_core.envelope import PublishOptions, check_options
from outbox_core.message import TimerConflict


class OutboxPublishCommand(BatchPublishCommand):
    """One insert: a body or many, the queue, the session, and the row's options."""

    def __init__(
        self,
        body: Any,
        /,
        *bodies: Any,
        queue: str = "",
        session: object | None = None,
        standalone: bool = False,
        headers: Mapping[str, str] | None = None,
        _publish_type: PublishType = PublishType.PUBLISH,
        **options: Unpack[PublishOptions],
    ) -> None:
        check_options(options)
        self._emptied = False
        super().__init__(
            body,
            *bodies,
            _publish_type=_publish_type,
            destination=queue,
            # Middlewares change them, and a caller's mapping is the caller's. What is none is named to the caller later.
            headers=dict(headers) if isinstance(headers, Mapping) else headers,
            correlation_id=options.get("correlation_id"),
            reply_to=options.get("reply_to", ""),  # type: ignore[arg-type]  # None is none as well, and whatever else is refused
        )
        if headers is not None and not isinstance(headers, Mapping):
            self.headers = headers  # upstream takes what is empty or false for none, and it may be a mistake
        self.session = session
        self.standalone = standalone
        self.given = options.keys()
        self.timeout: float | None = None  # seconds, of a request under a test broker
        self.published = False  # a reply that is a row by now; see `outbox_core.faststream.replies`
        self.message_id = options.get("message_id")
        self.key = options.get("key")
        self.priority = options.get("priority", 0)
        self.activate_in = options.get("activate_in")
        self.activate_at = options.get("activate_at")
        self.timer_id = options.get("timer_id")
        self.timer_conflict: TimerConflict = options.get("timer_conflict", "ignore")

    @property
    def batch_bodies(self) -> tuple[Any, ...]:
        """Every body, None included: it is a body like any other here (JSON null). A middleware may replace them."""
        return () if self._emptied and self.body is None else (self.body, *self.extra_bodies)

    @batch_bodies.setter
    def batch_bodies(self, bodies: Sequence[Any]) -> None:
        self._emptied = not bodies
        self.body, self.extra_bodies = (bodies[0], tuple(bodies[1:])) if bodies else (None, ())

    @classmethod
    def from_cmd(cls, cmd: PublishCommand, *, batch: bool = False) -> "OutboxPublishCommand":
        """*cmd* as one of ours; with *batch*, a list or tuple is so many bodies, and None is none."""
        command = (
            cmd
            if isinstance(cmd, cls)
            else cls(
                cmd.body,
                queue=cmd.destination,
                headers=cmd.headers,
                correlation_id=cmd.correlation_id,
                reply_to=cmd.reply_to,
                _publish_type=cmd.publish_type,
            )
        )
        if batch:
            command.batch_bodies = _several(command.body)
        return command


class OutboxResponse(Response):
    """A handler's reply as one more row.

    *queue*: where it goes, beside the publishers stacked on the handler. *session*: publish in this transaction of the
    handler's, before its dependencies close; None: in one of its own.
    """

    def __init__(
        self,
        body: Any,
        *,
        queue: str = "",
        session: object | None = None,
        headers: dict[str, Any] | None = None,
        **options: Unpack[PublishOptions],
    ) -> None:
        check_options(options)
        super().__init__(body, headers=headers, correlation_id=options.get("correlation_id"))
        self.queue = queue
        self.session = session
        self.options = options
        self.published = False

    def as_publish_command(self) -> OutboxPublishCommand:
        options: PublishOptions = {**self.options, "correlation_id": self.correlation_id}
        command = OutboxPublishCommand(
            self.body, queue=self.queue, session=self.session, standalone=True, headers=self.headers, **options
        )
        command.published = self.published
        return command

    def get_publish_key(self) -> str | None:
        return self.options.get("key")


def _several(body: Any) -> Sequence[Any]:
    if body is None:
        return ()
    return body if isinstance(body, Sequence) and not isinstance(body, str | bytes | bytearray) else (body,)
