"""Tables in which celeriac joins chords. django-celery-results has no such migration, and leaves the tables alone."""

from __future__ import annotations

from django.db import migrations, models


class Migration(migrations.Migration):
    """See the module."""

    dependencies = (("django_celery_results", "0014_alter_taskresult_status"),)
    operations = (
        migrations.CreateModel(
            name="JoinedChord",
            fields=[
                ("id", models.BigAutoField(primary_key=True, serialize=False)),
                ("chord_key", models.CharField(max_length=255, unique=True, verbose_name="key")),
                ("group_id", models.TextField(verbose_name="group id, as JSON")),
                (
                    "size",
                    models.PositiveIntegerField(default=None, null=True, verbose_name="how many parts are expected"),
                ),
                ("body", models.BinaryField(default=None, null=True, verbose_name="what is called at the end")),
                (
                    "patience",
                    models.FloatField(
                        default=None, null=True, verbose_name="seconds without news after which it has failed"
                    ),
                ),
                (
                    "overdue",
                    models.FloatField(db_index=True, default=None, null=True, verbose_name="when it has failed"),
                ),
                ("token", models.CharField(default="", max_length=32, verbose_name="claim")),
                ("claimed", models.FloatField(default=0.0, verbose_name="end of the claim")),
                ("done", models.BooleanField(default=False, verbose_name="ended")),
                (
                    "expires",
                    models.FloatField(db_index=True, default=None, null=True, verbose_name="when it is forgotten"),
                ),
            ],
            options={"db_table": "celeriac_joined_chord"},
        ),
        migrations.CreateModel(
            name="JoinedPart",
            fields=[
                ("id", models.BigAutoField(primary_key=True, serialize=False)),
                ("chord_key", models.CharField(max_length=255, verbose_name="key of the chord")),
                ("task_key", models.CharField(max_length=255, verbose_name="task id")),
                ("place", models.BigIntegerField(verbose_name="place among the parts")),
                ("data", models.BinaryField(verbose_name="what it gave")),
            ],
            options={
                "db_table": "celeriac_joined_part",
                "constraints": [
                    models.UniqueConstraint(fields=("chord_key", "task_key", "place"), name="celeriac_joined_part_once")
                ],
            },
        ),
    )
