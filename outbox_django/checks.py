"""System checks: the settings against `settings.DATABASES` at every command, the live tables where a database is named.

    manage.py check                          settings, routers
    manage.py check --database default       the tables too: migrated, and as described in outbox_core.schema?

Tables that do not fit are warnings, because an error would keep `migrate` from mending them; `--fail-level WARNING` makes CI
fail. A wrong key or value in `settings.OUTBOX` is raised when the models are imported, before any check can run.
"""

import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from django.apps import AppConfig
from django.conf import settings
from django.core.checks import CheckMessage, Error, Info, Tags, Warning, register  # noqa: A004  Django's names
from django.db import DEFAULT_DB_ALIAS, DatabaseError, InterfaceError, connections, router
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.migrations.loader import MigrationLoader

from outbox_core.errors import OutboxError, UnsupportedDatabase
from outbox_core.sql import dialect_for
from outbox_core.sql.refusals import first_line
from outbox_core.store import Difference
from outbox_core.waiting import drive
from outbox_django.settings import OutboxSettings, outbox_settings
from outbox_django.store import DirectStore

INITIAL = ("outbox", "0001_initial")
DEFAULT_POOL_SIZE = 4  # psycopg_pool's min_size, and its max_size too if that is not given

AppConfigs = Sequence[AppConfig] | None


@register("outbox")
def check_settings(*, app_configs: AppConfigs, **_: Any) -> list[CheckMessage]:
    """What can be seen without a connection."""
    if not _is_asked(app_configs):
        return []
    options = outbox_settings()
    if unknown := list(_unknown_aliases(options)):
        return unknown
    connection = connections[written_alias()]
    steps: tuple[Callable[[OutboxSettings, BaseDatabaseWrapper], Iterator[CheckMessage]], ...] = (
        _backend,
        _migrations_allowed,
        _same_for_models,
        _same_for_listening,
        _times,
        _pool,
    )
    return [message for step in steps for message in step(options, connection)]


@register("outbox", Tags.database)
def check_tables(*, app_configs: AppConfigs, databases: Sequence[str] | None = None, **_: Any) -> list[CheckMessage]:
    """The live tables, if their database is one of those to look at."""
    if not _is_asked(app_configs) or any(_unknown_aliases(outbox_settings())):
        return []
    alias = written_alias()
    if alias not in (databases or ()) or any(_backend(outbox_settings(), connections[alias])):
        return []
    try:
        return list(_tables(outbox_settings(), alias))
    except (OutboxError, DatabaseError, InterfaceError) as error:
        why = str(error) if isinstance(error, OutboxError) else first_line(error)
        return [
            Warning(
                f"the tables of the outbox in database {alias!r} could not be looked at: {why}",
                hint="check again when the database answers; until then nobody knows whether the tables fit",
                id="outbox.W006",
            )
        ]


def written_alias() -> str:
    """The database that has the outbox: `OUTBOX["DATABASE"]`, or where the routers write it."""
    return outbox_settings().database or _routed_alias()


def _routed_alias() -> str:
    from outbox_django.models import OutboxMessage

    return router.db_for_write(OutboxMessage)


def _is_asked(app_configs: AppConfigs) -> bool:
    return app_configs is None or any(app.label == "outbox" for app in app_configs)


# Settings


def _unknown_aliases(options: OutboxSettings) -> Iterator[CheckMessage]:
    known = ", ".join(repr(alias) for alias in connections)
    places = {
        'OUTBOX["DATABASE"]': options.database,
        'OUTBOX["LISTEN_DATABASE"]': options.listen_database,
        "a database router": None if options.database else _routed_alias(),
    }
    for place, alias in places.items():
        if alias is not None and alias not in connections:
            yield Error(
                f"{place} names the database {alias!r}, which settings.DATABASES does not have",
                hint=f"known are {known}",
                id="outbox.E001",
            )


def _backend(options: OutboxSettings, connection: BaseDatabaseWrapper) -> Iterator[CheckMessage]:
    try:
        dialect_for(connection.vendor, options.tables)
    except UnsupportedDatabase as error:
        engine = connections.settings[connection.alias]["ENGINE"]
        yield Error(
            f"the outbox cannot be in database {connection.alias!r} ({engine}): {error}",
            hint='name one that is supported in OUTBOX["DATABASE"], or have a database router send the outbox there',
            id="outbox.E002",
        )


def _migrations_allowed(options: OutboxSettings, connection: BaseDatabaseWrapper) -> Iterator[CheckMessage]:
    from outbox_django.models import OutboxMessage

    if options.managed and not router.allow_migrate_model(connection.alias, OutboxMessage):
        yield Warning(
            f"the outbox is written to database {connection.alias!r}, where a database router forbids its migrations, so "
            "its tables are never made",
            hint=f"have allow_migrate({connection.alias!r}, 'outbox') return True, or set OUTBOX[\"MANAGED\"] to False if "
            "somebody else makes the tables",
            id="outbox.W001",
        )


def _same_for_models(options: OutboxSettings, connection: BaseDatabaseWrapper) -> Iterator[CheckMessage]:
    routed = _routed_alias()
    if routed != connection.alias:
        yield Warning(
            f'OUTBOX["DATABASE"] is {connection.alias!r}, but Django reads and writes the models of the outbox in '
            f"{routed!r}",
            hint=f"have a database router return {connection.alias!r} for the app 'outbox'; then OUTBOX[\"DATABASE\"] can "
            "go",
            id="outbox.W002",
        )


