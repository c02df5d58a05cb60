"""The threats that an outbox faces, and where each is proved to be met; `test_bad_input.py` is that of `tests/sqlalchemy`.

| threat | proved by |
|---|---|
| SQL through names of tables, schemas, channels | `tests/core/test_schema.py`, `test_source.py` (at every door) |
| SQL through the name of a role | `tests/cli/test_ddl.py` (quoted) |
| SQL through queues, keys and the like | `test_source.py` (no SQL is put together elsewhere), `test_bad_input.py` |
| code from a row: pickle, eval, imports | `test_source.py` |
| a codec chosen by a header | `test_rows.py` |
| a recursion bomb, a body that does not decode | `test_rows.py`; at publish `test_bad_input.py` |
| headers that forge others, or have another shape | `tests/core/test_envelope.py`, `tests/bad_inputs` |
| records that a message forges | `tests/bad_inputs/test_logs.py` |
| a terminal that obeys a message | `tests/cli/test_operations.py` |
| passwords in logs, errors, reprs, documents | `test_secrets.py` |
| routes that nobody asked for | `test_routes.py`; try-it-out `tests/fastapi/test_documents.py` |
| a flood of notifications | `test_notifications.py`, `tests/core/test_hints.py` |
| a role that may more than its part | `test_roles.py` |
| a message that kills or hangs its worker | `tests/crash/test_poison.py` |
| a session or an alias of another database | `test_bad_input.py`, `tests/django/test_publishing.py` |
"""
