from django.db import migrations, models


class Migration(migrations.Migration):
    initial = True
    dependencies = ()
    operations = (
        migrations.CreateModel(
            name="Order",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("sku", models.CharField(max_length=20)),
                ("quantity", models.IntegerField()),
                (
                    "state",
                    models.CharField(
                        choices=[("placed", "Placed"), ("shipped", "Shipped")], default="placed", max_length=10
                    ),
                ),
                ("tracking", models.CharField(blank=True, max_length=20)),
            ],
        ),
        migrations.CreateModel(
            name="Product",
            fields=[
                ("sku", models.CharField(max_length=20, primary_key=True, serialize=False)),
                ("stock", models.IntegerField(default=0)),
            ],
        ),
    )
