"""django-tasks-db: the database backend of Django's own tasks, with its worker `db_worker`."""

import os
from time import perf_counter, process_time

from tests.benchmarks.systems.django_project import set_up
from tests.benchmarks.workloads import Result, body

TASKS = {"default": {"BACKEND": "django_tasks_db.DatabaseBackend", "QUEUES": []}}


async def drain(dsn: str, messages: int) -> Result:
    """A task that does nothing, until its queue is empty."""
    os.environ["DJANGO_ALLOW_ASYNC_UNSAFE"] = "1"  # its worker handles signals, so it wants the main thread
    set_up(dsn, "django_tasks_db", *_backport(), TASKS=TASKS)
    return _drain(messages)


def _backport() -> tuple[str, ...]:
    """Django 6 has tasks of its own."""
    import django

    return () if django.VERSION >= (6,) else ("django_tasks",)


def _drain(messages: int) -> Result:
    from django.core.management import call_command
    from django.db import transaction

    from tests.benchmarks.systems.django_tasks_db_task import handle

    with transaction.atomic():
        for number in range(messages):
            handle.enqueue(body(number))
    wall, cpu = perf_counter(), process_time()
    call_command("db_worker", batch=True, interval=0, startup_delay=False, reload=False, verbosity=0)
    wall, cpu = perf_counter() - wall, process_time() - cpu
    return Result({"msg/s": messages / wall, "CPU µs/msg": cpu / messages * 1e6})
