"""The app is there as soon as Django is, so that `@shared_task` uses it."""

from proj.celery import app as celery_app

__all__ = ["celery_app"]
