"""What a plugin finds when it looks at its own server for trouble. Asked by `celeriac doctor`, never by a worker."""

from __future__ import annotations

from typing import Literal, Protocol, runtime_checkable

from msgspec import Struct

Level = Literal["note", "warning", "error"]


class Finding(Struct, frozen=True):
    """One thing that a person should know.

    Attributes:
        level: `error`: something will be lost or does not work; `warning`: it will, on a bad day; `note`: good to know.
        about: Two or three words that stay the same whatever the values are (`eviction policy`).
        text: What was found, with the values; one sentence. Without passwords.
        remedy: What to do, an imperative sentence; empty if there is nothing.
    """

    level: Level
    about: str
    text: str
    remedy: str = ""


@runtime_checkable
class Diagnoses(Protocol):
    """What a transport or a result backend with the ability `diagnose` has besides."""

    def diagnose(self, *, longest_task_s: float | None, timeout_s: float) -> list[Finding]:
        """Look at the server, changing nothing; say what is unsafe or will not work. [] if all is well.

        Args:
            longest_task_s: No task runs longer (the largest hard time limit); None if some have no limit.
            timeout_s: About as long as this may take.
        Raises:
            TransportUnreachable, BackendUnreachable, TransportLost, BackendLost: As in `ping`.
        """
