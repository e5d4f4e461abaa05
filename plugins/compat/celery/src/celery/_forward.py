"""How `celery.<path>` becomes `celeriac.<path>`, and why it does not become it where a real Celery is installed.

Called by `celery/__init__.py`, once. A finder of Python's import system answers for every name below `celery.` with the
module that celeriac has at the same path, imported when it is asked for and not before.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType
from typing import Any, cast

DIST = "celeriac-compat-celery"
PAGE = "docs/coming-from-celery.md"

#: Files of this package, which Python finds without help.
OWN = frozenset({"celery.__main__", "celery._forward"})


class Forwarder:
    """Finds and loads `celery.<path>`: the module that `celeriac.<path>` is.

    It has the methods of a finder and a loader without deriving from `importlib.abc`, which imports more than celeriac.
    """

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """A spec for what is celeriac's; None for what is no business of ours.

        Raises:
            ModuleNotFoundError: celeriac has no module there; says what to read.
        """
        if not fullname.startswith("celery.") or fullname in OWN:
            return None
        found = find_spec(home_of(fullname))
        if found is None:
            raise ModuleNotFoundError(
                f"There is no {fullname}: 'celery' is celeriac's here ({DIST}), and celeriac has no "
                f"{home_of(fullname)}. What is elsewhere or not there is listed in its {PAGE}.",
                name=fullname,
            )
        return ModuleSpec(fullname, cast(Any, self), is_package=found.submodule_search_locations is not None)

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        """Import celeriac's module, or take the one that is imported already."""
        module = import_module(home_of(spec.name))
        spec.loader_state = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        """Nothing is left to run. The module gets its own spec back, and its loaded submodules their second names.

        The latter before anybody asks: Python sets a submodule that it imports as an attribute of its parent, and
        `celeriac.canvas.chain`, the class, would turn into `celeriac.canvas.chain`, the module.
        """
        spec: Any = module.__spec__
        module.__spec__ = spec.loader_state
        below = home_of(spec.name) + "."
        for name in [name for name in sys.modules if name.startswith(below)]:
            sys.modules.setdefault(f"{spec.name}.{name[len(below) :]}", sys.modules[name])


def home_of(name: str) -> str:
    """`celery.app.task` → `celeriac.app.task`."""
    return "celeriac" + name[len("celery") :]


def forward() -> None:
    """Answer for all names below `celery.`, before Python looks for files."""
    if not any(isinstance(finder, Forwarder) for finder in sys.meta_path):
        sys.meta_path.insert(0, Forwarder())


def refuse_beside_celery() -> None:
    """Stop where the distribution `celery` is installed too: files of both lie in one folder, and neither is whole.

    Raises:
        ImportError: It is; says where, and how to get out of it.
    """
    if not any(map(_has_celery, sys.path)):
        return
    from importlib.metadata import distribution  # three times as slow as all of `import celeriac`

    celery = distribution("celery")
    raise ImportError(
        f"Two distributions have the module 'celery' here: celery {celery.version} ({celery.locate_file('')}) and "
        f"{DIST}, which runs Celery's programs on celeriac. They cannot be installed together. To run on celeriac: "
        f"pip uninstall celery {DIST}, then pip install {DIST}. To run on Celery: pip uninstall celery {DIST}, "
        f"then pip install celery; celeriac itself, without {DIST}, may stay.",
        name="celery",
    )


def _has_celery(folder: str) -> bool:
    """Whether a real Celery's metadata lie in this folder of `sys.path`."""
    try:
        names = os.listdir(folder or ".")
    except OSError:  # an archive, or not there
        return False
    return any(
        name == "celery.egg-info" or (name.startswith("celery-") and name.endswith((".dist-info", ".egg-info")))
        for name in names
    )
