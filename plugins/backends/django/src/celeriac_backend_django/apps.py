"""The Django app. Its label, and so its tables and migrations, are those of django-celery-results."""

from __future__ import annotations

from django.apps import AppConfig

LABEL = "django_celery_results"


class CeleriacResultsConfig(AppConfig):
    """`INSTALLED_APPS = [..., "celeriac_backend_django"]`, in place of `"django_celery_results"`."""

    name = "celeriac_backend_django"
    label = LABEL
    verbose_name = "celeriac results"
    default_auto_field = "django.db.models.AutoField"
