"""Django's settings for tests in this process; databases are added by those that have one (`tests.django_databases`)."""

SECRET_KEY = "tests"
INSTALLED_APPS = ["django.contrib.contenttypes", "django.contrib.auth", "outbox_django"]
USE_TZ = True
TIME_ZONE = "UTC"  # django.setup() sets it for the whole process, and for the servers that it starts
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
DATABASES: dict[str, dict[str, object]] = {"default": {"ENGINE": "django.db.backends.dummy"}}
