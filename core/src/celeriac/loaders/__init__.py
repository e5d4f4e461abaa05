"""Loaders: how an app finds its settings and modules, and hooks around a worker's life, at Celery's paths."""

from __future__ import annotations

from typing import Any

from celeriac.utils.names import get_cls_by_name

__all__ = ["get_loader_cls"]

LOADER_ALIASES = {
    "app": "celeriac.loaders.app:AppLoader",
    "default": "celeriac.loaders.default:Loader",
}


def get_loader_cls(loader: Any) -> Any:
    """A loader's class from its alias (`app`, `default`), its path, or itself."""
    return get_cls_by_name(loader, LOADER_ALIASES)
