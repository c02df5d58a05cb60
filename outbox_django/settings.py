"""`settings.OUTBOX`: read once, checked as a whole, and read again only when a test overrides it.

    OUTBOX = {"TABLE": "events_outbox", "CONCURRENCY": 8}

Every key may be left out, and so may the whole setting. The tables' names, their schema and who makes them are fixed when
the models are imported.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from datetime import timedelta
from difflib import get_close_matches
from functools import cache, cached_property
from typing import Any, Literal, TypeAlias, cast

from django.conf import settings
from django.core.signals import setting_changed
from django.db import DEFAULT_DB_ALIAS

from outbox_core.envelope import MAX_DELAY, MAX_PAYLOAD_BYTES, MOST_PAYLOAD_BYTES
from outbox_core.errors import InvalidName, OptionError, WrongType
from outbox_core.inbox import Retention
from outbox_core.options import MAX_WORKERS
from outbox_core.quoting import quoted
from outbox_core.schema import Tables, check_identifier
from outbox_django.errors import InvalidSettings

TransactionPolicy: TypeAlias = Literal["error", "warn", "ignore"]


@dataclass(frozen=True, kw_only=True)
class OutboxSettings:
    """The keys in lower case, with their defaults.

    `database`: the alias whose database has the tables; None asks the database routers. `table`: the outbox table, after
    which the others are named (`<table>_dlq`, `<table>_queues`, `<table>_archive`, `<table>_inbox`). `schema`:
    PostgreSQL's; None for the connection's own. `managed`: whether Django's migrations make the tables; False if Alembic
    or a DBA does. `archive`: keep handled messages instead of deleting them. `require_transaction`: what `publish` does
    outside `atomic()`. `notify`: whether publishers wake sleeping workers. `insert_only`: the database role may INSERT
    and nothing else, so publishing returns None instead of row ids, and timers are neither extended nor replaced.
    `listen_database`: an alias that leads a worker's own connections past a pooler. `autodiscover`: the module in which
    each app has its handlers. `broker`: dotted path of the project's own `outbox_django.OutboxBroker`; None makes one.
    `concurrency`: handlers that run at once in a worker process, each with a thread and a connection of its own.
    `graceful_timeout`: seconds that handlers get when a worker stops. `stuck_timeout`: seconds for which a worker's event
    loop may be blocked before its process is ended; None: for ever. `conn_max_age`: seconds after which a handler's
    connection is replaced, None for never; it takes the place of `CONN_MAX_AGE` in handlers, where a new connection for
    each message would cost more than everything else. `max_payload_bytes`: of an encoded body; a larger one is refused
    when it is published. `dead_letter_retention`: how long dead letters are kept, here and where received messages come
    from; None for ever. `inbox_retention`: how long a received message is remembered, None for ever; never shorter than
    that.
    """

    database: str | None = None
    table: str = "outbox"
    schema: str | None = None
    managed: bool = True
    archive: bool = False
    require_transaction: TransactionPolicy = "error"
    notify: bool = True
    insert_only: bool = False
    listen_database: str | None = None
    autodiscover: str = "outbox"
    broker: str | None = None
    concurrency: int = 4
    graceful_timeout: float = 20.0
    stuck_timeout: float | None = 30.0
    conn_max_age: float | None = 600.0
    max_payload_bytes: int = MAX_PAYLOAD_BYTES
    dead_letter_retention: timedelta | None = None
    inbox_retention: timedelta | None = None

    def __post_init__(self) -> None:
        for name in ("database", "schema", "listen_database", "broker"):
            _check(name, getattr(self, name), "a str or None", lambda value: value is None or _is_text(value))
        for name in ("table", "autodiscover"):
            _check(name, getattr(self, name), "a str", _is_text)
        for name in ("managed", "archive", "notify", "insert_only"):
            _check(name, getattr(self, name), "True or False", lambda value: isinstance(value, bool))
        policies = ("error", "warn", "ignore")
        _check("require_transaction", self.require_transaction, f"one of {policies}", lambda value: value in policies)
        _check(
            "concurrency",
            self.concurrency,
            f"an int between 1 and {MAX_WORKERS:,}",
            lambda value: isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= MAX_WORKERS,
        )
        _check("graceful_timeout", self.graceful_timeout, "a number of seconds >= 0", _is_duration)
        _check(
            "stuck_timeout",
            self.stuck_timeout,
            "a number of seconds >= 1, or None",
            lambda value: value is None or (_is_duration(value) and value >= 1),
        )
        _check(
            "conn_max_age",
            self.conn_max_age,
            "a number of seconds >= 0, or None",
            lambda value: value is None or _is_duration(value),
        )
        _check(
            "max_payload_bytes",
            self.max_payload_bytes,
            f"an int between 1 and {MOST_PAYLOAD_BYTES:,}",
            lambda value: isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= MOST_PAYLOAD_BYTES,
        )
        try:
            check_identifier('OUTBOX["TABLE"]', self.table)
            _ = self.tables, self.retention  # what follows from the settings fits too
        except (InvalidName, OptionError, WrongType) as error:
            raise InvalidSettings(str(error)) from None

    @cached_property
    def tables(self) -> Tables:
        """The tables that are used. Migrations make the archive too, so that it can be switched on later."""
        return Tables(
            outbox=self.table,
            dead_letters=f"{self.table}_dlq",
            archive=f"{self.table}_archive" if self.archive else None,
            queues=f"{self.table}_queues",
            schema=self.schema,
            inbox=f"{self.table}_inbox",
        )

    @cached_property
    def retention(self) -> Retention:
        """The two times, which are refused if a dead letter could outlive what the inbox remembers."""
        return Retention(
            inbox=self.inbox_retention,
            dead_letters=self.dead_letter_retention,
            inbox_name='OUTBOX["INBOX_RETENTION"]',
            dead_letters_name='OUTBOX["DEAD_LETTER_RETENTION"]',
        )

    def db_table(self, suffix: str = "") -> str:
        """A table's name as `Meta.db_table` has it: Django quotes what is not quoted yet."""
        name = f"{self.table}{suffix}"
        return f'"{self.schema}"."{name}"' if self.schema else name

    def way_out(self, alias: str) -> str:
        """How to bring the tables of database *alias* up to date, which depends on who makes them."""
        if not self.managed:
            return (
                'OUTBOX["MANAGED"] is False, so whoever makes the tables must migrate them (alembic upgrade head, say)'
            )
        database = "" if alias == DEFAULT_DB_ALIAS else f" --database {alias}"
        return f"run manage.py migrate outbox{database}, then manage.py check --database {alias}"


