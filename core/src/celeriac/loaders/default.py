"""The loader of the app that is made when a program uses tasks without having made one."""

from __future__ import annotations

import os
from importlib.util import find_spec
from types import FunctionType, ModuleType
from typing import Any

from celeriac.app.settings_source import config_module_of_environment
from celeriac.loaders.base import BaseLoader

__all__ = ["DEFAULT_CONFIG_MODULE", "Loader"]

DEFAULT_CONFIG_MODULE = "celeriacconfig"

#: What the module is called in programs that were written for Celery.
CELERYS_CONFIG_MODULE = "celeryconfig"


def config_module() -> str:
    """The module that the environment names (`CELERIAC_CONFIG_MODULE`, `CELERY_CONFIG_MODULE`).

    If it names none: `celeriacconfig`, or `celeryconfig` where only that one is.
    """
    named = config_module_of_environment()
    if named is not None:
        return named
    is_there = [name for name in (DEFAULT_CONFIG_MODULE, CELERYS_CONFIG_MODULE) if find_spec(name) is not None]
    return is_there[0] if is_there else DEFAULT_CONFIG_MODULE


class Loader(BaseLoader):
    """Settings come from `config_module()`, if there is such a module."""

    def read_configuration(self, env: str = "CELERIAC_CONFIG_MODULE") -> dict[str, Any]:
        """That module's settings by their lower-case names; none if there is no such module."""
        name = os.environ.get(env) or config_module()
        try:
            module = self.import_from_cwd(name)
        except ModuleNotFoundError as exc:
            if exc.name == name:
                return {}
            raise
        helpers = (ModuleType, type, FunctionType)
        return {
            key: value
            for key, value in vars(module).items()
            if not key.startswith("_") and not isinstance(value, helpers)
        }
