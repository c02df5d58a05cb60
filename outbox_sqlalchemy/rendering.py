"""Statements with `:name` parameters in the style of SQLAlchemy's drivers, each compiled once."""

from collections.abc import Callable, Mapping
from functools import cache
from typing import Any, NamedTuple

from sqlalchemy import Dialect, text

from outbox_core.sql.remember import remembered


class Rendered(NamedTuple):
    """A statement's text as a driver takes it. *names*: of its parameters in their places; None if the driver takes names."""

    text: str
    names: tuple[str, ...] | None

    def values(self, parameters: Mapping[str, object]) -> tuple[object, ...] | dict[str, object]:
        """*parameters* as the driver takes them."""
        return {**parameters} if self.names is None else tuple([parameters[name] for name in self.names])


def rendered(sql: str, dialect: Dialect) -> Rendered:
    """*sql* for *dialect*."""
    kind: Any = type(dialect)
    return _renderer(kind, dialect.paramstyle)(sql)


@cache
def _renderer(dialect: Any, paramstyle: str) -> Callable[[str], Rendered]:
    like_it = dialect(paramstyle=paramstyle)

    def render(sql: str) -> Rendered:
        compiled = text(sql).compile(dialect=like_it)
        names = getattr(compiled, "positiontup", None)
        return Rendered(compiled.string, None if names is None else tuple(names))

    return remembered(render)
