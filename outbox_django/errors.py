"""What can go wrong in Django's terms: each error is ours and one that Django code already catches."""

from django.core.exceptions import ImproperlyConfigured
from django.db.transaction import TransactionManagementError

from outbox_core.errors import NoTransaction, OptionError, OutboxError


class InvalidSettings(OptionError, ImproperlyConfigured):
    """`settings.OUTBOX` has an unknown key or a value that cannot work."""


class NotInTransaction(NoTransaction, TransactionManagementError):
    """A publish, or a receive, outside `atomic()`: it would be committed whatever becomes of the caller's own writes."""

    def __init__(self, text: str, alias: str) -> None:
        self.alias = alias
        super().__init__(text)


class ReadOnlyDatabase(OutboxError, ValueError):
    """A publish to a replica."""


class BrokenHandlers(OutboxError, ImportError):
    """A module of handlers could not be imported; `name` says which."""
