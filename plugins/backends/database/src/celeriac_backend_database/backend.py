"""The backend: keeps results in Celery's tables of an SQL database. Called by core, from any thread."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime, timedelta, timezone
from functools import partial
from typing import Any, Final, TypeVar

import sqlalchemy as sa
from msgspec.structs import replace
from sqlalchemy import exc as sa_exc

from celeriac.exceptions import BackendError, BackendLost, BackendStoreError, SettingError, Unsupported
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
from celeriac.spec.results import ResultCompression
from celeriac.states import FAILURE, READY_STATES
from celeriac_backend_database.chords import CHORD, Chords
from celeriac_backend_database.chords import metadata as chord_tables
from celeriac_backend_database.engine import database_url, is_passing, make_engine, translate, unreachable
from celeriac_backend_database.rows import (
    Row,
    escaped_size,
    from_document,
    in_ascii,
    key_of,
    pack,
    statement_size,
    to_document,
    unpack,
)
from celeriac_backend_database.state import DatabaseState
from celeriac_backend_database.state import metadata as state_tables
from celeriac_backend_database.tables import RECEIVED, Tables, look_at, replaces, unix_now, upsert, write_plainly

T = TypeVar("T")

#: Ids in one statement: SQLite of old takes 999 parameters.
IDS_PER_STATEMENT: Final = 500
#: Expired results removed by one `cleanup`, and by one of its statements.
EXPIRED_PER_CLEANUP: Final = 10_000
EXPIRED_PER_STATEMENT: Final = 1_000
#: Tries of one operation when a connection drops or two writers block each other.
TRIES: Final = 6
FIRST_PAUSE_S: Final = 0.02
#: Two processes may make the tables at the same time; one of them is told that they exist.
CREATE_TRIES: Final = 5
EXTENDED: Final = ("name", "args", "kwargs", "worker", "retries", "queue", "stamps")

#: Engines of a process that forked us: kept, because letting go of one would speak on the parent's connection.
_left_to_parents: list[sa.Engine] = []


class DatabaseBackend:
    """See `celeriac.spec.ResultBackend`. Connects, and makes the tables, when first needed."""

    abilities = frozenset({"count", "groups", "persistent", "shared", "state", "fence"})
    joint: str | None = None

    def __init__(self, url: str, settings: Mapping[str, Any], host: Host) -> None:
        self._url = database_url(url, settings)
        self._settings = {name: settings.get(name) for name in settings if name.startswith("database_")}
        self._tables = self._make_tables()
        self._lifetime = _lifetime(settings.get("result_expires"))
        chord_lifetime = _lifetime(settings.get("result_chord_expires")) or self._lifetime
        self._chords = Chords(chord_lifetime.total_seconds() if chord_lifetime else None, key_of)
        self._made: set[sa.MetaData] = set()  # tables of our own that are known to be there
        self._state = DatabaseState(partial(self._do, tables=state_tables))
        self._serializer_name: str = settings.get("result_serializer") or "json"
        self._compression = ResultCompression(settings)
        self._host = host
        self._lock = threading.Lock()
        self._pid = os.getpid()
        self._engine = make_engine(self._url, self._settings)
        self._columns: list[str] = []  # of the task table as it is; empty until looked at
        self._write: sa.sql.expression.Insert | None = None

    # documents

    def encode(self, document: Document, serializer: Serializer) -> bytes:
        """See `ResultBackend.encode`: the columns of Celery's table, packed."""
        return pack(from_document(document, serializer, self._compression))

    def decode(self, data: bytes) -> Document:
        """See `ResultBackend.decode`."""
        return to_document(unpack(data), self._host.serializer(self._serializer_name))

    # the store

    def store(self, batch: Sequence[StoredResult]) -> None:
        """See `ResultBackend.store`. A row that the table does not hold is kept as a FAILURE that says so."""
        rows = _winners(batch)
        if not rows:
            return
        try:
            self._store(rows)
        except BackendStoreError:
            self._store_each(rows)
        except BackendLost:
            if self._too_large(map(statement_size, rows)) is None:
                raise
            self._store_each(rows)

    def commands(self, batch: Sequence[StoredResult]) -> Any:
        """Not with this backend: no broker of ours writes to the same database in the same way."""
        raise Unsupported("database backend: results cannot ride in a broker's transaction")

    def expect(self, task_ids: Sequence[str]) -> None:
        """Results are kept whether somebody expects them or not."""

    def fetch(self, task_ids: Sequence[str]) -> dict[str, bytes]:
        """See `ResultBackend.fetch`."""
        asked = {key_of(task_id): task_id for task_id in task_ids}

        def read(conn: sa.Connection) -> dict[str, bytes]:
            columns = [self._tables.task.c[name] for name in self._columns if name not in ("id", RECEIVED)]
            found = {}
            for chunk in _chunks(list(asked)):
                rows = conn.execute(sa.select(*columns).where(self._tables.task.c.task_id.in_(chunk)))
                for values in rows.mappings():
                    task_id = asked.get(values["task_id"])
                    if task_id is not None:
                        found[task_id] = pack(_row_of(dict(values), task_id))
            return found

        return self._do(read) if asked else {}

    def watch(self, task_ids: Sequence[str]) -> Watch:
        """Not with this backend: core asks by itself."""
        raise Unsupported("database backend: a database does not tell of new results; core asks repeatedly")

    def forget(self, task_ids: Sequence[str]) -> None:
        """See `ResultBackend.forget`."""

        def remove(conn: sa.Connection) -> None:
            for chunk in _chunks([key_of(task_id) for task_id in task_ids]):
                conn.execute(sa.delete(self._tables.task).where(self._tables.task.c.task_id.in_(chunk)))

        self._do(remove)

    def cleanup(self) -> int:
        """See `ResultBackend.cleanup`: tasks and groups older than `result_expires`, by the database's clock."""
        if self._lifetime is None:
            return 0
        removed = 0
        for table in (self._tables.task, self._tables.group):
            while removed < EXPIRED_PER_CLEANUP:
                count = self._do(partial(self._expire, table))
                removed += count
                if count < EXPIRED_PER_STATEMENT:
                    break
        return removed

    # groups

    def save_group(self, group_id: str, members: Any) -> None:
        """See `GroupBackend.save_group`."""
        table = self._tables.group
        data = self._host.serializer(self._serializer_name).dumps(members)

        def save(conn: sa.Connection) -> None:
            values = {"result": data, "date_done": datetime.now(timezone.utc).replace(tzinfo=None)}
            update = sa.update(self._tables.group).where(table.c.taskset_id == key_of(group_id)).values(values)
            if conn.execute(update).rowcount:
                return
            try:
                with conn.begin_nested():
                    conn.execute(sa.insert(self._tables.group).values(taskset_id=key_of(group_id), **values))
            except sa_exc.IntegrityError:  # another was quicker
                conn.execute(update)

        self._do(save)

    def load_group(self, group_id: str) -> Any:
        """See `GroupBackend.load_group`."""

        def load(conn: sa.Connection) -> Any:
            table = self._tables.group
            return conn.scalar(sa.select(table.c.result).where(table.c.taskset_id == key_of(group_id)))

        data = self._do(load)
        return None if data is None else self._host.serializer(self._serializer_name).loads(bytes(data))

    def delete_group(self, group_id: str) -> None:
        """See `GroupBackend.delete_group`."""

        def delete(conn: sa.Connection) -> None:
            table = self._tables.group
            conn.execute(sa.delete(table).where(table.c.taskset_id == key_of(group_id)))

        self._do(delete)

    # chords

    def open_chords(self, chords: Sequence[Chord]) -> None:
        """See `ChordBackend.open_chords`."""
        self._do(lambda conn: self._chords.open(conn, chords), tables=chord_tables)

    def join(self, parts: Sequence[ChordPart], claim_s: float = CLAIM_S) -> list[ChordClaim]:
        """See `ChordBackend.join`. A part that is too large for the server is kept as one that failed."""
        try:
            return self._do(lambda conn: self._chords.join(conn, parts, claim_s), tables=chord_tables)
        except BackendLost:
            if self._too_large(escaped_size(part.data) for part in parts) is None:
                raise
            fitting = [self._fitting_part(part) for part in parts]
            return self._do(lambda conn: self._chords.join(conn, fitting, claim_s), tables=chord_tables)

    def grow_chord(self, group: str, task_id: str) -> None:
        """See `ChordBackend.grow_chord`."""
        self._do(lambda conn: self._chords.grow(conn, group, task_id), tables=chord_tables)

    def close_chords(self, claims: Sequence[ChordClaim]) -> None:
        """See `ChordBackend.close_chords`."""
        self._do(lambda conn: self._chords.close(conn, claims), tables=chord_tables)

    def overdue_chords(self, limit: int, claim_s: float = CLAIM_S) -> list[ChordClaim]:
        """See `ChordBackend.overdue_chords`. Whoever has no chords is not made tables for them."""
        if chord_tables not in self._made and not self._do(lambda conn: sa.inspect(conn).has_table(CHORD.name)):
            return []
        late = self._do(lambda conn: self._chords.late(conn, limit), tables=chord_tables)
        return self._do(lambda conn: self._chords.claim(conn, late, claim_s), tables=chord_tables) if late else []

    # shared state

    def state(self) -> SharedState:
        """See `KeepsState.state`: in two tables of our own."""
        return self._state

    # life

    def ping(self, timeout_s: float) -> str:
        """See `ResultBackend.ping`."""
        try:
            with self._connect() as conn:
                if self._settings.get("database_create_tables_at_setup", True):
                    self._look_at_tables(conn)
                version = ".".join(map(str, (conn.dialect.server_version_info or ())[:3]))
        except (sa_exc.SQLAlchemyError, OSError) as exc:
            raise unreachable(exc, self._url) from exc
        return f"{self._engine.dialect.name} {version}, {self._url.render_as_string()}"

    def after_fork(self) -> None:
        """See `ResultBackend.after_fork`: another engine; the parent's connections are not touched."""
        _left_to_parents.append(self._engine)
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._engine = make_engine(self._url, self._settings)

    def close(self) -> None:
        """See `ResultBackend.close`."""
        if os.getpid() == self._pid:
            self._engine.dispose()

    # how it is done

    def _store(self, rows: Sequence[Row]) -> None:
        def write(conn: sa.Connection) -> None:
            now = datetime.now(timezone.utc).replace(tzinfo=None)
            values = [self._values(row, now) for row in rows]
            if self._write is not None:
                conn.execute(self._write, values)
            else:
                write_plainly(conn, self._tables.task, values)

        self._do(write)

    def _store_each(self, rows: Sequence[Row]) -> None:
        """One of them is bad: the others are not to suffer for it."""
        for row in rows:
            problem = self._too_large([statement_size(row)])
            for one in (row, in_ascii(row)) if problem is None else ():
                try:
                    self._store([one])
                    break
                except BackendStoreError as exc:
                    problem = exc
            else:
                assert problem is not None
                self._store([self._failure(row, problem)])

    def _too_large(self, sizes: Iterable[int]) -> BackendStoreError | None:
        """What MySQL would say of a statement that is longer than it takes, where it hangs up without a word. None if
        statements of these sizes fit."""
        if self._engine.dialect.name not in ("mysql", "mariadb"):
            return None
        limit = self._do(lambda conn: int(conn.exec_driver_sql("SELECT @@max_allowed_packet").scalar_one()))
        size = max(sizes)
        if size < limit:
            return None
        return BackendStoreError(f"as a statement it has {size} bytes, and max_allowed_packet is {limit}")

    def _values(self, row: Row, now: datetime) -> dict[str, Any]:
        """A row's columns, as far as the table has them. An unfinished task is dated too, so that it expires."""
        values = {name: getattr(row, name) for name in self._columns if name != "id"}
        values["task_id"] = key_of(row.task_id)
        values["date_done"] = row.date_done or now
        return values

    def _fitting_part(self, part: ChordPart) -> ChordPart:
        problem = self._too_large([escaped_size(part.data)])
        if problem is None:
            return part
        failed = [1, part.task_id, FAILURE, _refused(f"the part of {len(part.data)} bytes", problem)]
        return replace(part, data=self._host.serializer(self._serializer_name).dumps(failed))

    def _failure(self, row: Row, exc: BackendStoreError) -> Row:
        described = _refused(f"the result of {len(row.result)} bytes ({row.status})", exc)
        return Row(
            row.task_id,
            FAILURE,
            self._host.serializer(self._serializer_name).dumps(described),
            date_done=datetime.now(timezone.utc).replace(tzinfo=None),
        )

    def _expire(self, table: sa.Table, conn: sa.Connection) -> int:
        assert self._lifetime is not None
        now = datetime.fromtimestamp(unix_now(conn), timezone.utc).replace(tzinfo=None)
        old = table.c.date_done < now - self._lifetime
        ids = conn.scalars(sa.select(table.c.id).where(old).limit(EXPIRED_PER_STATEMENT)).all()
        removed = 0
        for chunk in _chunks(ids):
            removed += conn.execute(sa.delete(table).where(table.c.id.in_(chunk), old)).rowcount
        return removed

    def _do(self, work: Callable[[sa.Connection], T], *, tables: sa.MetaData | None = None) -> T:
        """Run `work` in a transaction; again where a connection dropped or another writer was in the way.

        Args:
            tables: Of our own, which are made if they are missing.
        Raises:
            BackendLost, BackendStoreError: As they say.
        """
        pause_s = FIRST_PAUSE_S
        for left in reversed(range(TRIES)):
            try:
                with self._connect() as conn:
                    self._look_at_tables(conn)
                    if tables is not None and tables not in self._made:
                        self._make(conn, tables)
                        self._made.add(tables)
                    with conn.begin():
                        return work(conn)
            except sa_exc.DBAPIError as exc:
                if not (left and is_passing(exc)):
                    raise self._translated(exc) from exc
            except (sa_exc.SQLAlchemyError, OSError) as exc:
                raise self._translated(exc) from exc
            time.sleep(pause_s)
            pause_s *= 2
        raise AssertionError("unreachable")

    def _connect(self) -> sa.Connection:
        if os.getpid() != self._pid:
            self.after_fork()
        return self._engine.connect()

    def _look_at_tables(self, conn: sa.Connection) -> None:
        """Make the tables that are missing, and learn which columns there are; at the first use only."""
        if self._columns:
            return
        with self._lock:
            if self._columns:
                return
            self._make(conn, self._tables.metadata)
            with conn.begin():
                columns, numbers_itself = look_at(conn, self._tables.task)
            if numbers_itself:
                self._tables = self._make_tables(numbered=False)
            self._write = upsert(conn.dialect.name, self._tables.task, columns)
            self._columns = columns

    @staticmethod
    def _make(conn: sa.Connection, metadata: sa.MetaData) -> None:
        """Make what tables are missing."""
        for left in reversed(range(CREATE_TRIES)):
            try:
                with conn.begin():
                    return metadata.create_all(conn)
            except (sa_exc.IntegrityError, sa_exc.OperationalError, sa_exc.ProgrammingError):
                if not left:
                    raise
                time.sleep(FIRST_PAUSE_S * (CREATE_TRIES - left))

    def _make_tables(self, *, numbered: bool = True) -> Tables:
        names, schemas = (self._settings.get(f"database_table_{word}") for word in ("names", "schemas"))
        return Tables(names, schemas, numbered=numbered)

    def _translated(self, exc: Exception) -> BackendError:
        if self._columns:
            return translate(exc, self._url)
        return unreachable(exc, self._url)


