"""The result backend contract: keeps result documents and hands them out.

A result document is Celery's meta object, a dict: `status`, `result`, `traceback`, `children`, `date_done`,
`task_id`, and `group_id`, `parent_id`, `name` … when they apply. `encode` and `decode` turn it into the
backend's own bytes and back; `encode` runs in pool slots, so that the worker only moves bytes.

Abilities:

==============  ==========================================================================================
`push`          `watch` learns of new states without asking again and again
`expire`        removes results by itself after `result_expires`
`persistent`    results outlive the client that waits for them
`joint`         `commands` works: results may ride in a broker's transaction
`replies`       answers the sender (`reply_to`) instead of keeping: one reader, once
`count`         joins chords itself: the verbs of `ChordBackend`
`groups`        keeps groups of results: the verbs of `GroupBackend`
`shared`        several processes may use one URL
`fence`         keeps stale receivers of a message out: R13, by `received` and `redelivered` of `StoredResult`
`diagnose`      looks at its store for trouble, for `celeriac doctor`: `celeriac.spec.diagnosis.Diagnoses`
`state`         it keeps shared state too: one member more, `celeriac.spec.state.KeepsState`
==============  ==========================================================================================
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, Protocol

from celeriac.spec.data import Chord, ChordClaim, ChordPart, StoredResult
from celeriac.spec.serializer import Serializer
from celeriac.spec.transport import Transport

Document = dict[str, Any]

#: So long a claim on a chord is its holder's, unless it closes it before.
CLAIM_S: Final = 60.0
#: So long at least the end of a chord is remembered: Celery's figure.
DONE_S: Final = 300.0
#: So long at least a chord is kept beyond its patience, for a worker to find that it is overdue.
OVERDUE_S: Final = 3600.0


class Host(Protocol):
    """What core offers to a backend that needs more than its URL."""

    def transport(self) -> Transport:
        """The app's transport, for backends that answer over the broker."""

    def reply_queue(self) -> str:
        """The name of this client's own reply queue; the same all through the process."""

    def serializer(self, name: str) -> Serializer:
        """The serializer plugin of that name, for `ResultBackend.decode` (setting `result_serializer`)."""


class Watch(Protocol):
    """Waits for states of some tasks. Used by one thread."""

    def add(self, ids: Sequence[str]) -> None:
        """Watch these too."""

    def discard(self, ids: Sequence[str]) -> None:
        """Watch these no longer."""

    def wait(self, timeout_s: float) -> list[tuple[str, bytes]]:
        """Return `(task_id, data)` of states that arrived; [] after `timeout_s` without news.

        A notice may be lost, so whoever waits also reads with `fetch` every few seconds (R8). The first call
        after `add` reports what was already there.
        """

    def close(self) -> None:
        """Stop watching. Idempotent."""


class ResultBackend(Protocol):
    """One result store, reached by one URL. All verbs may be called from any thread."""

    abilities: frozenset[str]
    #: Equal to a transport's `joint` when both write to the same store in the same way; else None.
    joint: str | None

    def encode(self, document: Document, serializer: Serializer) -> bytes:
        """Make this backend's stored form. Pure.

        Raises:
            ValueError, TypeError: The result cannot be serialized; core then stores a FAILURE that says so.
        """

    def decode(self, data: bytes) -> Document:
        """Read the stored form back, as a document with Celery's keys."""

    def store(self, batch: Sequence[StoredResult]) -> None:
        """Keep these states. Each is atomic; a stored SUCCESS is never replaced, and a ready state never by
        one that is not ready (R2, R3). Returns when the store has taken them.

        Raises:
            BackendLost: The store cannot be reached; nothing or some of the batch was kept. Try again.
        """

    def commands(self, batch: Sequence[StoredResult]) -> Any:
        """The same as data that a consumer with an equal `joint` performs; only with the ability `joint`."""

    def expect(self, task_ids: Sequence[str]) -> None:
        """Messages with these ids are about to be sent by this client; a `replies` backend gets ready."""

    def fetch(self, task_ids: Sequence[str]) -> dict[str, bytes]:
        """The stored form of those that have one."""

    def watch(self, task_ids: Sequence[str]) -> Watch:
        """Watch tasks; only with the ability `push`."""

    def forget(self, task_ids: Sequence[str]) -> None:
        """Remove the results of these tasks."""

    def cleanup(self) -> int:
        """Remove expired results, a bounded number; return how many. A no-op with the ability `expire`."""

    def ping(self, timeout_s: float) -> str:
        """As `Transport.ping`; raises `BackendUnreachable`."""

    def after_fork(self) -> None:
        """As `Transport.after_fork`."""

    def close(self) -> None:
        """Let go of all connections. Idempotent."""


class GroupBackend(Protocol):
    """What a backend with the ability `groups` can do besides."""

    def save_group(self, group_id: str, members: Any) -> None:
        """Keep a group's results, in their tuple form `[[group_id, parent], [[[task_id, parent], children], ...]]`,
        as long as results are kept. Saving one again replaces it.

        Raises:
            BackendLost: As `store`.
        """

    def load_group(self, group_id: str) -> Any:
        """The tuple form that was saved, as the result serializer reads it; None if there is none."""

    def delete_group(self, group_id: str) -> None:
        """Remove it, and not its results."""


class ChordBackend(Protocol):
    """What a backend with the ability `count` can do besides: end each chord once (R9, R10).

    A chord is complete when as many different parts have come as were expected; a part is *set* by its task id and
    index, so that its second arrival replaces the first or is left out, and never counts. Who is given a claim fires
    the chord: it sends the body, or stores why it cannot, and then closes it. A claim ends by itself after
    `claim_s` seconds, since its holder may die. A closed chord is remembered for `DONE_S` at least, so that late parts
    find it ended.

    Each verb is one atomic step for each chord, in the store: several workers call them at once.
    """

    def open_chords(self, chords: Sequence[Chord]) -> None:
        """Begin these, before a message of their parts is sent. Opening one again (a step of a chain ran twice)
        neither loses parts that have come nor undoes its end. However soon results expire, a chord is kept for its
        patience and `OVERDUE_S`, from its opening and from each part (R7).

        Raises:
            BackendLost: As `store`.
        """

    def join(self, parts: Sequence[ChordPart], claim_s: float = CLAIM_S) -> list[ChordClaim]:
        """Set these parts. Returns a claim for each chord of theirs that is complete and not closed: with a token for
        one caller at a time. Parts of a chord that was never opened here are kept: its size may come later.

        Raises:
            BackendLost: As `store`; calling again with the same parts is always right.
        """

    def grow_chord(self, group: str, task_id: str) -> None:
        """Expect one more part, that of `task_id`. Called by a part that has not ended, so the chord is open."""

    def close_chords(self, claims: Sequence[ChordClaim]) -> None:
        """These were fired: remember that, and remove their parts. A claim that has passed to another changes nothing
        (its token is not the chord's)."""

    def overdue_chords(self, limit: int, claim_s: float = CLAIM_S) -> list[ChordClaim]:
        """Claims, with tokens, for at most `limit` open chords that have been waiting longer than their patience,
        complete or not. Called by every worker every few seconds, so it must be cheap when there is none."""
