"""The live table against its description, whatever database the catalogue was read from.

No framework's own check sees all of this: Alembic ignores the predicates of partial indexes, and Django never looks at
the database.
"""

import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

from outbox_core.schema import Column, Index, TableSpec, object_name
from outbox_core.store import Difference


class LiveColumn(NamedTuple):
    """One column as the database has it; `kind` in the dialect's own words."""

    name: str
    kind: str
    nullable: bool
    has_default: bool


class LiveIndex(NamedTuple):
    """One index as the database has it; `where` is the predicate's text, empty for none."""

    columns: tuple[str, ...]
    unique: bool
    where: str


def compare(
    table: str,
    spec: TableSpec,
    columns: Sequence[LiveColumn],
    indexes: Sequence[LiveIndex],
    type_of: Callable[[Column], str],
) -> list[Difference]:
    """Every difference: columns are fatal, indexes only make it slow, unless a unique one is missing."""
    live = {column.name: column for column in columns}
    found = [
        Difference(text, fatal=True)
        for column in spec.columns
        for text in _column_differences(column, live.get(column.name), type_of(column))
    ]
    found += [
        Difference(f"column {name} is not ours, NOT NULL and without a default, so nothing can be inserted", fatal=True)
        for name, column in live.items()
        if name not in spec.names and not column.nullable and not column.has_default
    ]
    present = {(index.columns, index.unique, _predicate(index.where)) for index in indexes}
    found += [
        Difference(
            f"index {object_name(table, index.suffix)} on {_described(index)} is missing or different", index.unique
        )
        for index in spec.indexes
        if (index.columns, index.unique, _predicate(index.where or "")) not in present
    ]
    return found


def _column_differences(column: Column, live: LiveColumn | None, expected: str) -> list[str]:
    if live is None:
        return [f"column {column.name} is missing, expected {expected}"]
    found = []
    if live.kind != expected:
        found.append(f"column {column.name} is {live.kind}, expected {expected}")
    if column.kind == "identity":  # SQLite's integer primary key says nothing about NULL or defaults
        return found
    if live.nullable != column.nullable:
        found.append(f"column {column.name} is {'nullable' if live.nullable else 'NOT NULL'}, expected the opposite")
    if column.default is not None and not live.has_default:
        found.append(f"column {column.name} has no default in the database")
    return found


def _described(index: Index) -> str:
    unique = "unique " if index.unique else ""
    return f"{unique}({', '.join(index.columns)})" + (f" WHERE {index.where}" if index.where else "")


def _predicate(text: str) -> frozenset[str]:
    """A conjunction as a set, without the parentheses and quotes that each database adds in its own way."""
    return frozenset(re.sub(r"[()\s\"]+", " ", part).strip() for part in text.split(" AND ") if part.strip())
