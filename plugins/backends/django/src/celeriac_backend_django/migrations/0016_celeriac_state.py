"""Tables in which celeriac keeps shared state. django-celery-results leaves them alone."""

from __future__ import annotations

import django.db.models.deletion
from django.db import migrations, models


class Migration(migrations.Migration):
    """See the module."""

    dependencies = (("django_celery_results", "0015_celeriac_joins"),)
    operations = (
        migrations.CreateModel(
            name="StateSpace",
            fields=[
                ("space", models.CharField(max_length=255, primary_key=True, serialize=False, verbose_name="name")),
                ("version", models.BigIntegerField(verbose_name="version")),
            ],
            options={"db_table": "celeriac_state_space"},
        ),
        migrations.CreateModel(
            name="StateEntry",
            fields=[
                ("id", models.BigAutoField(primary_key=True, serialize=False)),
                ("entry_key", models.CharField(max_length=255, verbose_name="key")),
                ("name", models.TextField(verbose_name="the whole key, as JSON")),
                ("version", models.BigIntegerField(verbose_name="version")),
                (
                    "expires",
                    models.FloatField(db_index=True, default=None, null=True, verbose_name="when it is gone"),
                ),
                ("value", models.BinaryField(verbose_name="value")),
                (
                    "space",
                    models.ForeignKey(
                        on_delete=django.db.models.deletion.CASCADE,
                        related_name="entries",
                        to="django_celery_results.statespace",
                        verbose_name="space",
                    ),
                ),
            ],
            options={
                "db_table": "celeriac_state_entry",
                "constraints": [
                    models.UniqueConstraint(fields=("space", "entry_key"), name="celeriac_state_entry_once")
                ],
            },
        ),
    )
