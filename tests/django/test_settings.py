"""`settings.OUTBOX`: read as a whole, refused with the way out, and honoured when a test overrides it."""

import re
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

import psycopg
import pytest
from django.core.exceptions import ImproperlyConfigured
from django.db import connections
from django.test import override_settings
from django.test.utils import CaptureQueriesContext
from sqlalchemy import URL

from outbox_core.errors import OptionError, PayloadTooLarge, WrongDatabase
from outbox_core.schema import Tables
from outbox_core.sql.dialect import wake_lock
from outbox_django import OutboxBroker, publish
from outbox_django.errors import InvalidSettings, NotInTransaction
from outbox_django.models import OutboxMessage
from outbox_django.settings import outbox_settings
from tests.databases import plain


def test_every_key_may_be_left_out() -> None:
    settings = outbox_settings()

    assert settings.database is None
    assert settings.require_transaction == "error"
    assert settings.tables.outbox == "outbox"
    assert settings.tables.archive is None
    assert (settings.dead_letter_retention, settings.inbox_retention) == (None, None)


@pytest.mark.parametrize(
    ("outbox", "said"),
    [
        ([], "settings.OUTBOX must be a dict, got list"),
        ("outbox", "settings.OUTBOX must be a dict, got str"),
        (
            {"REQUIRE_TRANSACTIONS": "warn"},
            "settings.OUTBOX has an unknown key 'REQUIRE_TRANSACTIONS'; did you mean 'REQUIRE_TRANSACTION'?",
        ),
        ({"table": "events"}, "settings.OUTBOX has an unknown key 'table'; did you mean 'TABLE'?"),
        ({"XYZ": 1}, "settings.OUTBOX has an unknown key 'XYZ'; known are DATABASE, TABLE, SCHEMA, "),
        ({1: 2}, "settings.OUTBOX has an unknown key 1; known are "),
        (
            {"REQUIRE_TRANSACTION": "always"},
            "OUTBOX[\"REQUIRE_TRANSACTION\"] must be one of ('error', 'warn', 'ignore'), got 'always'",
        ),
        ({"REQUIRE_TRANSACTION": True}, 'OUTBOX["REQUIRE_TRANSACTION"] must be one of'),
        ({"REQUIRE_TRANSACTION": []}, 'OUTBOX["REQUIRE_TRANSACTION"] must be one of'),
        ({"DATABASE": ""}, "OUTBOX[\"DATABASE\"] must be a str or None, got ''"),
        ({"TABLE": None}, 'OUTBOX["TABLE"] must be a str, got None'),
        ({"TABLE": "a b"}, 'OUTBOX["TABLE"]'),
        ({"TABLE": "t" * 60}, "t" * 60),
        ({"SCHEMA": "a.b"}, "a.b"),
        (
            {"INBOX_RETENTION": timedelta(days=7), "DEAD_LETTER_RETENTION": timedelta(days=30)},
            'OUTBOX["INBOX_RETENTION"] must not be shorter than OUTBOX["DEAD_LETTER_RETENTION"], got 7 days and 30 days: ',
        ),
        (
            {"INBOX_RETENTION": timedelta(days=7)},
            'OUTBOX["INBOX_RETENTION"] is 7 days, but OUTBOX["DEAD_LETTER_RETENTION"] is not set, ',
        ),
        ({"INBOX_RETENTION": 7}, 'OUTBOX["INBOX_RETENTION"] must be a timedelta, got int; pass timedelta(days=…)'),
        ({"DEAD_LETTER_RETENTION": -timedelta(1)}, 'OUTBOX["DEAD_LETTER_RETENTION"] must not be negative'),
        ({"MANAGED": "no"}, "OUTBOX[\"MANAGED\"] must be True or False, got 'no'"),
        ({"NOTIFY": 1}, 'OUTBOX["NOTIFY"] must be True or False, got 1'),
        ({"CONCURRENCY": 0}, 'OUTBOX["CONCURRENCY"] must be an int between 1 and 1,000, got 0'),
        ({"CONCURRENCY": True}, 'OUTBOX["CONCURRENCY"] must be an int between 1 and 1,000, got True'),
        ({"CONCURRENCY": "4"}, 'OUTBOX["CONCURRENCY"] must be an int'),
        ({"GRACEFUL_TIMEOUT": -1}, 'OUTBOX["GRACEFUL_TIMEOUT"] must be a number of seconds >= 0, got -1'),
        ({"GRACEFUL_TIMEOUT": float("inf")}, 'OUTBOX["GRACEFUL_TIMEOUT"] must be a number of seconds >= 0, got inf'),
        ({"STUCK_TIMEOUT": 0}, 'OUTBOX["STUCK_TIMEOUT"] must be a number of seconds >= 1, or None, got 0'),
        ({"CONN_MAX_AGE": "60"}, "OUTBOX[\"CONN_MAX_AGE\"] must be a number of seconds >= 0, or None, got '60'"),
        ({"CONN_MAX_AGE": 10**400}, 'OUTBOX["CONN_MAX_AGE"] must be a number of seconds >= 0, or None, got an int of'),
        (
            {"MAX_PAYLOAD_BYTES": 0},
            'OUTBOX["MAX_PAYLOAD_BYTES"] must be an int between 1 and 268,435,456, got 0',
        ),
        ({"MAX_PAYLOAD_BYTES": None}, 'OUTBOX["MAX_PAYLOAD_BYTES"] must be an int between 1 and 268,435,456, got None'),
        ({"BROKER": 5}, 'OUTBOX["BROKER"] must be a str or None, got 5'),
        ({"AUTODISCOVER": ""}, 'OUTBOX["AUTODISCOVER"] must be a str, got'),
    ],
)
def test_what_cannot_work_is_named(outbox: Any, said: str) -> None:
    with override_settings(OUTBOX=outbox), pytest.raises(InvalidSettings, match=re.escape(said)) as refused:
        outbox_settings()

    assert isinstance(refused.value, ImproperlyConfigured)
    assert isinstance(refused.value, OptionError)


