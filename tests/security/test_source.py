"""What the source may not contain, wherever it would be reached from."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import MetaData

from outbox_core.cli.places import Names
from outbox_core.errors import OutboxError
from outbox_core.schema import Tables
from outbox_django.settings import OutboxSettings
from outbox_sqlalchemy import make_dlq_table, make_outbox_table, make_outbox_tables
from outbox_sqlalchemy.tables import names_of

ROOT = Path(__file__).parents[2]
PACKAGES = ("outbox_core", "outbox_sqlalchemy", "outbox_django", "outbox_fastapi")
SOURCES = [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]

SQL = re.compile(
    r"\b(SELECT\b.+\bFROM|INSERT\s+INTO|UPDATE\b.+\bSET|DELETE\s+FROM|(ALTER|CREATE|DROP)\s+(TABLE|INDEX|SCHEMA)|"
    r"TRUNCATE\s|LISTEN\s|NOTIFY\s|SAVEPOINT\s|GRANT\s)",
    re.DOTALL,
)
# Outside of outbox_core/sql: identifiers that are checked or quoted, and nothing else.
FORMATTED = {
    "outbox_django/listen.py",  # LISTEN takes no parameter; the channel follows from checked names
    "outbox_django/operations.py",  # migrations, through the schema editor's quote_name
    "outbox_sqlalchemy/listen.py",  # as in Django's
    "outbox_sqlalchemy/tables.py",  # numbers of ours, and SQLAlchemy's own quoted name
}
# Modules that load by name what the program's own settings, command line or source name.
IMPORTING = {
    "outbox_core/cli/places.py",
    "outbox_core/envelope.py",
    "outbox_django/__init__.py",
    "outbox_django/handlers.py",
}
EXECUTING = {"eval", "exec", "compile", "__import__"}
UNSAFE = {"pickle", "marshal", "shelve", "dill", "cloudpickle", "jsonpickle", "imp", "runpy", "code", "ctypes"}


def nodes(path: Path) -> Iterator[ast.AST]:
    return ast.walk(ast.parse(path.read_text()))


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def formatted(node: ast.AST) -> str | None:
    """The text of a string that is put together at run time."""
    match node:
        case ast.JoinedStr(values=values) if any(isinstance(value, ast.FormattedValue) for value in values):
            return "{}".join(str(value.value) for value in values if isinstance(value, ast.Constant))
        case ast.BinOp(left=ast.Constant(value=str(text)), op=ast.Mod() | ast.Add()):
            return text
        case ast.Call(func=ast.Attribute(value=ast.Constant(value=str(text)), attr="format")):
            return text
    return None


def called(node: ast.AST) -> str | None:
    match node:
        case ast.Call(func=ast.Name(id=name)) | ast.Call(func=ast.Attribute(attr=name)):
            return name
    return None


def imported(node: ast.AST) -> set[str]:
    match node:
        case ast.Import(names=names):
            return {alias.name.partition(".")[0] for alias in names}
        case ast.ImportFrom(module=str(module)):
            return {module.partition(".")[0]}
    return set()


def test_no_sql_is_put_together_outside_of_the_statements() -> None:
    found = {
        name_of(path)
        for path in SOURCES
        if "outbox_core/sql/" not in path.as_posix()
        for node in nodes(path)
        if (text := formatted(node)) is not None and SQL.search(text)
    }

    assert found == FORMATTED


def test_nothing_that_runs_code_from_data_is_imported() -> None:
    assert {name_of(path): both for path in SOURCES for node in nodes(path) if (both := imported(node) & UNSAFE)} == {}


def test_nothing_is_evaluated() -> None:
    found = {
        name_of(path)
        for path in SOURCES
        for node in nodes(path)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in EXECUTING
    }

    assert found == set()


def test_modules_are_loaded_by_name_only_where_the_program_names_them() -> None:
    loading = {"import_module", "import_string"}

    assert {name_of(path) for path in SOURCES for node in nodes(path) if called(node) in loading} == IMPORTING


def test_yaml_is_never_loaded() -> None:
    assert {name_of(path) for path in SOURCES for node in nodes(path) if "yaml" in imported(node)} == set()


BAD_NAMES = ['x"; DROP TABLE y; --', "", "a\0b", "app.outbox", "a b", "é", "1st", "x" * 64]


@pytest.mark.parametrize("name", BAD_NAMES)
@pytest.mark.parametrize(
    "door",
    [
        lambda name: Tables(name),
        lambda name: Tables(dead_letters=name),
        lambda name: Tables(schema=name),
        lambda name: make_outbox_table(MetaData(), name),
        lambda name: make_outbox_table(MetaData(), schema=name),
        lambda name: make_dlq_table(MetaData(), name),
        lambda name: make_outbox_tables(MetaData(), name),
        lambda name: OutboxSettings(table=name),
        lambda name: OutboxSettings(schema=name).tables,
        lambda name: Names(outbox=name).tables(),
        lambda name: Names(schema=name).tables(),
    ],
)
def test_every_door_refuses_a_name_that_is_no_plain_identifier(door: Any, name: str) -> None:
    with pytest.raises(OutboxError):
        door(name)


def test_a_broker_without_tables_takes_its_schema_from_nobody() -> None:
    assert names_of(None) == Tables("outbox")
