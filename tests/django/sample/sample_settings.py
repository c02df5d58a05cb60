"""The sample project's settings; `tests/django/test_testing.py` says which database, and what else."""

import json
import os

INSTALLED_APPS = ["outbox_django", "shop"]
DATABASES = {"default": json.loads(os.environ["SAMPLE_DATABASE"])}
OUTBOX = json.loads(os.environ.get("SAMPLE_OUTBOX", "{}"))
USE_TZ = True
SECRET_KEY = "for tests"
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
