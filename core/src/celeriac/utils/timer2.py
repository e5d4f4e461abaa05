"""A timer: calls functions later, one after another, in a thread of its own. `worker.timer` is one, for steps.

Named as in Celery, where programs' steps have it from the worker.
"""

from __future__ import annotations

import heapq
import itertools
import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

__all__ = ["Entry", "Timer"]

_log = logging.getLogger("celeriac.timer")


class Entry:
    """One call to come.

    Attributes:
        canceled: It will not be called (any more).
    """

    __slots__ = ("args", "canceled", "fun", "kwargs", "repeats_s")

    def __init__(
        self,
        fun: Callable[..., Any],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
        repeats_s: float | None = None,
    ) -> None:
        self.fun = fun
        self.args = tuple(args)
        self.kwargs = dict(kwargs or {})
        self.repeats_s = repeats_s
        self.canceled = False

    def __call__(self) -> Any:
        return self.fun(*self.args, **self.kwargs)

    def cancel(self) -> None:
        """Do not call it; a call that goes on is not interrupted."""
        self.canceled = True

    @property
    def cancelled(self) -> bool:
        """As `canceled`."""
        return self.canceled

    def __repr__(self) -> str:
        return f"<Entry: {self.fun!r}{' (canceled)' if self.canceled else ''}>"


class Timer:
    """Calls functions when it is time.

    Its thread begins with the first entry. Of what is due at one moment, the entry of the higher priority comes first.

    Args:
        on_error: Called with what a function has raised; default: it is logged.
        on_exit: Called when one has raised `SystemExit`.
    """

    def __init__(
        self, on_error: Callable[[Exception], Any] | None = None, on_exit: Callable[[], Any] | None = None, **_: Any
    ) -> None:
        self._on_error = on_error
        self._on_exit = on_exit
        self._entries: list[tuple[float, int, int, Entry]] = []
        self._numbers = itertools.count()
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._is_over = False

    def call_after(
        self,
        secs: float,
        fun: Callable[..., Any],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
        priority: int = 0,
    ) -> Entry:
        """Call it once, in so many seconds."""
        return self._enter(secs, Entry(fun, args, kwargs), priority)

    def call_at(
        self,
        eta: float,
        fun: Callable[..., Any],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
        priority: int = 0,
    ) -> Entry:
        """Call it once, at this unix time (or datetime)."""
        at = eta.timestamp() if hasattr(eta, "timestamp") else eta
        return self.call_after(max(0.0, at - time.time()), fun, args, kwargs, priority)

    def call_repeatedly(
        self,
        secs: float,
        fun: Callable[..., Any],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
        priority: int = 0,
    ) -> Entry:
        """Call it every so many seconds, counted from the end of each call, until the entry is cancelled."""
        return self._enter(secs, Entry(fun, args, kwargs, secs), priority)

    def cancel(self, tref: Entry) -> None:
        """Do not call this."""
        tref.cancel()

    def clear(self) -> None:
        """Call nothing of what has been entered."""
        with self._changed:
            self._entries.clear()

    def stop(self) -> None:
        """Call nothing any more."""
        with self._changed:
            self._is_over = True
            self._changed.notify()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(1.0)

    def _enter(self, secs: float, entry: Entry, priority: int) -> Entry:
        with self._changed:
            heapq.heappush(self._entries, (time.monotonic() + secs, -priority, next(self._numbers), entry))
            if self._thread is None and not self._is_over:
                self._thread = threading.Thread(target=self._run, name="celeriac-timer", daemon=True)
                self._thread.start()
            self._changed.notify()
        return entry

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._is_over and not (self._entries and self._entries[0][0] <= time.monotonic()):
                    self._changed.wait(self._entries[0][0] - time.monotonic() if self._entries else None)
                if self._is_over:
                    return
                _, priority, _, entry = heapq.heappop(self._entries)
            if entry.canceled:
                continue
            self._call(entry)
            if entry.repeats_s is not None and not entry.canceled:
                self._enter(entry.repeats_s, entry, -priority)

    def _call(self, entry: Entry) -> None:
        try:
            entry()
        except SystemExit:
            if self._on_exit is not None:
                self._on_exit()
        except Exception as exc:
            if self._on_error is not None:
                self._on_error(exc)
            else:
                _log.exception("%r raised", entry)
