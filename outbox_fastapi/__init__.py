"""The outbox for FastAPI. Only its place is kept here; `OutboxRouter` follows."""
