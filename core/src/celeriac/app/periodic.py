"""`app.add_periodic_task`: entries of `beat_schedule` that are made in code, before or after the settings are read."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from celeriac.canvas.signature import Signature
from celeriac.exceptions import CeleriacWarning

if TYPE_CHECKING:
    from celeriac.app.base import Celery


class PeriodicTasks:
    """The entries of one app; put into its setting `beat_schedule` whenever the settings are read."""

    def __init__(self, app: Celery) -> None:
        self._app = app
        self._entries: dict[str, dict[str, Any]] = {}

    def add(
        self,
        schedule: Any,
        sig: Any,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
        name: str | None = None,
        **options: Any,
    ) -> str:
        """See `Celery.add_periodic_task`."""
        sig = (sig if isinstance(sig, Signature) else Signature(sig, app=self._app)).clone(args, kwargs)
        key = name or repr(sig)
        entry = {
            "schedule": schedule,
            "task": sig["task"],
            "args": tuple(sig["args"]),
            "kwargs": sig["kwargs"],
            "options": {**(sig["options"] or {}), **options},
        }
        for option in ("relative", "catch_up"):
            if option in entry["options"]:
                entry[option] = entry["options"].pop(option)
        if not name and key in self._entries and self._entries[key] != entry:
            warnings.warn(
                f"two periodic tasks have the name {key!r}, and the later one takes the place of the first. Give them "
                f"names: add_periodic_task(..., name=...)",
                CeleriacWarning,
                stacklevel=3,
            )
        self._entries[key] = entry
        if self._app.conf.configured:
            self._app.conf["beat_schedule"][key] = entry
        return key

    def install(self) -> None:
        """The settings were read (anew)."""
        if self._entries:
            self._app.conf["beat_schedule"] = {**self._app.conf["beat_schedule"], **self._entries}
