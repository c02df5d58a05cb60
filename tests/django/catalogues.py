"""What a database says of a table, in full, so that two of them can be compared."""

import re
from typing import Any

from sqlalchemy import Connection, Table, text

POSTGRESQL = {
    "columns": """
        SELECT attname, format_type(atttypid, atttypmod), attnotnull, attidentity, pg_get_expr(adbin, adrelid),
               attcollation, attstorage, pg_get_serial_sequence(:name, attname)
        FROM pg_attribute
        LEFT JOIN pg_attrdef ON adrelid = attrelid AND adnum = attnum
        WHERE attrelid = to_regclass(:name) AND attnum > 0
        ORDER BY attnum""",
    "indexes": """
        SELECT pg_get_indexdef(indexrelid), indisunique, indisprimary, indisvalid, pg_get_expr(indpred, indrelid)
        FROM pg_index
        WHERE indrelid = to_regclass(:name)
        ORDER BY 1""",
    "constraints": """
        SELECT conname, contype, pg_get_constraintdef(oid)
        FROM pg_constraint
        WHERE conrelid = to_regclass(:name) AND contype <> 'n'  -- PostgreSQL 18 names them by a count of its own
        ORDER BY 1""",
    "storage": "SELECT unnest(reloptions) FROM pg_class WHERE oid = to_regclass(:name) ORDER BY 1",
    "triggers": "SELECT tgname FROM pg_trigger WHERE tgrelid = to_regclass(:name)",
}
SQLITE = {
    "columns": 'SELECT name, lower(type), "notnull", dflt_value, pk, hidden FROM pragma_table_xinfo(:name)',
    "indexes": """
        SELECT list.name, list."unique", list.origin, list.partial, info.name, info."desc", info.coll
        FROM pragma_index_list(:name) AS list
        CROSS JOIN pragma_index_xinfo(list.name) AS info
        ORDER BY list.name, info.seqno""",
    "declarations": "SELECT name, sql FROM sqlite_master WHERE tbl_name = :name ORDER BY name",
}


def read_catalogue(connection: Connection, table: Table) -> dict[str, list[tuple[Any, ...]]]:
    """Each aspect of a table that is there, as the database's own catalogue has it."""
    name = table.fullname
    if connection.dialect.name == "postgresql":
        answers = {aspect: _ask(connection, question, name) for aspect, question in POSTGRESQL.items()}
    else:
        answers = {aspect: _ask(connection, question, name) for aspect, question in SQLITE.items()}
        answers["declarations"] = [(name, _plain(sql or "")) for name, sql in answers["declarations"]]
    assert answers["columns"], f"table {name} does not exist"
    return answers


def _ask(connection: Connection, question: str, name: str) -> list[tuple[Any, ...]]:
    return [tuple(row) for row in connection.execute(text(question), {"name": name})]


def _plain(sql: str) -> str:
    """A declaration without what is left to taste: case, quotes, spaces, parentheses, commas, and a NULL that goes without
    saying.
    """
    words = re.sub(r'[\s"(),]+', " ", sql).lower()
    return re.sub(r"(?<!not)(?<!is) null\b", "", words).strip()
