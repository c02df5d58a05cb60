"""The command line `outbox`. What it does to a store, and how it tells it, is shared with Django's management commands."""
