"""`django-db`: results in the project's database, through whichever app has the models of `django_celery_results`.

Without a transaction of ours around them: each statement decides alone (R3), and inside a caller's transaction, as in
a test case, they are part of that.
"""

from __future__ import annotations

import base64
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime, timezone
from functools import partial
from typing import Any, Final, TypeVar

import msgspec
from django.apps import apps
from django.db import DatabaseError, Error, InterfaceError, OperationalError, connections, router
from django.db.models import CharField, Func, Q
from django.db.models.functions import Now
from django.db.models.lookups import In
from django.utils import timezone as django_timezone
from msgspec import Struct
from msgspec.structs import replace

from celeriac.exceptions import (
    BackendError,
    BackendLost,
    BackendStoreError,
    BackendUnreachable,
    ImproperlyConfigured,
    Unsupported,
)
from celeriac.spec import (
    CLAIM_S,
    Chord,
    ChordClaim,
    ChordPart,
    Document,
    Host,
    Serializer,
    SharedState,
    StoredResult,
    Watch,
)
from celeriac.spec.results import SERIALIZERS, AcceptedResults
from celeriac.states import FAILURE, READY_STATES, STARTED, SUCCESS
from celeriac_backend_django.chords import Chords
from celeriac_backend_django.common import bring_up, fitting_id, in_statements, lifetime, statement_size, winners
from celeriac_backend_django.state import DjangoState

T = TypeVar("T")

IDS_PER_STATEMENT: Final = 500
EXPIRED_PER_CLEANUP: Final = 10_000
EXPIRED_PER_STATEMENT: Final = 500
TRIES: Final = 3
FIRST_PAUSE_S: Final = 0.02
#: With these MySQL refuses a value, and one of its clients calls that an OperationalError, like a lost connection.
#: (1153, of a statement that is too long, comes with the loss of the connection, and not always.)
REFUSALS: Final = frozenset({1118, 1264, 1267, 1271, 1292, 1300, 1366, 1406, 3988})
#: What the columns hold, in characters.
STATUS_CHARS: Final = 50
WORKER_CHARS: Final = 100
NAME_CHARS: Final = 255
#: Keys of an extended document that have no column and live in `meta`.
IN_META: Final = ("group_id", "parent_id", "retries", "queue", "stamped_headers")
WITH_COLUMNS: Final = frozenset(
    {"status", "result", "traceback", "children", "date_done", "task_id", "name", "args", "kwargs", "worker", *IN_META}
)

#: Connections of a process that forked us: kept, because letting go of one would speak on the parent's socket.
_left_to_parents: list[Any] = []


class Row(Struct, array_like=True):
    """The columns of a `TaskResult`.

    Attributes:
        date_done: When the row was last written, with its offset; only in rows that were read.
    """

    task_id: str
    status: str
    content_type: str
    content_encoding: str
    result: str
    meta: str
    date_done: str | None = None
    traceback: str | None = None
    task_name: str | None = None
    task_args: str | None = None
    task_kwargs: str | None = None
    worker: str | None = None
    periodic_task_name: str | None = None


_pack: Final = msgspec.msgpack.Encoder().encode
_unpack: Final = msgspec.msgpack.Decoder(Row).decode


class _Exactly(Func):
    """A text that is compared as it is: to MySQL, `success` is `SUCCESS` otherwise."""

    template = "%(expressions)s"
    arity = 1
    output_field = CharField()

    def as_mysql(self, compiler: Any, connection: Any) -> Any:
        return self.as_sql(compiler, connection, template="CAST(%(expressions)s AS BINARY)")


