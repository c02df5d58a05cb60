"""The core's statements on a Django connection: parameters in its style, rows with aware times."""

import re
from collections.abc import Sequence
from datetime import datetime
from typing import Any
from zoneinfo import ZoneInfo

from django.conf import settings
from django.db.backends.base.base import BaseDatabaseWrapper

from outbox_core.sql import Row, Statement
from outbox_core.sql.remember import remembered

_PARAMETER = re.compile(r"(?<![:\w]):([a-z]\w*)")


def execute(connection: BaseDatabaseWrapper, statement: Statement) -> Sequence[Row]:
    """Run it on the connection as any query of the application's: counted, logged, in its transaction."""
    with connection.cursor() as cursor:
        return execute_on(cursor, connection, statement)


def execute_on(cursor: Any, connection: BaseDatabaseWrapper, statement: Statement) -> Sequence[Row]:
    """Run it on *cursor*, Django's or its backend's own; the rows, if there are any."""
    cursor.execute(rendered(statement.text), statement.parameters)
    if cursor.description is None:
        return ()
    rows = cursor.fetchall()
    return rows if settings.USE_TZ or connection.vendor != "postgresql" else _with_time_zone(rows, connection)


@remembered
def rendered(text: str) -> str:
    """`:name` as `%(name)s`, which Django's backends understand, SQLite's too."""
    return _PARAMETER.sub(r"%(\1)s", text.replace("%", "%%"))


def _with_time_zone(rows: Sequence[Row], connection: BaseDatabaseWrapper) -> Sequence[Row]:
    """With USE_TZ off, Django has its driver drop the zone of every time; it is the one that the session was told."""
    zone = ZoneInfo(connection.timezone_name)
    return [
        tuple(value.replace(tzinfo=zone) if isinstance(value, datetime) else value for value in row) for row in rows
    ]
