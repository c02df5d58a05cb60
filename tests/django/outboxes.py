"""One outbox in a database of its own, made by either framework and open to both."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from sqlalchemy import URL, Engine, MetaData, create_engine, text

from outbox_sqlalchemy import OutboxTables, make_outbox_tables
from tests.databases import postgres_database
from tests.django.projects import Project


@dataclass(frozen=True)
class Outbox:
    """The tables that `settings.OUTBOX` names, as SQLAlchemy and as Django see them."""

    url: URL  # without a driver
    settings: Mapping[str, object] = field(default_factory=dict)

    @property
    def is_postgresql(self) -> bool:
        return self.url.get_backend_name() == "postgresql"

    @property
    def schema(self) -> str | None:
        return self.settings.get("SCHEMA")  # type: ignore[return-value]  # tests give it a str

    @property
    def tables(self) -> OutboxTables:
        name = str(self.settings.get("TABLE", "outbox"))
        return make_outbox_tables(MetaData(), name, self.schema, archive=True, inbox=True)

    @property
    def project(self) -> Project:
        return Project(self.url, self.settings)

    @property
    def async_url(self) -> URL:
        return self.url.set(drivername="postgresql+asyncpg" if self.is_postgresql else "sqlite+aiosqlite")

    @contextmanager
    def engine(self) -> Iterator[Engine]:
        engine = create_engine(self.url.set(drivername="postgresql+psycopg" if self.is_postgresql else "sqlite"))
        try:
            yield engine
        finally:
            engine.dispose()

    def make_with_django(self) -> None:
        self.project.manage("migrate")

    def make_with_sqlalchemy(self) -> None:
        with self.engine() as engine, engine.begin() as connection:
            if self.schema is not None:
                connection.execute(text(f"CREATE SCHEMA {self.schema}"))
            self.tables.outbox.metadata.create_all(connection)

    def names(self) -> list[str]:
        """Every table that there is, with its schema."""
        catalogue = (
            "SELECT schemaname || '.' || tablename FROM pg_tables WHERE schemaname !~ '^(pg_|information_schema)'"
        )
        if not self.is_postgresql:
            catalogue = "SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite_%'"
        with self.engine() as engine, engine.connect() as connection:
            return sorted(connection.scalars(text(catalogue)))


@contextmanager
def empty_database(kind: str, server: URL, folder: Path) -> Iterator[URL]:
    """A database without tables: on *server*, or as a file in *folder*."""
    if kind == "sqlite":
        yield URL.create("sqlite", database=str(folder / "outbox.db"))
        return
    with postgres_database(server) as url:
        yield url
