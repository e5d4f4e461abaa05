"""What holds up the worker's thread, and how a worker that was told to stop ends in spite of it.

What plugins do for the worker they do in its own thread. One that never comes back (a lock, a read without a bound)
would keep it from stopping, as often as it is told, and nobody would know why. So once it is told, somebody looks where
that thread is, says who holds it up, and ends the process if that goes on.
"""

from __future__ import annotations

import _thread
import logging
import math
import sys
import time
from collections.abc import Callable
from types import FrameType
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from celeriac.kernel.discovery import PluginInfo
    from celeriac.kernel.kernel import Kernel

LOOK_EVERY_S: Final = 0.25
#: Who holds up a worker that is to stop is named after so long.
TOLD_S: Final = 5.0
#: A plugin may do so, besides what a try to reach the broker may take: longer than any other of its verbs takes, and in
#: all (with a broker's 4 s) less than the half minute that supervisors wait before they kill.
WARM_S: Final = 20.0
#: Anybody may, once the worker was told to end coldly, and a plugin before it has begun to work: longer than a pool
#: takes that must kill its processes.
COLD_S: Final = 10.0
#: An extension may do so: what it gathered is to be sent, and that takes half a minute where its server is away.
EXTENSION_S: Final = 40.0
#: For the last words, before the process ends.
WORDS_S: Final = 1.0

_log = logging.getLogger("celeriac.worker")


class Place(NamedTuple):
    """Where a thread is.

    Attributes:
        mark: Another one as soon as it goes on in our own code.
        plugin: In whose code it is, or below; None if it is nobody's, or a program's own.
        text: For people.
    """

    mark: tuple[tuple[object, int], ...]
    plugin: PluginInfo | None
    text: str


def find_place(thread_id: int, kernel: Kernel) -> Place | None:
    """Where a thread is now; None if it cannot be seen, as where threads are greenlets."""
    frame: FrameType | None = sys._current_frames().get(thread_id)
    if frame is None or frame.f_globals is globals():
        return None
    frames: list[FrameType] = []
    while frame is not None:
        frames.append(frame)
        frame = frame.f_back
    frames.reverse()
    plugin = kernel.owner_of(map(_module_of, frames))
    ours = [index for index, frame in enumerate(frames) if _package_of(frame) == "celeriac"]
    if plugin is None:
        shown = frames[min(ours[-1] + 1 if ours else 0, len(frames) - 1)]
    else:
        package = plugin.module.partition(".")[0]
        shown = [frame for frame in frames if _package_of(frame) == package][-1]
    who = f"plugin {plugin}" if plugin else _module_of(shown)
    code = shown.f_code
    mark = tuple((frames[index].f_code, frames[index].f_lasti) for index in ours)
    return Place(mark, plugin, f"{who}, in {code.co_name} ({code.co_filename}:{shown.f_lineno})")


class EndGuard:
    """Looks after the end of a worker, in a thread of its own, from `begin` to `over`.

    Args:
        thread_id: Of the worker's thread.
        turns: How often its loop has turned.
        is_cold: It was told to end now, whatever runs.
        is_excused: It may stand still, since a task runs in that very thread.
        warm_s: A plugin may hold it up so long.
        end: Ends the process; None: that is not ours to end, and all is only said.
    """

    def __init__(
        self,
        thread_id: int,
        kernel: Kernel,
        *,
        turns: Callable[[], int],
        is_cold: Callable[[], bool],
        is_excused: Callable[[], bool],
        warm_s: float,
        end: Callable[[], object] | None,
    ) -> None:
        self.thread_id = thread_id
        self._kernel = kernel
        self._turns = turns
        self._is_cold = is_cold
        self._is_excused = is_excused
        self._warm_s = warm_s
        self._end = end
        self._has_begun = self._is_over = False

    def begin(self) -> None:
        """Look from now on; more than once is no more. A signal handler may call it: it waits for no lock."""
        if not self._has_begun:
            self._has_begun = True
            _thread.start_new_thread(self._look, ())

    def over(self) -> None:
        """The worker has ended."""
        self._is_over = True

    def _look(self) -> None:
        seen: object = None
        since, is_told = time.monotonic(), False
        while not self._is_over:
            place = find_place(self.thread_id, self._kernel)
            now, before, seen = time.monotonic(), seen, place and (self._turns(), place.mark)
            if place is None or seen != before or self._is_excused():
                since, is_told = now, False
            else:
                limit_s = self._limit_s(place)
                if now - since >= limit_s and self._end is not None:
                    self._end_by_force(now - since, place)
                    return
                if now - since >= TOLD_S and not is_told:
                    is_told = True
                    self._tell(now - since, place, limit_s)
            time.sleep(LOOK_EVERY_S)

    def _limit_s(self, place: Place) -> float:
        if self._is_cold():
            return COLD_S
        if place.plugin is None:
            return math.inf
        if place.plugin.kind == "extension":
            return EXTENSION_S
        return self._warm_s if self._turns() else COLD_S  # before the first turn it holds nothing

    def _tell(self, still_s: float, place: Place, limit_s: float) -> None:
        if self._end is None:
            then = ""
        elif limit_s < math.inf:
            then = f" If that goes on, the process ends by force in {limit_s - still_s:.0f} s."
        else:
            then = f" Told once more to stop, it ends by force after {COLD_S:g} s."
        _say("The worker is to stop, and is held up for %.0f s by %s.%s", still_s, place.text, then)

    def _end_by_force(self, still_s: float, place: Place) -> None:
        _say(
            "The worker is to stop, and is held up for %.0f s by %s. The process ends now; what it held comes again.",
            still_s, place.text,
        )  # fmt: skip
        assert self._end is not None
        self._end()


def _say(*words: object) -> None:
    """Log an error, unless that takes too long: it may be the log that holds up everything."""
    is_said: list[bool] = []

    def say() -> None:
        _log.error(*words)
        is_said.append(True)

    _thread.start_new_thread(say, ())
    until = time.monotonic() + WORDS_S
    while not is_said and time.monotonic() < until:
        time.sleep(0.01)


def _module_of(frame: FrameType) -> str:
    return str(frame.f_globals.get("__name__", ""))


def _package_of(frame: FrameType) -> str:
    return _module_of(frame).partition(".")[0]
