"""A column of celeriac's, which keeps stale workers out. django-celery-results leaves it alone."""

from __future__ import annotations

from django.db import migrations, models


class Migration(migrations.Migration):
    """See the module."""

    dependencies = (("django_celery_results", "0016_celeriac_state"),)
    operations = (
        migrations.AddField(
            model_name="taskresult",
            name="celeriac_received",
            field=models.FloatField(
                default=None, editable=False, null=True, verbose_name="when its message was received again"
            ),
        ),
    )