def test_a_table_may_be_called_what_sql_has_a_word_for() -> None:
    with override_settings(OUTBOX={"TABLE": "order"}):
        assert outbox_settings().tables.outbox == "order"


def test_a_wrong_setting_stops_a_publish_too(django_databases: object) -> None:
    with override_settings(OUTBOX={"REQUIRE_TRANSACTON": "warn"}), pytest.raises(InvalidSettings):
        publish("x", "q", standalone=True)

    publish("x", "q", standalone=True)
    assert OutboxMessage.objects.count() == 1


@pytest.mark.parametrize(("notify", "expected"), [(True, ["q"]), (False, [])])
def test_publishers_wake_workers_unless_the_settings_say_not_to(
    django_databases: Mapping[str, URL], notify: bool, expected: list[str]
) -> None:
    channel = Tables().channel
    with (
        psycopg.connect(plain(django_databases["default"]), autocommit=True) as sleeper,
        override_settings(OUTBOX={"NOTIFY": notify}),
        CaptureQueriesContext(connections["default"]) as sent,
    ):
        sleeper.execute("SELECT pg_advisory_lock(%s)", [wake_lock(channel, "q")])
        sleeper.execute(f'LISTEN "{channel}"')
        publish("x", "q", standalone=True)
        sleeper.execute("SELECT pg_notify(%s, 'end')", [channel])
        heard = [notification.payload for notification in sleeper.notifies(timeout=10, stop_after=len(expected) + 1)]

    assert heard == [*expected, "end"]
    assert any("pg_try_advisory" in query["sql"] for query in sent) is notify
    assert OutboxMessage.objects.count() == 1


def test_the_limit_of_a_payload_is_that_of_publishers_and_of_the_broker(django_databases: object) -> None:
    with override_settings(OUTBOX={"MAX_PAYLOAD_BYTES": 3, "REQUIRE_TRANSACTION": "ignore"}):
        broker = OutboxBroker()
        for call in (publish, broker.publish_sync):
            call(b"123", "q")
            with pytest.raises(PayloadTooLarge, match="at most 3 bytes, got 4"):
                call(b"1234", "q")


def test_an_override_is_honoured_and_taken_back(django_databases: object) -> None:
    with pytest.raises(NotInTransaction):
        publish("loose", "q")
    with override_settings(OUTBOX={"REQUIRE_TRANSACTION": "ignore"}):
        publish("ignored", "q")
    with override_settings(OUTBOX={"REQUIRE_TRANSACTION": "warn"}), pytest.warns(RuntimeWarning):
        publish("warned", "q")
    with pytest.raises(NotInTransaction):
        publish("loose", "q")

    assert [message.body for message in OutboxMessage.objects.order_by("id")] == ["ignored", "warned"]


def test_a_broker_of_a_database_that_does_not_exist_says_so() -> None:
    with pytest.raises(
        WrongDatabase, match=r"there is no database 'elsewhere' in settings\.DATABASES; known are 'default'"
    ):
        OutboxBroker("elsewhere")
    with override_settings(OUTBOX={"DATABASE": "elsewhere"}), pytest.raises(WrongDatabase, match="'elsewhere'"):
        publish("x", "q")


def test_a_broker_takes_what_it_is_not_given_from_the_settings(django_databases: object) -> None:
    with override_settings(OUTBOX={"CONCURRENCY": 7, "GRACEFUL_TIMEOUT": 3, "STUCK_TIMEOUT": 9, "DATABASE": "lite"}):
        broker = OutboxBroker()

    assert broker.lanes.size == 7
    assert broker.lanes.conn_max_age == 600
    assert broker.config.broker_config.worker.stuck_timeout == 9
    assert broker.config.graceful_timeout == 3
    assert OutboxBroker(concurrency=2, graceful_timeout=1.0).lanes.size == 2
