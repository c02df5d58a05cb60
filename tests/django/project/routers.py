"""A router for projects whose outbox is not in this database."""


class OutboxElsewhere:
    def allow_migrate(self, db: str, app_label: str, **hints: object) -> bool | None:
        return False if app_label == "outbox" else None
