"""Where an outbox is: a URL, or `module:broker`.

The core knows no driver. What opens a URL registers itself under the entry-point group `outbox.urls`, by the URL's scheme, as
a function `open(url, tables)` whose context is the store. A broker brings its store along.
"""

import importlib
import os
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING, TypeAlias, cast

from outbox_core.cli.exits import Refused
from outbox_core.errors import OutboxError
from outbox_core.schema import Tables
from outbox_core.sql.refusals import first_line
from outbox_core.store import Store

if TYPE_CHECKING:
    from outbox_core.faststream import OutboxBroker

OpenUrl: TypeAlias = Callable[[str, Tables], AbstractAsyncContextManager[Store]]

GROUP = "outbox.urls"


@dataclass(frozen=True, slots=True, kw_only=True)
class Names:
    """What an outbox's tables are called; None: after the outbox table, if there is such a table."""

    outbox: str = "outbox"
    dead_letters: str | None = None
    archive: str | None = None
    queues: str | None = None
    inbox: str | None = None
    schema: str | None = None

    def tables(self) -> Tables:
        """Every table that there could be."""
        return Tables(
            outbox=self.outbox,
            dead_letters=self.dead_letters or f"{self.outbox}_dlq",
            archive=self.archive or f"{self.outbox}_archive",
            queues=self.queues or f"{self.outbox}_queues",
            inbox=self.inbox or f"{self.outbox}_inbox",
            schema=self.schema,
        )


@asynccontextmanager
async def opened(where: str, names: Names) -> AsyncIterator[Store]:
    """The store at *where*. Raises `Refused`, or what the database says."""
    if "://" not in where:
        if names != Names():
            raise Refused(f"{where!r} knows its own tables; names of tables are for a URL")
        broker = find_broker(where)
        yield await broker.connect()  # nothing is opened by it
        return
    async with _open(where, await _existing(where, names)) as store:
        yield store


def _open(url: str, tables: Tables) -> AbstractAsyncContextManager[Store]:
    return _opener(url)(url, tables)


def _opener(url: str) -> OpenUrl:
    scheme = url.partition("://")[0].partition("+")[0]
    known = entry_points(group=GROUP)
    fitting = [*known.select(name=scheme)]
    if not fitting:
        names = ", ".join(sorted(known.names)) or "none, since no adapter is installed"
        raise Refused(f"no outbox can be in a {scheme!r} database; known are {names}")
    return _loaded(fitting[0])


def _loaded(entry: EntryPoint) -> OpenUrl:
    try:
        return cast("OpenUrl", entry.load())
    except ImportError as error:
        raise Refused(
            f"a URL needs what is not installed ({error}); pip install 'shared-outbox[sqlalchemy]' and a driver"
        ) from error


async def _existing(url: str, names: Names) -> Tables:
    """The tables that are there: those named after the outbox table are optional, those that were named are not."""
    tables = names.tables()
    async with _open(url, tables) as store:
        missing = {table for table, found in (await store.differences()).items() if found[0].missing_table}
    kept = {
        kind: None if getattr(names, kind) is None and getattr(tables, kind) in missing else getattr(tables, kind)
        for kind in ("dead_letters", "archive", "queues", "inbox")
    }
    return Tables(outbox=tables.outbox, schema=tables.schema, **kept)


# module:broker


def find_broker(where: str) -> "OutboxBroker":
    """The broker that `module:name` names, itself or as `.broker` of an application or a router."""
    named = find_object(where)
    from outbox_core.faststream import OutboxBroker  # whoever has one has imported it

    broker = named if isinstance(named, OutboxBroker) else getattr(named, "broker", None)
    if not isinstance(broker, OutboxBroker):
        raise Refused(
            f"{where!r} must name an OutboxBroker, or an application or a router with one, got {_kind(named)}"
        )
    return broker


def find_object(where: str) -> object:
    """What `module:name` names; modules are looked for in the current directory, too."""
    module, colon, path = where.partition(":")
    if not colon or not module or not path:
        raise Refused(f"must be a URL such as postgresql://host/database, or module:broker, got {where!r}")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        found: object = importlib.import_module(module)
        for name in path.split("."):
            found = getattr(found, name)
    except OutboxError as error:
        raise Refused(f"cannot import {where!r}: {error}") from error
    except Exception as error:  # the user's module may do whatever it likes
        raise Refused(f"cannot import {where!r}: {type(error).__name__}: {first_line(error)}") from error
    return found


def _kind(named: object) -> str:
    return f"the class {named.__name__}" if isinstance(named, type) else type(named).__name__
