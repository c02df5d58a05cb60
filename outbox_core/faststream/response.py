"""A publish on its way through FastStream's middlewares, and a handler's reply that chooses where it goes."""

from collections.abc import Mapping
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
        super().__init__(
            body,
            *bodies,
            _publish_type=_publish_type,
            destination=queue,
            headers=headers,  # type: ignore[arg-type]  # kept as given, so that a wrong type is named to the caller
            correlation_id=options.get("correlation_id"),
            reply_to=options.get("reply_to", ""),
        )
        self.session = session
        self.standalone = standalone
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
    def bodies(self) -> tuple[Any, ...]:
        """All bodies, None included: it is a body like any other here (JSON null)."""
        return (self.body, *self.extra_bodies)

    @classmethod
    def from_cmd(cls, cmd: PublishCommand, *, batch: bool = False) -> "OutboxPublishCommand":
        if isinstance(cmd, cls):
            return cmd
        body, bodies = cls._parse_bodies(cmd.body, batch=batch)
        return cls(
            body,
            *bodies,
            queue=cmd.destination,
            headers=cmd.headers,
            correlation_id=cmd.correlation_id,
            reply_to=cmd.reply_to,
            _publish_type=cmd.publish_type,
        )


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
