"""Shared state in the project's database. Each write begins with the row of its space, and so holds its lock until the
end: others wait, and then see what was committed. A read is one statement, which sees one instant.

Inside a transaction of the caller's, a write is part of that, as every other of `django-db` is.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Final, Protocol, TypeVar

from django.db import router, transaction
from django.db.models import Case, F, FilteredRelation, Q, Value, When

from celeriac.spec import Change, Entry, Snapshot
from celeriac.spec.state import holds
from celeriac_backend_django.chords import unix_now
from celeriac_backend_django.common import fitting_id

T = TypeVar("T")

#: Expired entries removed by one write: a bound for how long it may take.
EXPIRED_PER_WRITE: Final = 500
#: Who asks for more keys is read all of the space.
KEYS_PER_STATEMENT: Final = 500


class Do(Protocol):
    """Runs a step, and again where that is the cure."""

    def __call__(self, work: Callable[[], T], /) -> T: ...


class DjangoState:
    """See `celeriac.spec.SharedState`. Safe for threads and forks, as `do` is.

    Args:
        model: Finds a model by its name.
    """

    def __init__(self, do: Do, model: Callable[[str], Any]) -> None:
        self._do = do
        self._model = model

    def write(
        self, space: str, changes: Sequence[Change], *, given: Mapping[str, int] = MappingProxyType({})
    ) -> int | None:
        """See `SharedState.write`."""
        of = key_of(space)
        while (version := self._do(lambda: self._write(of, changes, given))) == 0:
            # In a transaction of its own: two that have looked for the row may wait for each other.
            self._do(lambda: self._spaces().bulk_create([self._model("StateSpace")(of, 0)], ignore_conflicts=True))
        return version

    def read(self, space: str, keys: Sequence[str] | None = None) -> Snapshot:
        """See `SharedState.read`."""

        def step() -> Snapshot:
            now = unix_now(self._alias)
            alive = FilteredRelation("entries", condition=_is_alive(now, "entries__") & _is_one_of(keys, "entries__"))
            found = self._spaces(space=key_of(space)).annotate(alive=alive)
            rows = list(found.values_list("version", "alive__name", "alive__value", "alive__version", "alive__expires"))
            entries = _entries((row[1:] for row in rows if row[1] is not None), keys)
            return Snapshot(rows[0][0] if rows else 0, now, entries)

        return self._do(step)

    def version(self, space: str) -> int:
        """See `SharedState.version`."""
        return self._do(lambda: self._version(key_of(space)))

    # how it is done

    def _write(self, of: str, changes: Sequence[Change], given: Mapping[str, int]) -> int | None:
        """The new version; None if something is not as given; 0 if there is no such space yet."""
        with transaction.atomic(using=self._alias):
            now = unix_now(self._alias)
            # At least the time in microseconds, so that versions grow even if the tables were lost in between.
            least = int(now * 1_000_000)
            following = Case(When(version__gte=least, then=F("version") + 1), default=Value(least))
            if not self._spaces(space=of).update(version=following):
                return 0
            if given:
                rows = self._entries(_is_alive(now), _is_one_of(list(given)), space_id=of)
                found = _entries(rows.values_list("name", "value", "version", "expires"), list(given))
                if not holds(found, given):
                    transaction.set_rollback(True, using=self._alias)
                    return None
            version = self._version(of)
            self._change(of, changes, version, now)
            late = self._entries(space_id=of, expires__lte=now).values_list("pk", flat=True)[:EXPIRED_PER_WRITE]
            self._entries(pk__in=list(late)).delete()
            return version

    def _change(self, of: str, changes: Sequence[Change], version: int, now: float) -> None:
        rows = {key_of(change.key): change for change in changes}  # the last one of a key counts
        keys = list(rows)
        for at in range(0, len(keys), KEYS_PER_STATEMENT):
            self._entries(space_id=of, entry_key__in=keys[at : at + KEYS_PER_STATEMENT]).delete()
        model = self._model("StateEntry")
        self._entries().bulk_create(
            [
                model(
                    space_id=of,
                    entry_key=key,
                    name=json.dumps(change.key),
                    version=version,
                    expires=None if change.ttl_s is None else now + change.ttl_s,
                    value=change.value,
                )
                for key, change in rows.items()
                if change.value is not None
            ],
            batch_size=100,
        )

    def _version(self, of: str) -> int:
        return self._spaces(space=of).values_list("version", flat=True).first() or 0

    def _spaces(self, **named: Any) -> Any:
        return self._rows("StateSpace", **named)

    def _entries(self, *conditions: Q, **named: Any) -> Any:
        return self._rows("StateEntry", *conditions, **named)

    def _rows(self, name: str, *conditions: Q, **named: Any) -> Any:
        return self._model(name)._base_manager.using(self._alias).order_by().filter(*conditions, **named)

    @property
    def _alias(self) -> str:
        return str(router.db_for_write(self._model("StateSpace")))


def key_of(text: str) -> str:
    """A key as a column takes it; hashed too if MySQL, to which cases are one, might take it for another."""
    return fitting_id(text) if text == text.lower() else fitting_id(f"\0{text}")


def _is_alive(now: float, of: str = "") -> Q:
    return Q(**{f"{of}expires__isnull": True}) | Q(**{f"{of}expires__gt": now})


def _is_one_of(keys: Sequence[str] | None, of: str = "") -> Q:
    if keys is None or len(keys) > KEYS_PER_STATEMENT:
        return Q()
    # No key is empty there, so it stands for none: Django asks nothing at all for an empty list.
    return Q(**{f"{of}entry_key__in": [key_of(key) for key in keys] or [""]})


def _entries(rows: Iterable[Any], keys: Sequence[str] | None) -> dict[str, Entry]:
    found = {json.loads(name): Entry(bytes(value), version, expires) for name, value, version, expires in rows}
    return found if keys is None else {key: found[key] for key in keys if key in found}
