"""The loader of an app that a program makes."""

from __future__ import annotations

from celeriac.loaders.base import BaseLoader

__all__ = ["AppLoader"]


class AppLoader(BaseLoader):
    """Settings come from where the program says."""
