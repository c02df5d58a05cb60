"""The one column type that Django declares otherwise than SQLAlchemy."""

from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.models import JSONField


class HeadersField(JSONField):
    """A `JSONField` that is declared `json` on SQLite and not checked there, as SQLAlchemy's `JSON` is."""

    def db_type(self, connection: BaseDatabaseWrapper) -> str | None:
        return "json" if connection.vendor == "sqlite" else super().db_type(connection)

    def db_check(self, connection: BaseDatabaseWrapper) -> str | None:
        return None if connection.vendor == "sqlite" else super().db_check(connection)
