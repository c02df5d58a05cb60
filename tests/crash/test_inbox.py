"""A handler that writes elsewhere than into the outbox's database, killed around its commit: one effect a message."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import URL, create_engine, select

from tests.crash.fleet import Fleet, Worker
from tests.crash.receiver import effects, metadata
from tests.databases import postgres_database


@pytest.fixture(params=["postgresql+asyncpg", "postgresql+psycopg", "sqlite+aiosqlite"])
def elsewhere(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[URL]:
    """A database of the handler's own, with an inbox."""
    if request.param == "sqlite+aiosqlite":
        yield made(URL.create(request.param, database=str(tmp_path / "elsewhere.db")))
        return
    with postgres_database(request.getfixturevalue("server")) as url:
        yield made(url.set(drivername=request.param))


def test_a_handler_behind_an_inbox_has_one_effect_wherever_it_is_killed(fleet: Fleet, elsewhere: URL) -> None:
    fleet.outbox.publish(*range(4))
    kills = ["written", "committed"]
    for dies in kills:
        assert receive(fleet, elsewhere, dies).ended(20) == -9
    last = receive(fleet, elsewhere, None)

    assert last.ended(30) == 0, last.logged()
    assert written(elsewhere) == [0, 1, 2, 3]
    assert sum(worker.logged().count("skipped") for worker in fleet.workers) == kills.count("committed")


def receive(fleet: Fleet, elsewhere: URL, dies: str | None) -> Worker:
    url, other = (place.render_as_string(hide_password=False) for place in (fleet.outbox.url, elsewhere))
    return fleet.run("tests.crash.receiver", url=url, elsewhere=other, dies=dies)


def synchronous(url: URL) -> URL:
    return url.set(drivername="sqlite" if url.get_backend_name() == "sqlite" else "postgresql+psycopg")


def made(url: URL) -> URL:
    engine = create_engine(synchronous(url))
    metadata.create_all(engine)
    engine.dispose()
    return url


def written(url: URL) -> list[int]:
    engine = create_engine(synchronous(url))
    with engine.connect() as connection:
        numbers = sorted(connection.scalars(select(effects.c.number)))
    engine.dispose()
    return numbers
