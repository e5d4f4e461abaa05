"""Celery's path for what makes up an app: its settings, how it is pickled, and the report about it."""

from __future__ import annotations

from celeriac.app import bugreport
from celeriac.app.base import AppPickler
from celeriac.app.settings import Settings

__all__ = ["AppPickler", "Settings", "bugreport"]
