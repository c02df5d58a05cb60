"""The port for everything that executes text: one file of statements a database, written once for all adapters."""

from outbox_core.sql.dialect import Dialect, Row, Statement, dialect_for
from outbox_core.sql.store import Executor, Maker, SqlStore, begun

__all__ = ["Dialect", "Executor", "Maker", "Row", "SqlStore", "Statement", "begun", "dialect_for"]
