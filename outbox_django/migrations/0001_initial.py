"""All five tables, under the names and in the schema that `settings.OUTBOX` gives them.

The archive and the inbox are made whether or not they are used, so that they can be used later. With `MANAGED` off, nothing
is made and the migration is recorded: somebody else owns the tables. What follows the settings is read from them here too, or
`makemigrations` would see a change in every project whose settings differ.
"""

from django.db import migrations, models
from django.db.models import Q

from outbox_core.schema import OUTBOX_STORAGE, object_name
from outbox_django.constraints import PartialUniqueConstraint
from outbox_django.expressions import EmptyObject, NewUuid, Now
from outbox_django.fields import HeadersField
from outbox_django.operations import CreateSchema, SetTableStorage
from outbox_django.settings import outbox_settings

settings = outbox_settings()


class Migration(migrations.Migration):
    initial = True
    dependencies = ()
    operations = (
        *([CreateSchema(settings.schema, "outboxmessage")] if settings.schema and settings.managed else []),
        migrations.CreateModel(
            name="OutboxMessage",
            fields=[
                ("id", models.BigAutoField(primary_key=True, serialize=False)),
                ("message_id", models.UUIDField(db_default=NewUuid())),
                ("queue", models.CharField(max_length=255)),
                ("key", models.CharField(blank=True, max_length=255, null=True)),
                ("payload", models.BinaryField()),
                ("headers", HeadersField(db_default=EmptyObject())),
                ("priority", models.SmallIntegerField(db_default=0)),
                ("timer_id", models.CharField(blank=True, max_length=255, null=True)),
                ("created_at", models.DateTimeField(db_default=Now())),
                ("next_attempt_at", models.DateTimeField(db_default=Now())),
                ("acquired_token", models.UUIDField(blank=True, null=True)),
                ("leased_until", models.DateTimeField(blank=True, null=True)),
                ("held_key", models.CharField(blank=True, max_length=255, null=True)),
                ("deliveries_count", models.IntegerField(db_default=0)),
                ("attempts_count", models.IntegerField(db_default=0)),
                ("first_attempt_at", models.DateTimeField(blank=True, null=True)),
                ("last_attempt_at", models.DateTimeField(blank=True, null=True)),
                ("failure_reason", models.CharField(blank=True, max_length=64, null=True)),
                ("last_exception", models.TextField(blank=True, null=True)),
            ],
            options={
                "db_table": settings.db_table(),
                "managed": settings.managed,
                "verbose_name": "message",
                "verbose_name_plural": "messages",
                "indexes": [
                    models.Index(
                        fields=["queue", "priority", "next_attempt_at", "id"],
                        name=object_name(settings.table, "ready"),
                        condition=Q(("failure_reason__isnull", True), ("key__isnull", True)),
                    ),
                    models.Index(
                        fields=["queue", "key", "id"],
                        name=object_name(settings.table, "key"),
                        condition=Q(("key__isnull", False), ("failure_reason__isnull", True)),
                    ),
                    models.Index(
                        fields=["queue", "held_key"],
                        name=object_name(settings.table, "held"),
                        condition=Q(("held_key__isnull", False)),
                    ),
                ],
                "constraints": [
                    PartialUniqueConstraint(
                        fields=["queue", "timer_id"],
                        name=object_name(settings.table, "timer"),
                        condition=Q(("timer_id__isnull", False), ("failure_reason__isnull", True)),
                    ),
                    models.UniqueConstraint(fields=["message_id"], name=object_name(settings.table, "message_id")),
                ],
            },
        ),
        migrations.CreateModel(
            name="DeadLetter",
            fields=[
                ("id", models.BigAutoField(primary_key=True, serialize=False)),
                ("message_id", models.UUIDField(db_default=NewUuid())),
                ("queue", models.CharField(max_length=255)),
                ("key", models.CharField(blank=True, max_length=255, null=True)),
                ("payload", models.BinaryField()),
                ("headers", HeadersField(db_default=EmptyObject())),
                ("priority", models.SmallIntegerField(db_default=0)),
                ("timer_id", models.CharField(blank=True, max_length=255, null=True)),
                ("created_at", models.DateTimeField(db_default=Now())),
                ("deliveries_count", models.IntegerField(db_default=0)),
                ("attempts_count", models.IntegerField(db_default=0)),
                ("first_attempt_at", models.DateTimeField(blank=True, null=True)),
                ("last_attempt_at", models.DateTimeField(blank=True, null=True)),
                ("failed_at", models.DateTimeField(db_default=Now())),
                ("failure_reason", models.CharField(max_length=64)),
                ("last_exception", models.TextField(blank=True, null=True)),
                ("worker", models.CharField(blank=True, max_length=255, null=True)),
            ],
            options={
                "db_table": settings.db_table("_dlq"),
                "managed": settings.managed,
                "verbose_name": "dead letter",
                "verbose_name_plural": "dead letters",
                "indexes": [
                    models.Index(fields=["queue", "id"], name=object_name(f"{settings.table}_dlq", "queue")),
                    models.Index(fields=["failed_at"], name=object_name(f"{settings.table}_dlq", "failed")),
                ],
            },
        ),
        migrations.CreateModel(
            name="ArchivedMessage",
            fields=[
                ("id", models.BigAutoField(primary_key=True, serialize=False)),
                ("message_id", models.UUIDField(db_default=NewUuid())),
                ("queue", models.CharField(max_length=255)),
                ("key", models.CharField(blank=True, max_length=255, null=True)),
                ("payload", models.BinaryField()),
                ("headers", HeadersField(db_default=EmptyObject())),
                ("priority", models.SmallIntegerField(db_default=0)),
                ("timer_id", models.CharField(blank=True, max_length=255, null=True)),
                ("created_at", models.DateTimeField(db_default=Now())),
                ("deliveries_count", models.IntegerField(db_default=0)),
                ("attempts_count", models.IntegerField(db_default=0)),
                ("first_attempt_at", models.DateTimeField(blank=True, null=True)),
                ("last_attempt_at", models.DateTimeField(blank=True, null=True)),
                ("archived_at", models.DateTimeField(db_default=Now())),
            ],
            options={
                "db_table": settings.db_table("_archive"),
                "managed": settings.managed,
                "verbose_name": "archived message",
                "verbose_name_plural": "archived messages",
                "indexes": [
                    models.Index(fields=["archived_at"], name=object_name(f"{settings.table}_archive", "archived")),
                ],
            },
        ),
        migrations.CreateModel(
            name="QueueControl",
            fields=[
                ("id", models.BigAutoField(primary_key=True, serialize=False)),
                ("queue", models.CharField(max_length=255)),
                ("paused_at", models.DateTimeField(blank=True, null=True)),
            ],
            options={
                "db_table": settings.db_table("_queues"),
                "managed": settings.managed,
                "verbose_name": "queue",
                "verbose_name_plural": "queues",
                "constraints": [
                    models.UniqueConstraint(fields=["queue"], name=object_name(f"{settings.table}_queues", "queue")),
                ],
            },
        ),
        migrations.CreateModel(
            name="ReceivedMessage",
            fields=[
                ("id", models.BigAutoField(primary_key=True, serialize=False)),
                ("consumer", models.CharField(max_length=255)),
                ("message_id", models.CharField(max_length=255)),
                ("received_at", models.DateTimeField(db_default=Now())),
            ],
            options={
                "db_table": settings.db_table("_inbox"),
                "managed": settings.managed,
                "verbose_name": "received message",
                "verbose_name_plural": "received messages",
                "indexes": [
                    models.Index(fields=["received_at"], name=object_name(f"{settings.table}_inbox", "received")),
                ],
                "constraints": [
                    models.UniqueConstraint(
                        fields=["consumer", "message_id"], name=object_name(f"{settings.table}_inbox", "message")
                    ),
                ],
            },
        ),
        SetTableStorage("outboxmessage", OUTBOX_STORAGE),
    )