class DjangoDatabaseBackend:
    """See `celeriac.spec.ResultBackend`."""

    abilities = frozenset({"count", "groups", "persistent", "shared", "state"})
    joint: str | None = None

    def __init__(self, settings: Mapping[str, Any], host: Host) -> None:
        self._lifetime = lifetime(settings.get("result_expires"))
        self._serializer_name: str = settings.get("result_serializer") or "json"
        self._accepted = AcceptedResults(settings)
        self._host = host
        self._pid = os.getpid()
        chords_kept = lifetime(settings.get("result_chord_expires") or settings.get("result_expires"))
        self._chords = Chords(None if chords_kept is None else chords_kept.total_seconds(), self._model)
        if not self._has_our_tables():
            self.abilities = self.abilities - {"count", "state"}
        self._state = DjangoState(self._do, self._model)

    # documents

    def encode(self, document: Document, serializer: Serializer) -> bytes:
        """See `ResultBackend.encode`: the columns of a `TaskResult`, packed."""
        status = str(document["status"])
        if len(status) > STATUS_CHARS:
            raise ValueError(f"the state {status!r} is longer than {STATUS_CHARS} characters, which is what fits")

        def text(value: Any) -> str:
            return _as_text(serializer.dumps(value), serializer)

        row = Row(
            document["task_id"],
            status,
            serializer.content_type,
            serializer.content_encoding,
            text(document["result"]),
            text(_meta(document)),
            document.get("date_done"),
            _clean(document.get("traceback")),
        )
        if "name" in document:
            row.task_name = _clean(document["name"], NAME_CHARS)
            row.task_args, row.task_kwargs = text(document.get("args")), text(document.get("kwargs"))
            row.worker = _clean(document.get("worker"), WORKER_CHARS)
        return _pack(row)

    def decode(self, data: bytes) -> Document:
        """See `ResultBackend.decode`: by the serializer that the row names.

        Raises:
            ContentDisallowed: Results of that serializer are not accepted.
        """
        row = _unpack(data)
        name = SERIALIZERS.get(row.content_type) or self._serializer_name
        self._accepted.check(name, row.content_type)
        serializer = self._host.serializer(name)

        def value(text: str | None) -> Any:
            return None if text is None else serializer.loads(_as_bytes(text, row.content_encoding))

        meta = value(row.meta) if row.meta else {}
        document: Document = {
            "status": row.status,
            "result": value(row.result),
            "traceback": row.traceback,
            "children": meta.pop("children", None) or [],
            "date_done": row.date_done if row.status in READY_STATES else None,
            "task_id": row.task_id,
            **meta,
        }
        if row.task_name is not None or row.task_args is not None:
            document.update(
                name=row.task_name, args=value(row.task_args), kwargs=value(row.task_kwargs), worker=row.worker
            )
        return document

    # the store

    def store(self, batch: Sequence[StoredResult]) -> None:
        """See `ResultBackend.store`."""
        rows: dict[str, Row] = winners((row.task_id, row.status, row) for row in (_unpack(one.data) for one in batch))
        if not rows:
            return
        try:
            self._do(lambda: self._store(list(rows.values())))
        except BackendStoreError:
            self._store_each(rows.values())
        except BackendLost:
            if self._too_large(_sizes(rows.values())) is None:
                raise
            self._store_each(rows.values())

    def commands(self, batch: Sequence[StoredResult]) -> Any:
        """Not with this backend."""
        raise Unsupported("django backend: results cannot ride in a broker's transaction")

    def expect(self, task_ids: Sequence[str]) -> None:
        """Results are kept whether somebody expects them or not."""

    def fetch(self, task_ids: Sequence[str]) -> dict[str, bytes]:
        """See `ResultBackend.fetch`."""
        asked = {fitting_id(task_id): task_id for task_id in task_ids}

        def read() -> dict[str, bytes]:
            found = {}
            names = [name for name in Row.__struct_fields__ if name != "periodic_task_name"]
            for chunk in _chunks(list(asked)):
                for values in self._tasks().filter(task_id__in=chunk).values_list(*names):
                    row = Row(*values)
                    if row.task_id in asked:
                        row.task_id, row.date_done = asked[row.task_id], _iso(values[names.index("date_done")])
                        found[row.task_id] = _pack(row)
            return found

        return self._do(read) if asked else {}

    def watch(self, task_ids: Sequence[str]) -> Watch:
        """Not with this backend: core asks by itself."""
        raise Unsupported("django backend: a database does not tell of new results; core asks repeatedly")

    def forget(self, task_ids: Sequence[str]) -> None:
        """See `ResultBackend.forget`."""
        for chunk in _chunks([fitting_id(task_id) for task_id in task_ids]):
            self._do(self._tasks().filter(task_id__in=chunk).delete)

    def cleanup(self) -> int:
        """See `ResultBackend.cleanup`: tasks and groups older than `result_expires`, by the database's clock."""
        if self._lifetime is None:
            return 0
        removed = 0
        for find in (self._tasks, self._groups):
            while removed < EXPIRED_PER_CLEANUP:
                count = self._do(partial(self._expire, find()))
                removed += count
                if count < EXPIRED_PER_STATEMENT:
                    break
        return removed

    # chords

    def open_chords(self, chords: Sequence[Chord]) -> None:
        """See `ChordBackend.open_chords`."""
        self._do(lambda: self._chords.open(chords))

    def join(self, parts: Sequence[ChordPart], claim_s: float = CLAIM_S) -> list[ChordClaim]:
        """See `ChordBackend.join`. A part that is too large for the server is kept as one that failed."""
        try:
            return self._do(lambda: self._chords.join(parts, claim_s))
        except BackendLost:
            if self._too_large(statement_size(part.data) for part in parts) is None:
                raise
            fitting = [self._fitting_part(part) for part in parts]
            return self._do(lambda: self._chords.join(fitting, claim_s))

    def grow_chord(self, group: str, task_id: str) -> None:
        """See `ChordBackend.grow_chord`."""
        self._do(lambda: self._chords.grow(group, task_id))

    def close_chords(self, claims: Sequence[ChordClaim]) -> None:
        """See `ChordBackend.close_chords`."""
        self._do(lambda: self._chords.close(claims))

    def overdue_chords(self, limit: int, claim_s: float = CLAIM_S) -> list[ChordClaim]:
        """See `ChordBackend.overdue_chords`."""
        return self._do(lambda: self._chords.overdue(limit, claim_s))

    # shared state

    def state(self) -> SharedState:
        """See `KeepsState.state`."""
        return self._state

    # groups

    def save_group(self, group_id: str, members: Any) -> None:
        """See `GroupBackend.save_group`."""
        serializer = self._host.serializer(self._serializer_name)
        values = {
            "result": _as_text(serializer.dumps(members), serializer),
            "content_type": serializer.content_type,
            "content_encoding": serializer.content_encoding,
        }
        self._do(lambda: self._groups().update_or_create(group_id=fitting_id(group_id), defaults=values))

    def load_group(self, group_id: str) -> Any:
        """See `GroupBackend.load_group`."""
        query = self._groups().filter(group_id=fitting_id(group_id)).values_list("result", "content_encoding")
        found = self._do(query.first)
        if found is None:
            return None
        return self._host.serializer(self._serializer_name).loads(_as_bytes(*found))

    def delete_group(self, group_id: str) -> None:
        """See `GroupBackend.delete_group`."""
        self._do(lambda: self._groups().filter(group_id=fitting_id(group_id)).delete())

    # life

    def ping(self, timeout_s: float) -> str:
        """See `ResultBackend.ping`."""
        try:
            self._tasks().exists()
            if "state" in self.abilities:  # the newest of our migrations
                self._model("StateSpace")._base_manager.using(self._tasks().db).exists()
            connection = connections[self._tasks().db]
            return f"{connection.display_name} of the Django project, database {connection.alias!r}"
        except Error as exc:
            raise BackendUnreachable(
                f"django-db backend: {_first_line(exc)}.",
                url="django-db://",
                hint="Does the server run, and did `manage.py migrate` make the tables?",
            ) from exc

    def after_fork(self) -> None:
        """See `ResultBackend.after_fork`: the parent's connections are neither used nor closed."""
        self._pid = os.getpid()
        forget_connections()

    def close(self) -> None:
        """Connections are Django's: of this thread, and closed with it."""
        if os.getpid() == self._pid and apps.ready:
            connection = connections[router.db_for_write(self._model("TaskResult"))]
            if not connection.in_atomic_block:
                connection.close()

    # how it is done

    def _store(self, rows: Sequence[Row]) -> None:
        model = self._model("TaskResult")
        by_id = {fitting_id(row.task_id): row for row in rows}
        known: set[str] = set()
        for chunk in _chunks(list(by_id)):
            known.update(_own(by_id, self._tasks().filter(task_id__in=chunk).values_list("task_id", flat=True)))
        fresh = [row_id for row_id in by_id if row_id not in known]
        now = django_timezone.now()
        made = [model(task_id=row_id, **_columns(by_id[row_id], now)) for row_id in fresh]
        for some in in_statements(made, lambda one: sum(map(len, _texts(by_id[one.task_id])))):
            self._tasks().bulk_create(some, ignore_conflicts=True, batch_size=IDS_PER_STATEMENT)
        for row_id in known:
            self._replace(row_id, by_id[row_id], now)
        for chunk in _chunks(fresh):  # was somebody quicker?
            states = dict(self._tasks().filter(task_id__in=chunk).values_list("task_id", "status"))
            for row_id in _own(by_id, states):
                if states[row_id] != by_id[row_id].status:
                    self._replace(row_id, by_id[row_id], now)

    def _store_each(self, rows: Iterable[Row]) -> None:
        """One of them is bad: the others are not to suffer for it."""
        for row in rows:
            problem = self._too_large(_sizes([row]))
            for one in (row, _in_ascii(row)) if problem is None else ():
                try:
                    self._do(partial(self._store, [one]))
                    break
                except BackendStoreError as exc:
                    problem = exc
            else:
                assert problem is not None
                self._do(partial(self._store, [self._failure(row, problem)]))

    def _too_large(self, sizes: Iterable[int]) -> BackendStoreError | None:
        """What MySQL would say of a statement that is longer than it takes, where it hangs up without a word. None if
        statements of these sizes fit."""
        alias = router.db_for_write(self._model("TaskResult"))
        if connections[alias].vendor != "mysql":
            return None

        def ask() -> int:
            with connections[alias].cursor() as cursor:
                cursor.execute("SELECT @@max_allowed_packet")
                return int(cursor.fetchone()[0])

        limit, size = self._do(ask), max(sizes)
        if size < limit:
            return None
        return BackendStoreError(f"as a statement it has {size} bytes, and max_allowed_packet is {limit}")

    def _fitting_part(self, part: ChordPart) -> ChordPart:
        problem = self._too_large([statement_size(part.data)])
        if problem is None:
            return part
        failed = [1, part.task_id, FAILURE, _refused(f"the part of {len(part.data)} bytes", problem)]
        return replace(part, data=self._host.serializer(self._serializer_name).dumps(failed))

    def _replace(self, row_id: str, row: Row, now: datetime) -> None:
        """One statement that replaces the row or, by R3, does not."""
        final = [SUCCESS] if row.status in READY_STATES else sorted(READY_STATES)
        self._tasks().filter(~Q(In(_Exactly("status"), final)), task_id=row_id).update(**_columns(row, now))

    def _expire(self, query: Any) -> int:
        old = query.filter(date_done__lt=Now() - self._lifetime)
        keys = list(old.values_list("pk", flat=True)[:EXPIRED_PER_STATEMENT])
        return int(old.filter(pk__in=keys).delete()[0]) if keys else 0

    def _failure(self, row: Row, exc: BackendStoreError) -> Row:
        serializer = self._host.serializer(self._serializer_name)
        described = _refused(f"the result ({row.status}, {len(row.result)} characters)", exc)
        text = _as_text(serializer.dumps(described), serializer)
        return Row(row.task_id, FAILURE, row.content_type, row.content_encoding, text, row.meta)

    def _tasks(self) -> Any:
        model = self._model("TaskResult")
        return model._base_manager.using(router.db_for_write(model)).order_by()

    def _groups(self) -> Any:
        model = self._model("GroupResult")
        return model._base_manager.using(router.db_for_write(model)).order_by()

    @staticmethod
    def _has_our_tables() -> bool:
        """The project has our models, and not django-celery-results' own."""
        bring_up("django-db")
        return bool(apps.is_installed("celeriac_backend_django"))

    def _model(self, name: str) -> Any:
        bring_up("django-db")
        try:
            return apps.get_model("django_celery_results", name)
        except LookupError as exc:
            raise ImproperlyConfigured(
                "result_backend = 'django-db' needs its tables: add 'celeriac_backend_django' to INSTALLED_APPS and "
                "run `manage.py migrate`."
            ) from exc

    def _do(self, work: Callable[[], T]) -> T:
        """Run `work`; once more where a connection dropped or another writer was in the way.

        Raises:
            BackendLost, BackendStoreError: As they say.
        """
        pause_s = FIRST_PAUSE_S
        for left in reversed(range(TRIES)):
            try:
                return work()
            except (OperationalError, InterfaceError) as exc:
                if _is_refusal(exc):
                    raise _translated(exc) from exc
                connection = connections[router.db_for_write(self._model("TaskResult"))]
                if connection.in_atomic_block or not left:
                    raise _translated(exc) from exc
                connection.close()
            except DatabaseError as exc:
                raise _translated(exc) from exc
            time.sleep(pause_s)
            pause_s *= 4
        raise AssertionError("unreachable")