@cache
def outbox_settings() -> OutboxSettings:
    """The checked settings. Raises `InvalidSettings`, which is an `ImproperlyConfigured`."""
    given: object = getattr(settings, "OUTBOX", {})
    if not isinstance(given, Mapping):
        raise InvalidSettings(f"settings.OUTBOX must be a dict, got {type(given).__name__}")
    known = {field.name.upper(): field.name for field in fields(OutboxSettings)}
    for key in given:
        if key not in known:
            raise InvalidSettings(
                f"settings.OUTBOX has an unknown key {quoted(key)}; {_closest(str(key), list(known))}"
            )
    return OutboxSettings(**{known[key]: value for key, value in cast("Mapping[str, Any]", given).items()})


def _closest(key: str, known: list[str]) -> str:
    close = get_close_matches(key.upper(), known, n=1)
    return f"did you mean {close[0]!r}?" if close else f"known are {', '.join(known)}"


def _check(name: str, value: object, expected: str, holds: Any) -> None:
    if not holds(value):
        raise InvalidSettings(f'OUTBOX["{name.upper()}"] must be {expected}, got {quoted(value)}')


def _is_text(value: object) -> bool:
    return isinstance(value, str) and bool(value)


def _is_duration(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= MAX_DELAY.total_seconds()


def _forget(*, setting: str, **_: object) -> None:
    if setting == "OUTBOX":
        outbox_settings.cache_clear()


setting_changed.connect(_forget, dispatch_uid="outbox_django.settings")
