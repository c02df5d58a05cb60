"""The app's table."""

from django.db import migrations, models


class Migration(migrations.Migration):
    initial = True
    operations = (
        migrations.CreateModel(
            name="Run",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("queue", models.CharField(max_length=255)),
                ("number", models.IntegerField()),
                ("process", models.IntegerField()),
                ("beside", models.IntegerField(default=0)),
                ("ended", models.BooleanField(default=False)),
            ],
        ),
    )
