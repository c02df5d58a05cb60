"""The rows as Django's models, to look at and to query: column for column what `outbox_core.schema` describes.

`outbox_django.publish` writes the outbox, and a worker moves its rows on; nothing happens in `save`. The tables' names, their
schema and who makes them come from `settings.OUTBOX` when this module is imported.
"""

from typing import Any

from django.db import models
from django.db.models import Q
from django.utils.translation import gettext_lazy as _

from outbox_core import envelope
from outbox_core.schema import object_name
from outbox_django.constraints import PartialUniqueConstraint
from outbox_django.expressions import EmptyObject, NewUuid, Now
from outbox_django.fields import HeadersField
from outbox_django.settings import outbox_settings

_settings = outbox_settings()


class _Message(models.Model):
    """What a message is made of, wherever it is."""

    id = models.BigAutoField(primary_key=True)
    message_id = models.UUIDField(db_default=NewUuid())
    queue = models.CharField(max_length=255)
    key = models.CharField(max_length=255, null=True, blank=True)
    payload = models.BinaryField()
    headers = HeadersField(db_default=EmptyObject())
    priority = models.SmallIntegerField(db_default=0)
    timer_id = models.CharField(max_length=255, null=True, blank=True)
    created_at = models.DateTimeField(db_default=Now())

    class Meta:
        abstract = True

    def __str__(self) -> str:
        return f"{self.message_id} in {self.queue!r}"

    @property
    def body(self) -> Any:
        """The decoded payload; bytes where no content type says what they are. `ValueError` if it is not what it says."""
        return envelope.decode(bytes(self.payload), self.headers.get(envelope.CONTENT_TYPE))


class OutboxMessage(_Message):
    """A message that has not been handled. Success deletes it, or moves it to the archive."""

    next_attempt_at = models.DateTimeField(db_default=Now())
    acquired_token = models.UUIDField(null=True, blank=True)
    leased_until = models.DateTimeField(null=True, blank=True)
    held_key = models.CharField(max_length=255, null=True, blank=True)
    deliveries_count = models.IntegerField(db_default=0)
    attempts_count = models.IntegerField(db_default=0)
    first_attempt_at = models.DateTimeField(null=True, blank=True)
    last_attempt_at = models.DateTimeField(null=True, blank=True)
    failure_reason = models.CharField(max_length=64, null=True, blank=True)
    last_exception = models.TextField(null=True, blank=True)

    class Meta:
        db_table = _settings.db_table()
        managed = _settings.managed
        verbose_name = _("message")
        verbose_name_plural = _("messages")
        indexes = (
            models.Index(
                fields=["queue", "priority", "next_attempt_at", "id"],
                name=object_name(_settings.table, "ready"),
                condition=Q(failure_reason__isnull=True) & Q(key__isnull=True),
            ),
            models.Index(
                fields=["queue", "key", "id"],
                name=object_name(_settings.table, "key"),
                condition=Q(key__isnull=False) & Q(failure_reason__isnull=True),
            ),
            models.Index(
                fields=["queue", "held_key"],
                name=object_name(_settings.table, "held"),
                condition=Q(held_key__isnull=False),
            ),
        )
        constraints = (
            PartialUniqueConstraint(
                fields=["queue", "timer_id"],
                name=object_name(_settings.table, "timer"),
                condition=Q(timer_id__isnull=False) & Q(failure_reason__isnull=True),
            ),
            models.UniqueConstraint(fields=["message_id"], name=object_name(_settings.table, "message_id")),
        )


class DeadLetter(_Message):
    """A message that was given up, with its history."""

    deliveries_count = models.IntegerField(db_default=0)
    attempts_count = models.IntegerField(db_default=0)
    first_attempt_at = models.DateTimeField(null=True, blank=True)
    last_attempt_at = models.DateTimeField(null=True, blank=True)
    failed_at = models.DateTimeField(db_default=Now())
    failure_reason = models.CharField(max_length=64)
    last_exception = models.TextField(null=True, blank=True)
    worker = models.CharField(max_length=255, null=True, blank=True)

    class Meta:
        db_table = _settings.db_table("_dlq")
        managed = _settings.managed
        verbose_name = _("dead letter")
        verbose_name_plural = _("dead letters")
        indexes = (
            models.Index(fields=["queue", "id"], name=object_name(f"{_settings.table}_dlq", "queue")),
            models.Index(fields=["failed_at"], name=object_name(f"{_settings.table}_dlq", "failed")),
        )


class ArchivedMessage(_Message):
    """A message that was handled, where `OUTBOX["ARCHIVE"]` keeps them."""

    deliveries_count = models.IntegerField(db_default=0)
    attempts_count = models.IntegerField(db_default=0)
    first_attempt_at = models.DateTimeField(null=True, blank=True)
    last_attempt_at = models.DateTimeField(null=True, blank=True)
    archived_at = models.DateTimeField(db_default=Now())

    class Meta:
        db_table = _settings.db_table("_archive")
        managed = _settings.managed
        verbose_name = _("archived message")
        verbose_name_plural = _("archived messages")
        indexes = (models.Index(fields=["archived_at"], name=object_name(f"{_settings.table}_archive", "archived")),)


class QueueControl(models.Model):
    """What all workers are told about a queue."""

    id = models.BigAutoField(primary_key=True)
    queue = models.CharField(max_length=255)
    paused_at = models.DateTimeField(null=True, blank=True)

    class Meta:
        db_table = _settings.db_table("_queues")
        managed = _settings.managed
        verbose_name = _("queue")
        verbose_name_plural = _("queues")
        constraints = (
            models.UniqueConstraint(fields=["queue"], name=object_name(f"{_settings.table}_queues", "queue")),
        )

    def __str__(self) -> str:
        return f"{self.queue}, paused" if self.paused_at else self.queue


class ReceivedMessage(models.Model):
    """That a consumer has handled a message from elsewhere, as `outbox_django.receive` records it."""

    id = models.BigAutoField(primary_key=True)
    consumer = models.CharField(max_length=255)
    message_id = models.CharField(max_length=255)
    received_at = models.DateTimeField(db_default=Now())

    class Meta:
        db_table = _settings.db_table("_inbox")
        managed = _settings.managed
        verbose_name = _("received message")
        verbose_name_plural = _("received messages")
        indexes = (models.Index(fields=["received_at"], name=object_name(f"{_settings.table}_inbox", "received")),)
        constraints = (
            models.UniqueConstraint(
                fields=["consumer", "message_id"], name=object_name(f"{_settings.table}_inbox", "message")
            ),
        )

    def __str__(self) -> str:
        return f"{self.message_id} by {self.consumer!r}"