def _refused(what: str, exc: BackendStoreError) -> dict[str, Any]:
    """A failure as it is stored: the database refuses this."""
    return {
        "exc_type": "BackendStoreError",
        "exc_message": [f"{what} could not be stored: {exc}"],
        "exc_module": "celeriac.exceptions",
    }


def _winners(batch: Iterable[StoredResult]) -> list[Row]:
    """The row of each task that would stand if they were written one by one; in the order of ids, so that two
    writers of the same rows do not block each other."""
    rows: dict[str, Row] = {}
    for result in batch:
        row = unpack(result.data)
        known = rows.get(row.task_id)
        if known is None or replaces(known.status, row.status):
            rows[row.task_id] = row
            if result.received is not None and result.state in READY_STATES:
                row.celeriac_received = result.received if result.redelivered else -result.received
    return [rows[task_id] for task_id in sorted(rows)]


def _row_of(values: Mapping[str, Any], task_id: str) -> Row:
    row = Row(task_id, values["status"], bytes(values["result"] or b"null"))
    row.date_done, row.traceback = values["date_done"], values["traceback"]
    for name in ("children", *EXTENDED):
        value = values.get(name)
        setattr(row, name, bytes(value) if isinstance(value, memoryview) else value)
    row.extended = any(values.get(name) is not None for name in EXTENDED)
    return row


def _chunks(items: Sequence[T]) -> Iterable[Sequence[T]]:
    return (items[at : at + IDS_PER_STATEMENT] for at in range(0, len(items), IDS_PER_STATEMENT))


def _lifetime(expires: Any) -> timedelta | None:
    """`result_expires` as a timedelta; None when results are kept for ever.

    Raises:
        SettingError: Neither a number nor a timedelta.
    """
    if isinstance(expires, timedelta):
        return expires or None
    try:
        return timedelta(seconds=float(expires)) if expires else None
    except (TypeError, ValueError):
        raise SettingError(
            f"database backend: result_expires is {expires!r}; give seconds or a timedelta", setting="result_expires"
        ) from None
