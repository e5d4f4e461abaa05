"""Chords in the project's database. Each verb is one transaction, in which a chord's row is written before anything of
it is read: that holds its lock until the end, whichever database it is.

A chord that django-celery-results has begun has a row in its own table, `ChordCounter`. Its parts are not counted down
there but joined here, as a set; the row goes when the chord ends.
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final

from django.db import connections, router, transaction
from django.db.models import Case, Count, F, FloatField, Q, Value, When
from django.db.models.functions import Coalesce, Greatest

from celeriac.spec import DONE_S, OVERDUE_S, Chord, ChordClaim, ChordPart
from celeriac_backend_django.common import fitting_id, in_statements

#: The place of parts that were added later: after all others.
LAST: Final = 2**62
EXPIRED_AT_ONCE: Final = 100
#: So long a chord of django-celery-results, which has no such time, may be without news.
ADOPTED_PATIENCE_S: Final = 3600.0
#: The database's clock as unix seconds; elsewhere this machine's, which SQLite shares.
CLOCKS: Final = {
    "postgresql": "SELECT extract(epoch FROM clock_timestamp())",
    "mysql": "SELECT unix_timestamp(now(6))",
}


class Chords:
    """The chords of one project.

    Args:
        lifetime_s: How long a chord without news is kept; None for ever.
        model: Finds a model by its name.
    """

    def __init__(self, lifetime_s: float | None, model: Callable[[str], Any]) -> None:
        self._lifetime_s = lifetime_s
        self._model = model

    def open(self, chords: Sequence[Chord]) -> None:
        by_key = {fitting_id(chord.group): chord for chord in chords}
        with self._transaction():
            now = self._now()
            self._ensure({key: chord.group for key, chord in by_key.items()}, now)
            for key in sorted(by_key):
                chord = by_key[key]
                self._heads(chord_key=key, size=None, done=False).update(
                    size=chord.size,
                    body=chord.body,
                    patience=chord.patience_s,
                    overdue=now + chord.patience_s,
                    expires=self._end(now, chord.patience_s + OVERDUE_S),
                )
            self._expire(now)

    def join(self, parts: Sequence[ChordPart], claim_s: float) -> list[ChordClaim]:
        groups = {fitting_id(part.group): part.group for part in parts}
        with self._transaction():
            now = self._now()
            self._ensure(groups, now)
            for key in sorted(groups):
                self._touch(key, now)
            open_ = self._heads(chord_key__in=list(groups), done=False)
            sizes: dict[str, int | None] = dict(open_.values_list("chord_key", "size"))
            unknown = {key for key, size in sizes.items() if size is None}
            if unknown:
                bodies = {fitting_id(part.group): part.body for part in parts}
                sizes.update(self._adopt({key: bodies[key] for key in unknown}, now))
            self._set([part for part in parts if fitting_id(part.group) in sizes])
            come = dict(
                self._parts(chord_key__in=list(sizes)).values_list("chord_key").annotate(come=Count("id")).order_by()
            )
            complete = [key for key, size in sizes.items() if size is not None and come.get(key, 0) >= size]
            return [self._claim(key, groups[key], now, claim_s) for key in sorted(complete)]

    def grow(self, group: str, task_id: str) -> None:
        with self._transaction():
            heads = self._heads(chord_key=fitting_id(group), done=False)
            if not heads.update(size=F("size") + 1):
                return
            note = {"chord_key": _added_key(group), "task_key": fitting_id(task_id), "place": LAST}
            if self._parts(**note).exists():  # the answer to the first time was lost on its way
                heads.update(size=F("size") - 1)
            else:
                self._parts().create(**note, data=b"")

    def close(self, claims: Sequence[ChordClaim]) -> None:
        with self._transaction():
            now = self._now()
            for key, token, group in sorted((fitting_id(claim.group), claim.token, claim.group) for claim in claims):
                # Not for ever, even if results are.
                remembered = Greatest(Coalesce(F("expires"), Value(0.0)), Value(now + DONE_S))
                held = self._heads(chord_key=key, token=token, done=False)
                if held.update(done=True, body=b"", overdue=None, expires=remembered):
                    self._parts(chord_key__in=[key, _added_key(group)]).delete()
                    self._rows("ChordCounter", group_id=key).delete()

    def overdue(self, limit: int, claim_s: float) -> list[ChordClaim]:
        now = self._now()
        late = self._heads(overdue__lte=now, done=False).order_by("overdue").values_list("chord_key", "group_id")
        found = sorted((key, json.loads(group)) for key, group in late[:limit])
        if not found:
            return []
        with self._transaction():
            claims = [self._claim(key, group, now, claim_s, Q(overdue__lte=now)) for key, group in found]
        return [claim for claim in claims if claim.token]

    # how it is done

    def _touch(self, key: str, now: float) -> None:
        """A part shows that its chord is alive."""
        sum_s = Value(now) + F("patience")
        overdue = Case(When(claimed__gt=now, then=F("overdue")), default=sum_s, output_field=FloatField())
        heads, until = self._heads(chord_key=key, done=False), self._end(now)
        heads.update(expires=until, overdue=overdue)
        if until is not None:  # at least for as long as parts may come
            needed = Value(now + OVERDUE_S) + F("patience")
            heads.filter(patience__gt=until - now - OVERDUE_S).update(expires=needed)

    def _adopt(self, bodies: Mapping[str, bytes], now: float) -> dict[str, int]:
        """Sizes of those among these chords that django-celery-results has begun."""
        rows = self._rows("ChordCounter", group_id__in=list(bodies)).values_list("group_id", "sub_tasks")
        sizes = {key: len(json.loads(members)) for key, members in rows}
        for key, size in sizes.items():
            self._heads(chord_key=key).update(
                size=size,
                body=bodies[key],
                patience=ADOPTED_PATIENCE_S,
                overdue=now + ADOPTED_PATIENCE_S,
                expires=self._end(now, ADOPTED_PATIENCE_S + OVERDUE_S),
            )
        return sizes

    def _set(self, parts: Iterable[ChordPart]) -> None:
        """Keep these, but for those that are there."""
        model = self._model("JoinedPart")
        rows = [
            model(
                chord_key=fitting_id(part.group),
                task_key=fitting_id(part.task_id),
                place=LAST if part.index is None else part.index,
                data=part.data,
            )
            for part in parts
        ]
        for some in in_statements(rows, lambda row: len(row.data)):
            self._parts().bulk_create(some, ignore_conflicts=True)

    def _claim(self, key: str, group: str, now: float, claim_s: float, *more: Q) -> ChordClaim:
        token, until = uuid.uuid4().hex, now + claim_s
        free = self._heads(*more, chord_key=key, claimed__lte=now, done=False)
        if not free.update(token=token, claimed=until, overdue=until):
            held = self._heads(chord_key=key).values_list("claimed", flat=True).first()
            return ChordClaim(group, "", max(0.0, (held or now) - now))
        size, body = self._heads(chord_key=key).values_list("size", "body").get()
        rows = self._parts(chord_key=key).order_by("place", "task_key").values_list("place", "data")
        parts = [(None if place == LAST else place, bytes(data)) for place, data in rows]
        return ChordClaim(group, token, 0.0, size or 0, parts, bytes(body or b""))

    def _ensure(self, groups: Mapping[str, str], now: float) -> None:
        """Rows for these, so that there is something to lock."""
        model = self._model("JoinedChord")
        rows = [
            model(chord_key=key, group_id=json.dumps(groups[key]), expires=self._end(now)) for key in sorted(groups)
        ]
        self._heads().bulk_create(rows, ignore_conflicts=True)

    def _expire(self, now: float) -> None:
        found = dict(self._heads(expires__lte=now).values_list("chord_key", "group_id")[:EXPIRED_AT_ONCE])
        keys = list(found)
        if keys:
            added = [_added_key(json.loads(group)) for group in found.values()]
            self._parts(chord_key__in=[*keys, *added]).delete()
            self._heads(chord_key__in=keys).delete()

    def _end(self, now: float, least_s: float = 0.0) -> float | None:
        return None if self._lifetime_s is None else now + max(self._lifetime_s, least_s)

    def _now(self) -> float:
        return unix_now(self._alias)

    def _transaction(self) -> Any:
        return transaction.atomic(using=self._alias)

    @property
    def _alias(self) -> str:
        return str(router.db_for_write(self._model("JoinedChord")))

    def _heads(self, *conditions: Q, **named: Any) -> Any:
        return self._rows("JoinedChord", *conditions, **named)

    def _parts(self, **named: Any) -> Any:
        return self._rows("JoinedPart", **named)

    def _rows(self, name: str, *conditions: Q, **named: Any) -> Any:
        return self._model(name)._base_manager.using(self._alias).order_by().filter(*conditions, **named)


def _added_key(group: str) -> str:
    """Under which it is noted among the parts, but not as one, for which tasks a chord has grown."""
    return str(fitting_id(f"celeriac-added {group}"))


def unix_now(alias: str) -> float:
    """The clock of the database of this alias, in unix seconds."""
    connection = connections[alias]
    clock = CLOCKS.get(connection.vendor)
    if clock is None:
        return time.time()
    with connection.cursor() as cursor:
        cursor.execute(clock)
        return float(cursor.fetchone()[0])
