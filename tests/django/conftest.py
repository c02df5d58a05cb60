"""Databases for Django in this process, with all tables, and empty for each test: "default" on PostgreSQL, "lite" on SQLite.

They are made by `migrate` once. Whatever a test has opened, in its own thread or in that of `sync_to_async`, is closed.
"""

import shutil
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

import psycopg
import pytest
from asgiref.sync import SyncToAsync
from django.core.management import call_command
from django.db import connections
from sqlalchemy import URL

from tests.databases import execute, plain, postgres_database
from tests.django.sites import ALIAS, Site
from tests.django_databases import added_database

KEPT = ("django_migrations", "django_content_type", "auth_permission")  # what `migrate` has filled


@pytest.fixture(scope="session")
def migrated_postgresql(server: URL) -> Iterator[URL]:
    """A PostgreSQL database with all tables. Nothing in it has to survive a crash of the server."""
    with postgres_database(server) as url:
        execute(server, f'ALTER DATABASE "{url.database}" SET synchronous_commit = off')
        migrate(url)
        yield url


@pytest.fixture(scope="session")
def migrated_sqlite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An SQLite file with all tables, to be copied."""
    path = tmp_path_factory.mktemp("sqlite") / "template.db"
    migrate(URL.create("sqlite", database=str(path)))
    return path


@pytest.fixture
def django_databases(migrated_postgresql: URL, migrated_sqlite: Path, tmp_path: Path) -> Iterator[Mapping[str, URL]]:
    """`settings.DATABASES` leads to both databases, whose tables are empty; their URLs by alias."""
    lite = URL.create("sqlite", database=str(tmp_path / "lite.db"))
    shutil.copy(migrated_sqlite, str(lite.database))
    with ExitStack() as added:
        urls = {"default": migrated_postgresql, "lite": lite}
        for alias, url in urls.items():
            added.enter_context(leading(alias, url))
        yield urls
        added.close()
        empty(migrated_postgresql)


@pytest.fixture(params=["default", "lite"])
def alias(request: pytest.FixtureRequest, django_databases: Mapping[str, URL]) -> str:
    """Each of `django_databases` in turn."""
    return str(request.param)


def migrate(url: URL) -> None:
    """Make all tables, under an alias of its own."""
    with leading("migrated", url):
        call_command("migrate", database="migrated", verbosity=0)


@contextmanager
def leading(alias: str, url: URL) -> Iterator[str]:
    """*alias* leads to *url* meanwhile, in every thread, even if it is one of the settings' own."""
    before = connections.settings.get(alias)
    forget(alias)
    try:
        with added_database(alias, url):
            try:
                yield alias
            finally:
                forget(alias)
    finally:
        if before is not None:
            connections.settings[alias] = before


def forget(alias: str) -> None:
    """Close the connections that were opened for *alias*, and make new ones of its settings from now on."""
    forget_here(alias)
    SyncToAsync.single_thread_executor.submit(forget_here, alias).result()


def forget_here(alias: str) -> None:
    if alias in connections.settings and hasattr(connections._connections, alias):
        connections[alias].close()
        del connections[alias]


def empty(database: URL) -> None:
    """Delete all rows, and count ids from 1 again; on tables that are nearly empty, DELETE takes a tenth of TRUNCATE."""
    kept = ", ".join(f"'{table}'" for table in KEPT)
    with psycopg.connect(plain(database)) as connection:
        connection.execute("SET lock_timeout = '5s'")  # somebody's transaction is still open
        for (table,) in connection.execute(
            f"SELECT tablename FROM pg_tables WHERE schemaname = 'public' AND tablename NOT IN ({kept})"
        ).fetchall():
            connection.execute(f'DELETE FROM "{table}"')
        connection.execute(
            f"""SELECT setval(sequence.oid, 1, false)
                FROM pg_class AS sequence
                JOIN pg_depend ON objid = sequence.oid
                JOIN pg_class AS owner ON owner.oid = refobjid
                WHERE sequence.relkind = 'S' AND owner.relname NOT IN ({kept})"""
        )


# The site


@pytest.fixture(scope="session")
def site_postgresql(server: URL, tmp_path_factory: pytest.TempPathFactory) -> Iterator[URL]:
    """A PostgreSQL database with the site's tables."""
    with postgres_database(server) as url:
        made(Site.copied(tmp_path_factory.mktemp("site") / "site", url))
        yield url


@pytest.fixture(scope="session")
def site_sqlite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An SQLite file with the site's tables, to be copied."""
    folder = tmp_path_factory.mktemp("site")
    made(Site.copied(folder / "site", URL.create("sqlite", database=str(folder / "site.db"))))
    return folder / "site.db"


def made(site: Site) -> None:
    code, log = site.manage("migrate", "-v", "0")
    assert code == 0, log


@contextmanager
def ready(folder: Path, url: URL) -> Iterator[Site]:
    """The site on a database that this process reaches too; nothing of it goes on at the end."""
    site = Site.copied(folder / "site", url)
    with leading(ALIAS, url):
        try:
            yield site
        finally:
            for process in site.started:
                process.kill()


@pytest.fixture
def site(site_postgresql: URL, tmp_path: Path) -> Iterator[Site]:
    """The site on PostgreSQL."""
    with ready(tmp_path, site_postgresql) as site:
        yield site
    empty(site_postgresql)


@pytest.fixture
def lite(site_sqlite: Path, tmp_path: Path) -> Iterator[Site]:
    """The site on SQLite."""
    with ready(tmp_path, URL.create("sqlite", database=str(shutil.copy(site_sqlite, tmp_path)))) as site:
        yield site


@pytest.fixture(params=["site", "lite"])
def either(request: pytest.FixtureRequest) -> Site:
    """The site on each database in turn."""
    site: Site = request.getfixturevalue(request.param)
    return site
