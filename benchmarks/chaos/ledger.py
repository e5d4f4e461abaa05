"""What ran: the lines that tasks wrote, read as they come."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Start:
    """One run of one task."""

    id: str
    flagged: bool
    pid: int
    parent: int
    at: float


@dataclass(slots=True)
class Ledger:
    """Reads the tasks' file further each time."""

    path: Path
    starts: dict[str, list[Start]] = field(default_factory=dict)
    ends: dict[str, list[float]] = field(default_factory=dict)
    #: The last start of each worker, by its process and by the child that ran it.
    last_by: dict[int, float] = field(default_factory=dict)
    _at: int = 0
    _rest: bytes = b""

    def read(self) -> None:
        """Take in what was written since."""
        try:
            with self.path.open("rb") as file:
                file.seek(self._at)
                data = self._rest + file.read()
                self._at = file.tell()
        except FileNotFoundError:
            return
        *lines, self._rest = data.split(b"\n")
        for line in lines:
            what, id, flagged, pid, parent, at = line.decode().split(" ")
            if what == "start":
                start = Start(id, flagged == "1", int(pid), int(parent), float(at))
                self.starts.setdefault(id, []).append(start)
                for process in (start.pid, start.parent):
                    self.last_by[process] = max(start.at, self.last_by.get(process, 0.0))
            else:
                self.ends.setdefault(id, []).append(float(at))

    def unfinished(self, pids: set[int]) -> list[Start]:
        """The runs that these processes began and have not ended."""
        return [
            runs[-1]
            for id, runs in self.starts.items()
            if runs[-1].pid in pids and max(self.ends.get(id, (0.0,))) < runs[-1].at
        ]
