"""Cameras: what looks at the state of a cluster every few seconds, to store it or show it elsewhere."""

from __future__ import annotations

import threading
import time
from importlib import import_module
from typing import TYPE_CHECKING, Any

from celeriac import signals
from celeriac.events.state import State
from celeriac.log import get_logger
from celeriac.utils.rates import parse_rate

if TYPE_CHECKING:
    from celeriac.app.base import Celery

_log = get_logger("celeriac.events")


class Polaroid:
    """Base of cameras: override `on_shutter`.

    Args:
        freq: Seconds between two pictures.
        maxrate: At most so many pictures (`10/m`), whatever `freq` says.
        cleanup_freq: Seconds between two calls of `on_cleanup`.
    Attributes:
        clear_after: Forget what has ended after each picture that was taken.
    """

    shutter_signal = signals.Signal("snapshot_shutter", {"state"})
    cleanup_signal = signals.Signal("snapshot_cleanup")
    clear_after = False

    def __init__(
        self,
        state: State,
        freq: float = 1.0,
        maxrate: Any = None,
        cleanup_freq: float = 3600.0,
        timer: Any = None,
        app: Celery | None = None,
    ) -> None:
        self.app = app
        self.state = state
        self.freq = freq
        self.cleanup_freq = cleanup_freq
        rate = parse_rate(maxrate)
        self._least_s = 1.0 / rate if rate else 0.0
        self._taken_at = 0.0
        self._end = threading.Event()
        self._threads: list[threading.Thread] = []

    def install(self) -> None:
        """Take pictures until `cancel`. What goes wrong with one is logged, and the next one follows."""
        for act, pause_s in ((self.capture, self.freq), (self.cleanup, self.cleanup_freq)):
            thread = threading.Thread(target=self._repeat, args=(act, pause_s), name="celeriac-camera", daemon=True)
            thread.start()
            self._threads.append(thread)

    def _repeat(self, act: Any, pause_s: float) -> None:
        while not self._end.wait(pause_s):
            try:
                act()
            except Exception as exc:
                _log.exception("camera.failed", camera=type(self).__qualname__, during=act.__name__, error=str(exc))

    def on_shutter(self, state: State) -> None:
        """A picture: override it."""

    def on_cleanup(self) -> None:
        """Time to remove old pictures: override it."""

    def cleanup(self) -> None:
        """Remove old pictures."""
        self.cleanup_signal.send(sender=self.state)
        self.on_cleanup()

    def shutter(self) -> bool:
        """Take a picture, unless there was one just now; whether it did."""
        now = time.monotonic()
        if now - self._taken_at < self._least_s:
            return False
        self._taken_at = now
        self.shutter_signal.send(sender=self.state)
        self.on_shutter(self.state)
        return True

    def capture(self) -> None:
        """Take a picture while nothing changes. Only what is on one may be forgotten afterwards."""
        self.state.freeze_while(self._take)

    def _take(self) -> None:
        if self.shutter() is not False and self.clear_after:  # a subclass's own may say nothing
            self.state.clear()

    def cancel(self) -> None:
        """Take no more."""
        self._end.set()

    def __enter__(self) -> Polaroid:
        self.install()
        return self

    def __exit__(self, *exc: object) -> None:
        self.cancel()


def find_camera(path: str) -> type[Polaroid]:
    """The class that `module.Class` or `module:Class` names.

    Raises:
        ImportError, AttributeError: There is none.
    """
    module, _, name = path.replace(":", ".").rpartition(".")
    camera: type[Polaroid] = getattr(import_module(module), name)
    return camera
