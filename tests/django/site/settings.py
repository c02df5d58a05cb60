"""The site's settings. What a test has to say about them, its database first of all, comes from the environment."""

import json
import os

INSTALLED_APPS = ["django.contrib.contenttypes", "outbox_django", "shop"]
USE_TZ = True
TIME_ZONE = "Asia/Kathmandu"  # nothing must depend on it
SECRET_KEY = "for tests"
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"

globals().update(json.loads(os.environ["TEST_SITE"]))