def forget_connections() -> None:
    """In a forked child: have Django make its connections anew, without a word on those of the parent."""
    for connection in connections.all(initialized_only=True):
        _left_to_parents.append(connection)
        pools = getattr(type(connection), "_connection_pools", None)
        if pools:
            _left_to_parents.append(pools.pop(connection.alias, None))
        del connections[connection.alias]


def _own(by_id: Mapping[str, Row], found: Iterable[str]) -> list[str]:
    """The ids that were found, which are those of `by_id`.

    Raises:
        BackendStoreError: One is not: MySQL, to which cases and accents are one, has another task under that id.
    """
    ids = list(found)
    for other in ids:
        if other not in by_id:
            raise BackendStoreError(f"there is a task {other!r}, whose id the table takes for one of {[*by_id]}")
    return ids


def _refused(what: str, exc: BackendStoreError) -> dict[str, Any]:
    """A failure as it is stored: the database refuses this."""
    return {
        "exc_type": "BackendStoreError",
        "exc_message": [f"{what} could not be stored: {exc}"],
        "exc_module": "celery.exceptions",
    }


def _in_ascii(row: Row) -> Row:
    """The same with texts for people that every character set has: MySQL's of old are not Unicode's."""
    texts = {name: getattr(row, name) for name in ("traceback", "task_name", "worker")}
    plain = {name: text.encode("ascii", "backslashreplace").decode() for name, text in texts.items() if text}
    for name, limit in (("task_name", NAME_CHARS), ("worker", WORKER_CHARS)):
        if name in plain:
            plain[name] = plain[name][:limit]
    return replace(row, **plain)


