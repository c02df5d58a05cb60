"""The columns' defaults in the database, in the very words that SQLAlchemy's tables have, so that one outbox fits both.

Django's own come close and are not the same: its `Now` is the statement's time on PostgreSQL and the session's time zone on
MySQL, and a `Value` of JSON carries a cast. These are what a row gets that somebody else inserts; our own publishes bring
an ordered UUID.
"""

from collections.abc import Mapping
from typing import ClassVar

from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.models import DateTimeField, Expression, JSONField, UUIDField
from django.db.models.sql.compiler import SQLCompiler

from outbox_core.sql.sqlite import NOW


class _Words(Expression):
    """Fixed SQL, one text for each vendor that Django knows."""

    allowed_default = True
    words: ClassVar[Mapping[str, str]]

    def as_sql(self, compiler: SQLCompiler, connection: BaseDatabaseWrapper) -> tuple[str, tuple[()]]:
        return self.words[connection.vendor].replace("%", "%%"), ()


class Now(_Words):
    """The database's clock, in UTC where a database has no time zones."""

    output_field = DateTimeField()
    words: ClassVar = {"postgresql": "CURRENT_TIMESTAMP", "sqlite": NOW, "mysql": "utc_timestamp(6)"}


class NewUuid(_Words):
    """A random UUID; on MySQL one of the time, without dashes, which MariaDB's own UUID type takes too."""

    output_field = UUIDField()
    words: ClassVar = {
        "postgresql": "gen_random_uuid()",
        "sqlite": "lower(hex(randomblob(16)))",
        "mysql": "replace(uuid(), '-', '')",
    }


class EmptyObject(_Words):
    """`{}`, as JSON."""

    output_field = JSONField()
    words: ClassVar = dict.fromkeys(("postgresql", "sqlite", "mysql"), "'{}'")
