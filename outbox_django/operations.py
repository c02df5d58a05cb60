"""What the first migration does beyond Django's own operations, on PostgreSQL only: the schema, and how rows are stored."""

from collections.abc import Mapping

from django.db import router
from django.db.backends.base.schema import BaseDatabaseSchemaEditor
from django.db.migrations.operations.base import Operation, OperationCategory
from django.db.migrations.state import ProjectState
from django.db.models import Model


class CreateSchema(Operation):
    """Create a schema unless it is there. Going back leaves it: others may have tables in it.

    The schema is looked for first, because `CREATE SCHEMA IF NOT EXISTS` is refused to a role that may not create one, even
    where there is nothing to do. *model_name* is what the database routers are asked about.
    """

    category = OperationCategory.ADDITION

    def __init__(self, name: str, model_name: str) -> None:
        self.name = name
        self.model_name = model_name

    def state_forwards(self, app_label: str, state: ProjectState) -> None:
        """Django's state has no schemas."""

    def database_forwards(
        self, app_label: str, schema_editor: BaseDatabaseSchemaEditor, from_state: ProjectState, to_state: ProjectState
    ) -> None:
        connection = schema_editor.connection
        wanted = router.allow_migrate(connection.alias, app_label, model_name=self.model_name)
        if connection.vendor == "postgresql" and wanted and not self._exists(schema_editor):
            schema_editor.execute(f"CREATE SCHEMA {schema_editor.quote_name(self.name)}")

    def database_backwards(
        self, app_label: str, schema_editor: BaseDatabaseSchemaEditor, from_state: ProjectState, to_state: ProjectState
    ) -> None:
        """Nothing."""

    def describe(self) -> str:
        return f"Create schema {self.name}"

    def _exists(self, schema_editor: BaseDatabaseSchemaEditor) -> bool:
        with schema_editor.connection.cursor() as cursor:
            cursor.execute("SELECT 1 FROM pg_namespace WHERE nspname = %s", [self.name])
            return cursor.fetchone() is not None


class SetTableStorage(Operation):
    """Set storage parameters of a model's table; going back gives it the server's own again."""

    category = OperationCategory.ALTERATION

    def __init__(self, model_name: str, parameters: Mapping[str, float]) -> None:
        self.model_name = model_name
        self.parameters = parameters

    def state_forwards(self, app_label: str, state: ProjectState) -> None:
        """Django's models have no storage parameters."""

    def database_forwards(
        self, app_label: str, schema_editor: BaseDatabaseSchemaEditor, from_state: ProjectState, to_state: ProjectState
    ) -> None:
        settings = ", ".join(f"{name} = {value}" for name, value in self.parameters.items())
        self._alter(schema_editor, to_state.apps.get_model(app_label, self.model_name), f"SET ({settings})")

    def database_backwards(
        self, app_label: str, schema_editor: BaseDatabaseSchemaEditor, from_state: ProjectState, to_state: ProjectState
    ) -> None:
        names = ", ".join(self.parameters)
        self._alter(schema_editor, to_state.apps.get_model(app_label, self.model_name), f"RESET ({names})")

    def describe(self) -> str:
        return f"Set storage parameters of {self.model_name}"

    def _alter(self, schema_editor: BaseDatabaseSchemaEditor, model: type[Model], change: str) -> None:
        connection = schema_editor.connection
        if connection.vendor == "postgresql" and self.allow_migrate_model(connection.alias, model):
            schema_editor.execute(f"ALTER TABLE {schema_editor.quote_name(model._meta.db_table)} {change}")