def _sizes(rows: Iterable[Row]) -> Iterable[int]:
    return (statement_size(*(text.encode("utf-8", "replace") for text in _texts(row))) for row in rows)


def _texts(row: Row) -> list[str]:
    """Those that may be long."""
    return [text for text in (row.result, row.meta, row.traceback, row.task_args, row.task_kwargs) if text]


def _columns(row: Row, now: datetime) -> dict[str, Any]:
    values = {name: getattr(row, name) for name in Row.__struct_fields__ if name not in ("task_id", "date_done")}
    values["date_done"] = now  # as the field's own auto_now has it when a row is inserted
    if row.status == STARTED:
        values["date_started"] = now
    return values


def _meta(document: Document) -> dict[str, Any]:
    meta = {"children": document.get("children") or []}
    meta.update((name, document[name]) for name in IN_META if document.get(name) is not None)
    meta.update((name, value) for name, value in document.items() if name not in WITH_COLUMNS)
    return meta


def _iso(moment: Any) -> str | None:
    if moment is None:
        return None
    if moment.tzinfo is None:
        moment = django_timezone.make_aware(moment)
    return str(moment.astimezone(timezone.utc).isoformat())


def _as_text(data: bytes, serializer: Serializer) -> str:
    if serializer.content_encoding == "binary":
        return base64.b64encode(data).decode("ascii")
    return data.decode("utf-8")


