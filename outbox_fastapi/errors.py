"""What can be wrong with a handler that FastAPI is to call."""

from faststream.exceptions import SetupError

from outbox_core.errors import OutboxError


class HandlerError(OutboxError, SetupError):
    """A handler asks for what it cannot get here; found when the application starts."""


class NoMessage(OutboxError, LookupError):
    """A route asked for what only a message has."""


class NoRouter(OutboxError, LookupError):
    """A route asked for a broker, and no `OutboxRouter` serves it."""


class DependencyError(OutboxError, RuntimeError):
    """A dependency kept an exception to itself, so that nobody knows whether its message was handled."""
