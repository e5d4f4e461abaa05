"""Small helpers without a room of their own; `uuid` is at Celery's path."""

from celeriac.utils.ids import uuid

__all__ = ["uuid"]