def _as_bytes(text: str, encoding: str) -> bytes:
    return base64.b64decode(text) if encoding == "binary" else text.encode("utf-8")


def _clean(value: Any, limit: int | None = None) -> str | None:
    """Text that every database takes: PostgreSQL refuses NUL, and UTF-8 has no lone surrogates, as Python writes bytes
    of a file name that is not UTF-8."""
    if value is None:
        return None
    return str(value).replace("\0", "\\0").encode("utf-8", "backslashreplace").decode("utf-8")[:limit]


def _is_refusal(exc: Exception) -> bool:
    return bool(exc.args) and exc.args[0] in REFUSALS


def _translated(exc: Exception) -> BackendError:
    if isinstance(exc, (OperationalError, InterfaceError)) and not _is_refusal(exc):
        return BackendLost(f"django-db backend: {_first_line(exc)}")
    return BackendStoreError(f"django-db backend: the database refuses it: {_first_line(exc)}")


def _first_line(exc: Exception) -> str:
    lines = str(exc).strip().splitlines() or [type(exc).__name__]
    return " ".join(lines[0].split()).rstrip(".")


def _chunks(items: Sequence[str]) -> Iterable[Sequence[str]]:
    return (items[at : at + IDS_PER_STATEMENT] for at in range(0, len(items), IDS_PER_STATEMENT))
