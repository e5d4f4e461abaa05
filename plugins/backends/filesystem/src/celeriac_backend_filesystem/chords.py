"""Chords as files of a folder of our own, three for each: its state, its body, and the log of its parts.

Whoever changes a chord holds its lock. A part is appended to the log and flushed to the disk before the state says that
it is there, so what a writer that was killed left behind the end is written over by the next one. The state's time of
change is when somebody should look at the chord (overdue, or to be removed): so a look at many costs no reading.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Final

import msgspec
from msgspec import Struct

from celeriac.spec import DONE_S, OVERDUE_S, Chord, ChordClaim, ChordPart

STATE: Final = ".state"
BODY: Final = ".body"
PARTS: Final = ".parts"
#: A time that never comes, as a file can have it.
NEVER: Final = 4_000_000_000.0
LENGTH_BYTES: Final = 4


class State(Struct):
    """What is known of a chord; times are unix seconds of the file system's clock.

    Attributes:
        come: At least as many parts as have come: one that came twice counts twice, until the log is read.
        log_bytes: So long is the log.
    """

    group: str
    expires: float
    size: int | None = None
    patience_s: float = 0.0
    overdue: float = NEVER
    token: str = ""
    claimed: float = 0.0
    done: bool = False
    come: int = 0
    log_bytes: int = 0


class _Part(Struct, array_like=True):
    task_id: str
    index: int | None
    data: bytes


_pack: Final = msgspec.msgpack.Encoder().encode
_read_state: Final = msgspec.msgpack.Decoder(State).decode
_read_part: Final = msgspec.msgpack.Decoder(_Part).decode


class Chords:
    """The chords of one folder.

    Args:
        path_of: Where the files of a chord are, less their endings.
        lifetime_s: How long a chord without news is kept; 0 for ever.
        locked: Holds the lock of a file.
        write: Puts a file in its place, whole and on the disk.
    """

    def __init__(
        self,
        path_of: Callable[[str], Path],
        lifetime_s: float,
        locked: Callable[[Path], AbstractContextManager[None]],
        write: Callable[[Path, bytes], None],
    ) -> None:
        self._path_of = path_of
        self._lifetime_s = lifetime_s
        self._locked = locked
        self._write = write

    def open(self, chords: Sequence[Chord], now: float) -> None:
        """See `ChordBackend.open_chords`."""
        for chord in chords:
            path = self._path_of(chord.group)
            with self._locked(path):
                state = self._known(path, chord.group, now)
                if state.done or state.size is not None:
                    continue
                self._write(path.with_name(path.name + BODY), chord.body)
                state.size, state.patience_s, state.overdue = chord.size, chord.patience_s, now + chord.patience_s
                state.expires = self._end(now, state)
                self._save(path, state)

    def join(self, parts: Sequence[ChordPart], claim_s: float, now: float) -> list[ChordClaim]:
        """See `ChordBackend.join`."""
        by_group: dict[str, list[ChordPart]] = {}
        for part in parts:
            by_group.setdefault(part.group, []).append(part)
        claims = [self._join(group, own, claim_s, now) for group, own in by_group.items()]
        return [claim for claim in claims if claim is not None]

    def grow(self, group: str) -> None:
        """See `ChordBackend.grow_chord`."""
        path = self._path_of(group)
        with self._locked(path):
            state = self._load(path)
            if state is not None and state.size is not None and not state.done:
                state.size += 1
                self._save(path, state)

    def close(self, claims: Sequence[ChordClaim], now: float) -> None:
        """See `ChordBackend.close_chords`."""
        for claim in claims:
            path = self._path_of(claim.group)
            with self._locked(path):
                state = self._load(path)
                if state is not None and state.token == claim.token and not state.done:
                    # Not for ever, even if results are.
                    kept = state.expires if state.expires < NEVER else 0.0
                    self._save(path, State(claim.group, max(kept, now + DONE_S), done=True))
                    self._remove(path, BODY, PARTS)

    def overdue(self, folder: Path, limit: int, claim_s: float, now: float) -> list[ChordClaim]:
        """See `ChordBackend.overdue_chords`."""
        claims: list[ChordClaim] = []
        for path in _to_be_seen(folder, now):
            if len(claims) >= limit:
                break
            with self._locked(path):
                state = self._load(path)
                if state is not None and state.expires <= now:
                    self._remove(path, PARTS, BODY, STATE)
                elif state is not None and not state.done and state.overdue <= now and state.claimed <= now:
                    claims.append(self._claim(path, state, self._parts(path, state), claim_s, now))
        return claims

    def expire(self, folder: Path, now: float, limit: int) -> int:
        """Remove chords that nobody has heard of for their lifetime; how many."""
        removed = 0
        for path in _to_be_seen(folder, now):
            if removed >= limit:
                break
            with self._locked(path):
                state = self._load(path)
                if state is not None and state.expires <= now:
                    self._remove(path, PARTS, BODY, STATE)
                    removed += 1
        return removed

    # how it is done

    def _join(self, group: str, parts: Sequence[ChordPart], claim_s: float, now: float) -> ChordClaim | None:
        path = self._path_of(group)
        with self._locked(path):
            state = self._known(path, group, now)
            if state.done:
                return None
            state.log_bytes = self._append(path, state.log_bytes, parts)
            state.come += len(parts)
            state.expires = self._end(now, state)
            if state.size is not None:
                state.overdue = max(state.overdue, now + state.patience_s)
            if state.size is not None and state.come >= state.size:
                found = self._parts(path, state)
                state.come = len(found)
                if state.come >= state.size:
                    return self._claim(path, state, found, claim_s, now)
            self._save(path, state)
            return None

    def _claim(
        self, path: Path, state: State, parts: Sequence[tuple[int | None, bytes]], claim_s: float, now: float
    ) -> ChordClaim:
        """The claim on a chord, which is saved."""
        if state.claimed > now:
            self._save(path, state)
            return ChordClaim(state.group, "", state.claimed - now)
        state.token, state.claimed = uuid.uuid4().hex, now + claim_s
        state.overdue = state.claimed  # if its holder dies
        self._save(path, state)
        try:
            body = path.with_name(path.name + BODY).read_bytes()
        except FileNotFoundError:
            body = b""
        return ChordClaim(state.group, state.token, 0.0, state.size or 0, list(parts), body)

    def _append(self, path: Path, at: int, parts: Sequence[ChordPart]) -> int:
        """Write parts behind what the log has; returns its new end."""
        records = [_pack(_Part(part.task_id, part.index, part.data)) for part in parts]
        data = b"".join(len(record).to_bytes(LENGTH_BYTES, "big") + record for record in records)
        fd = os.open(path.with_name(path.name + PARTS), os.O_WRONLY | os.O_CREAT, 0o666)
        with os.fdopen(fd, "wb") as log:
            log.truncate(at)
            log.seek(at)
            log.write(data)
            log.flush()
            os.fsync(fd)
        return at + len(data)

    @staticmethod
    def _parts(path: Path, state: State) -> list[tuple[int | None, bytes]]:
        """The parts that came, each once, in order."""
        if not state.log_bytes:
            return []
        with path.with_name(path.name + PARTS).open("rb") as log:
            found = {(part.task_id, part.index): part.data for part in _records(log.read(state.log_bytes))}
        at_the_end = 1 << 62  # what was added later
        pairs = [(index, data) for (_, index), data in found.items()]
        return sorted(pairs, key=lambda pair: at_the_end if pair[0] is None else pair[0])

    def _known(self, path: Path, group: str, now: float) -> State:
        """The state of a chord, a new one if there is none (any more)."""
        state = self._load(path)
        return State(group, self._end(now)) if state is None or state.expires <= now else state

    def _load(self, path: Path) -> State | None:
        try:
            return _read_state(path.with_name(path.name + STATE).read_bytes())
        except FileNotFoundError:
            return None

    def _save(self, path: Path, state: State) -> None:
        place = path.with_name(path.name + STATE)
        self._write(place, _pack(state))
        seen = state.expires if state.done else min(state.overdue, state.expires)
        os.utime(place, (seen, seen))

    def _remove(self, path: Path, *endings: str) -> None:
        for ending in endings:
            path.with_name(path.name + ending).unlink(missing_ok=True)

    def _end(self, now: float, state: State | None = None) -> float:
        """Until when it is kept: at least for as long as parts may come."""
        if not self._lifetime_s:
            return NEVER
        needed_s = 0.0 if state is None or state.size is None else state.patience_s + OVERDUE_S
        return now + max(self._lifetime_s, needed_s)


def _to_be_seen(folder: Path, now: float) -> Iterator[Path]:
    """The chords whose time has come."""
    with os.scandir(folder) as entries:
        for entry in entries:
            if not entry.name.endswith(STATE):
                continue
            try:
                if entry.stat(follow_symlinks=False).st_mtime <= now:
                    yield folder / entry.name.removesuffix(STATE)
            except FileNotFoundError:
                continue  # another removed it meanwhile


def _records(log: bytes) -> Iterator[_Part]:
    at = 0
    while at < len(log):
        begin = at + LENGTH_BYTES
        at = begin + int.from_bytes(log[at:begin], "big")
        yield _read_part(log[begin:at])
