"""The table of orders."""

from django.db import migrations, models


class Migration(migrations.Migration):
    """See the module."""

    initial = True
    dependencies = ()
    operations = (
        migrations.CreateModel(
            "Order",
            [
                ("id", models.BigAutoField(primary_key=True)),
                ("product", models.CharField(max_length=100)),
                ("receipt", models.CharField(blank=True, max_length=200)),
            ],
        ),
    )
