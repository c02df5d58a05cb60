"""The project's settings; the database, the routers and the outbox are told by the environment, if at all."""

import json
import os

INSTALLED_APPS = ["outbox_django"]
USE_TZ = True
TIME_ZONE = "Asia/Kathmandu"  # stored times must not depend on it
SECRET_KEY = "for tests"

globals().update(json.loads(os.environ.get("TEST_DJANGO_SETTINGS", "{}")))
