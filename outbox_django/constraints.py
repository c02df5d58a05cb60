"""Uniqueness among some of the rows, on databases that can do it, and among all rows elsewhere."""

from django.db.backends.base.schema import BaseDatabaseSchemaEditor
from django.db.models import Model, UniqueConstraint


class PartialUniqueConstraint(UniqueConstraint):
    """A `UniqueConstraint` with a condition that MariaDB and MySQL can be given too.

    Left to itself, Django makes no constraint there, and fails on its absence where a column of the table has a literal
    as its default (django/db/backends/base/schema.py, `table_sql`).
    """

    def constraint_sql(self, model: type[Model] | None, schema_editor: BaseDatabaseSchemaEditor | None) -> str:
        return self._fit_for(schema_editor).constraint_sql(model, schema_editor)

    def create_sql(self, model: type[Model] | None, schema_editor: BaseDatabaseSchemaEditor | None) -> str:
        return self._fit_for(schema_editor).create_sql(model, schema_editor)

    def remove_sql(self, model: type[Model] | None, schema_editor: BaseDatabaseSchemaEditor | None) -> str:
        return self._fit_for(schema_editor).remove_sql(model, schema_editor)

    def _fit_for(self, schema_editor: BaseDatabaseSchemaEditor | None) -> UniqueConstraint:
        assert schema_editor is not None, "only the stubs allow it"
        partial = schema_editor.connection.features.supports_partial_indexes
        return UniqueConstraint(fields=self.fields, name=self.name, condition=self.condition if partial else None)
