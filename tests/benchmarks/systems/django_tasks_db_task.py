"""The task that `django_tasks_db` runs; a module of its own, since tasks are found by their path."""

from typing import Any

try:
    from django.tasks import task
except ImportError:  # before Django 6
    from django_tasks import task


@task()
def handle(body: dict[str, Any]) -> None:
    """Do nothing."""
