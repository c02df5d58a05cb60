"""The app: `"outbox_django"` in INSTALLED_APPS."""

from django.apps import AppConfig
from django.utils.translation import gettext_lazy as _


class OutboxConfig(AppConfig):
    """Registers the system checks; imports neither handlers nor FastStream, which a web process does not need."""

    name = "outbox_django"
    label = "outbox"
    verbose_name = _("Outbox")
    default_auto_field = "django.db.models.BigAutoField"

    def ready(self) -> None:
        """Register what Django should know once all apps are loaded."""
        from outbox_django import checks  # noqa: F401  importing it registers them
