"""What this worker knows to be revoked: by the app's shared state, by a command heard, and by its file.

The shared state is looked at every few seconds by a thread of its own, which costs one cheap question; what changed
goes to the loop. Where there is no shared state, what was heard outlives the worker in its file (`--statedb`).
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Final

import msgspec

from celeriac.app.revocations import SPACE, Revocation, as_values, id_key, stamp_key, unpack
from celeriac.exceptions import CeleriacError
from celeriac.spec.data import Head
from celeriac.spec.pool import Pool
from celeriac.spec.state import SharedState, Snapshot
from celeriac.worker.clock import SYSTEM, Clock
from celeriac.worker.flights import Flights

#: Between two looks: each worker obeys within 5 s.
LOOK_S: Final = 3.0
LONGEST_LOOK_S: Final = 30.0
PRUNE_AT: Final = 1000

_log = logging.getLogger("celeriac.worker")


class Known(msgspec.Struct, frozen=True, array_like=True):
    """One revocation here. `until` is a unix time by this host's clock, None for never."""

    revocation: Revocation
    until: float | None


class Revoked:
    """The revocations that hold now. Falsy while there are none. Used by the loop's thread.

    Args:
        expires_s: How long what was heard is kept.
        path: File in which that outlives the worker; None for none.
    """

    def __init__(self, expires_s: float = 86400.0, path: str | None = None, clock: Clock = SYSTEM) -> None:
        self._expires_s = expires_s
        self._path = path
        self._clock = clock
        self._shared: dict[str, Known] = {}
        self._heard: dict[str, Known] = _read_file(path) if path else {}
        self._prune_at = PRUNE_AT

    def __bool__(self) -> bool:
        return bool(self._shared or self._heard)

    def match(self, head: Head) -> Revocation | None:
        """The revocation that holds for a message, if one does."""
        if not (self._shared or self._heard):
            return None
        return next(filter(None, map(self._get, keys_of(head))), None)

    def ids(self) -> list[str]:
        """The ids of revoked calls, for people."""
        return [key[3:] for key in (*self._shared, *self._heard) if key.startswith("id:")]

    def take_over(self, snapshot: Snapshot) -> dict[str, Revocation]:
        """The shared state holds these now. Returns those that are news."""
        ahead_s = self._clock.unix() - snapshot.now
        before, self._shared = self._shared, {}
        for key, entry in snapshot.entries.items():
            revocation = unpack(entry.value)
            if revocation is not None:
                self._shared[key] = Known(revocation, None if entry.expires is None else entry.expires + ahead_s)
        return {
            key: known.revocation
            for key, known in self._shared.items()
            if key not in before or before[key].revocation != known.revocation
        }

    def hear(self, revocations: Mapping[str, Revocation]) -> None:
        """These were heard."""
        until = self._clock.unix() + self._expires_s
        self._heard.update({key: Known(revocation, until) for key, revocation in revocations.items()})
        if len(self._heard) >= self._prune_at:
            self._prune()
        if self._path:
            _write_file(self._path, self._heard)

    def _get(self, key: str) -> Revocation | None:
        known = self._shared.get(key) or self._heard.get(key)
        if known is None or (known.until is not None and known.until <= self._clock.unix()):
            return None
        return known.revocation

    def _prune(self) -> None:
        """Drop what has expired; nothing else is ever dropped."""
        now = self._clock.unix()
        self._heard = {key: known for key, known in self._heard.items() if known.until is None or known.until > now}
        self._prune_at = max(PRUNE_AT, 2 * len(self._heard))


class RevocationWatch(threading.Thread):
    """Looks for changes in the shared state.

    Args:
        tell: Called in this thread with what is there after each change.
    """

    def __init__(self, state: SharedState, tell: Callable[[Snapshot], None]) -> None:
        super().__init__(name="celeriac-revocations", daemon=True)
        self._state = state
        self._tell = tell
        self._end = threading.Event()
        self._seen = 0
        self._failures = 0

    def look(self) -> None:
        """Look now.

        Raises:
            CeleriacError: The store cannot be reached.
        """
        if self._state.version(SPACE) != self._seen:
            snapshot = self._state.read(SPACE)
            self._tell(snapshot)
            self._seen = snapshot.version

    def run(self) -> None:
        """Until `stop`."""
        while not self._end.wait(min(LOOK_S * 2**self._failures, LONGEST_LOOK_S)):
            try:
                self.look()
            except Exception as exc:  # a fault of the plugin's: a thread that dies unseen would obey nobody
                level = logging.DEBUG if self._failures else logging.WARNING
                unforeseen = not isinstance(exc, CeleriacError)
                _log.log(level, "Cannot look for revoked tasks: %s Those known so far hold.", exc, exc_info=unforeseen)
                self._failures = min(self._failures + 1, 4)
            else:
                self._failures = 0

    def stop(self) -> None:
        """End; a look under way finishes by itself."""
        self._end.set()


def _read_file(path: str) -> dict[str, Known]:
    try:
        with open(path, "rb") as file:
            known = msgspec.json.decode(file.read(), type=dict[str, Known])
    except FileNotFoundError:
        return {}
    except (OSError, msgspec.MsgspecError) as exc:
        aside = f"{path}.unreadable-{int(time.time())}"
        with contextlib.suppress(OSError):  # then it is overwritten by the next revocation
            os.replace(path, aside)
        _log.error("The file of revoked tasks %s cannot be read: %s. It is kept as %s.", path, exc, aside)
        return {}
    now = time.time()
    return {key: one for key, one in known.items() if one.until is None or one.until > now}


def _write_file(path: str, known: Mapping[str, Known]) -> None:
    """Old or new, never torn."""
    beside = f"{path}.new"
    try:
        with open(beside, "wb") as file:
            file.write(msgspec.json.encode(dict(known)))
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    except OSError as exc:
        _log.error("Cannot write %s: %s. Revocations that were only heard end with this worker.", path, exc)


def obey(news: Mapping[str, Revocation], flights: Flights, pool: Pool) -> None:
    """Have the pool not start what is revoked, and end what is revoked with a signal.

    Args:
        news: What was not revoked before, or not so.
    """
    for token, flight in flights.items():
        revocation = next((news[key] for key in keys_of(flight.head) if key in news), None)
        if revocation is None:
            continue
        flight.signum = revocation.signum
        if not pool.cancel(token, signal=revocation.signum) and revocation.signum and "terminate" not in pool.abilities:
            _log.warning(
                "%s[%s] is to be ended, but this pool cannot end what runs; prefork can.",
                flight.plan.name,
                flight.head.id,
            )


def keys_of(head: Head) -> Iterator[str]:
    """The entries by which a message may be revoked."""
    yield id_key(head.id)
    for header, values in (head.stamps or {}).items():
        for value in as_values(values):
            yield stamp_key(header, value)