def _same_for_listening(options: OutboxSettings, connection: BaseDatabaseWrapper) -> Iterator[CheckMessage]:
    if options.listen_database is None:
        return
    name = connections.settings[connection.alias]["NAME"]
    other = connections.settings[options.listen_database]["NAME"]
    if str(name) != str(other):
        yield Warning(
            f'OUTBOX["LISTEN_DATABASE"] leads to the database named {str(other)!r}, but the outbox is in {str(name)!r}, so '
            "a worker would look for messages where there are none",
            hint="give both aliases the same NAME; they may differ in HOST and PORT, to go past a pooler",
            id="outbox.W003",
        )


def _times(options: OutboxSettings, connection: BaseDatabaseWrapper) -> Iterator[CheckMessage]:
    if connection.vendor == "sqlite" and not settings.USE_TZ:
        yield Warning(
            "with USE_TZ = False and SQLite, the models of the outbox show their times in UTC, not in local time",
            hint="set USE_TZ to True; what is published and when it is handled is right in either case",
            id="outbox.W004",
        )


def _pool(options: OutboxSettings, connection: BaseDatabaseWrapper) -> Iterator[CheckMessage]:
    pool = connections.settings[connection.alias]["OPTIONS"].get("pool")
    if not pool:
        return
    given = pool if isinstance(pool, dict) else {}
    size = given.get("max_size") or given.get("min_size", DEFAULT_POOL_SIZE)
    if size < options.concurrency:
        yield Warning(
            f"the connection pool of database {connection.alias!r} has room for {size}, but a worker runs "
            f"{options.concurrency} handlers at once, each with a connection of its own",
            hint=f'set OPTIONS["pool"]["max_size"] to {options.concurrency} or more, or lower OUTBOX["CONCURRENCY"]',
            id="outbox.W005",
        )


# Tables


def _tables(options: OutboxSettings, alias: str) -> Iterator[CheckMessage]:
    if sys.argv[1:2] == ["migrate"]:  # it runs these checks first, and is about to mend what they would say
        return
    differences = drive(DirectStore(alias).differences())
    if options.managed and (pending := _pending_migrations(alias)):
        missing = [table for table, found in differences.items() if found[0].missing_table]
        yield _unmigrated(options, alias, INITIAL in pending and len(missing) < len(options.tables.described()))
        return
    for table, found in differences.items():
        for difference in found:
            yield _misfit(options, alias, table, difference)


def _pending_migrations(alias: str) -> list[tuple[str, str]]:
    """None, if settings.MIGRATION_MODULES switches migrations off."""
    loader = MigrationLoader(connections[alias])
    return [node for node in loader.graph.nodes if node[0] == "outbox" and node not in loader.applied_migrations]


def _unmigrated(options: OutboxSettings, alias: str, made_by_others: bool) -> CheckMessage:
    if made_by_others:
        return Warning(
            f"the tables of the outbox are in database {alias!r} already, and its first migration would make them again",
            hint='if Alembic or SQLAlchemy looks after them, set OUTBOX["MANAGED"] to False; if Django shall from now on, '
            f"run manage.py migrate outbox --fake-initial{_option(alias)}",
            id="outbox.W007",
        )
    return Info(
        f"database {alias!r} does not have all migrations of the outbox",
        hint=f"run manage.py migrate outbox{_option(alias)}",
        id="outbox.I001",
    )


def _misfit(options: OutboxSettings, alias: str, table: str, difference: Difference) -> CheckMessage:
    if difference.missing_table:
        return _missing(options, alias, difference)
    consequence, id = "messages cannot be published or handled", "outbox.W010"
    if not difference.needed:
        consequence, id = "receive() fails, or its purges are slow", "outbox.W012"
    elif not difference.fatal:
        consequence, id = "claims may be slow", "outbox.W011"
    return Warning(
        f"{table} in database {alias!r} does not fit this version: {difference.text}; {consequence}",
        hint=f"alter it to what manage.py sqlmigrate outbox 0001{_option(alias)} says"
        if options.managed
        else options.way_out(alias),
        id=id,
    )


def _missing(options: OutboxSettings, alias: str, difference: Difference) -> CheckMessage:
    text = difference.text
    if options.managed:
        return Warning(
            f"{text} in database {alias!r}, although it has been migrated",
            hint='OUTBOX["TABLE"] and OUTBOX["SCHEMA"] must be what they were then; if the table was dropped, make it as '
            f"manage.py sqlmigrate outbox 0001{_option(alias)} says",
            id="outbox.W008",
        )
    if not difference.needed:
        return Info(
            f"{text} in database {alias!r}, so receive() is refused; nothing else needs it",
            hint=f"if messages from elsewhere are to be received there: {options.way_out(alias)}",
            id="outbox.I002",
        )
    return Warning(f"{text} in database {alias!r}", hint=options.way_out(alias), id="outbox.W009")


def _option(alias: str) -> str:
    """What names the database to a command that would take the default one."""
    return "" if alias == DEFAULT_DB_ALIAS else f" --database {alias}"
