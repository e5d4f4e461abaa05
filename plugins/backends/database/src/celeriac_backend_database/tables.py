"""Celery's two tables, and the one statement by which a state of a task is kept or refused (R3).

Names of tables, columns and sequences are Celery's, so either reads what the other stored. `id` is wider than
Celery's where we make the table: a statement that only replaces a row uses up a number too.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.dialects import mysql, postgresql, sqlite

from celeriac.states import READY_STATES, SUCCESS

TASK_TABLE: Final = "celery_taskmeta"
GROUP_TABLE: Final = "celery_tasksetmeta"
#: A column of ours, which a table that Celery made lacks: when the worker received the message whose final state this
#: is, in unix time. Positive if that keeps those out who received it earlier (R13), which is a redelivered message's.
RECEIVED: Final = "celeriac_received"
Exact = Callable[[Any], Any]
#: Begins a text that is written as JSON.
_QUOTED: Final = "json:"

Id = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
# On MySQL a blob has 64 KB unless more is asked for, text compares without regard to case, and a database may have a
# character set that does not have all characters.
Blob = sa.LargeBinary().with_variant(mysql.LONGBLOB(), "mysql", "mariadb")
LongText = sa.Text().with_variant(mysql.LONGTEXT(charset="utf8mb4", collation="utf8mb4_bin"), "mysql", "mariadb")
Name = sa.String(155).with_variant(mysql.VARCHAR(155, charset="utf8mb4", collation="utf8mb4_bin"), "mysql", "mariadb")
State = sa.String(50).with_variant(mysql.VARCHAR(50, charset="utf8mb4", collation="utf8mb4_bin"), "mysql", "mariadb")
Time = sa.DateTime().with_variant(mysql.DATETIME(fsp=6), "mysql", "mariadb")


class Tables:
    """Celery's tables of one backend.

    Args:
        names, schemas: The settings `database_table_names` and `database_table_schemas`: `{'task': …, 'group': …}`.
        numbered: `id` comes from a sequence (where the database has any), as Celery makes its tables; False: the
            column numbers itself.
    """

    def __init__(
        self, names: Mapping[str, str] | None, schemas: Mapping[str, str] | None, *, numbered: bool = True
    ) -> None:
        names, schemas = names or {}, schemas or {}

        def id_column(sequence: str) -> sa.Column[int]:
            default = [sa.Sequence(sequence)] if numbered else []
            return sa.Column("id", Id, *default, primary_key=True, autoincrement=True)

        self.metadata = sa.MetaData()
        self.task = sa.Table(
            names.get("task") or TASK_TABLE,
            self.metadata,
            id_column("task_id_sequence"),
            sa.Column("task_id", Name, unique=True),
            sa.Column("status", State),
            sa.Column("result", Blob),
            sa.Column("date_done", Time, index=True),
            sa.Column("traceback", LongText),
            sa.Column("children", Blob),
            sa.Column("name", Name),
            sa.Column("args", Blob),
            sa.Column("kwargs", Blob),
            sa.Column("worker", Name),
            sa.Column("retries", sa.Integer),
            sa.Column("queue", Name),
            sa.Column("stamps", Blob),
            sa.Column(RECEIVED, sa.Double()),
            schema=schemas.get("task"),
            sqlite_autoincrement=True,
        )
        self.group = sa.Table(
            names.get("group") or GROUP_TABLE,
            self.metadata,
            id_column("taskset_id_sequence"),
            sa.Column("taskset_id", Name, unique=True),
            sa.Column("result", Blob),
            sa.Column("date_done", Time, index=True),
            schema=schemas.get("group"),
            sqlite_autoincrement=True,
        )


def look_at(conn: sa.Connection, table: sa.Table) -> tuple[list[str], bool]:
    """Which of our columns the table really has (one that an older Celery made lacks some), and whether its `id`
    numbers itself (an older database than its sequences)."""
    found = {column["name"].lower(): column for column in sa.inspect(conn).get_columns(table.name, table.schema)}
    own = found["id"]
    numbers_itself = own.get("default") is not None or own.get("autoincrement") is True or "identity" in own
    return [column.name for column in table.columns if column.name in found], numbers_itself


def may_replace(table: sa.Table, new: Mapping[str, Any], exact: Exact = lambda text: text) -> sa.ColumnElement[bool]:
    """R3 as SQL: a success is final, and what is ready is not undone by what is not; and R13, if the row has that.

    Args:
        exact: Makes a text one that is compared as it is.
    """
    allowed = _is_further(exact(table.c.status), exact(new["status"]))
    if RECEIVED not in new:
        return allowed
    kept, received = table.c[RECEIVED], new[RECEIVED]
    return sa.and_(allowed, sa.or_(kept.is_(None), received.is_(None), kept <= sa.func.abs(received)))


def _is_further(old: Any, new: Any) -> sa.ColumnElement[bool]:
    # Constants rather than parameters: those of each row are all that PyMySQL can send for many rows at once.
    ready: list[Any] = [sa.literal_column(f"'{state}'") for state in sorted(READY_STATES)]
    return sa.and_(old != sa.literal_column(f"'{SUCCESS}'"), sa.or_(old.not_in(ready), new.in_(ready)))


def replaces(old: str, new: str) -> bool:
    """The same in Python, for several states of one task in one batch."""
    return old != SUCCESS and (old not in READY_STATES or new in READY_STATES)


def upsert(dialect: str, table: sa.Table, names: Sequence[str]) -> sa.sql.expression.Insert | None:
    """The statement that inserts a row, or replaces one that may be; None where the dialect has none."""
    changed = [name for name in names if name not in ("id", "task_id")]
    if dialect in ("postgresql", "sqlite"):
        insert: Any = (postgresql if dialect == "postgresql" else sqlite).insert(table)
        return insert.on_conflict_do_update(  # type: ignore[no-any-return]
            index_elements=["task_id"],
            set_={name: insert.excluded[name] for name in changed},
            where=may_replace(table, {name: insert.excluded[name] for name in names}),
        )
    if dialect in ("mysql", "mariadb"):
        insert = mysql.insert(table)
        # In a table that Celery made, `success` would be `SUCCESS`.
        new = {name: insert.inserted[name] for name in names}
        allowed = may_replace(table, new, lambda text: sa.cast(text, sa.LargeBinary))
        # Assigned last, since the others' conditions read the old ones; and of the two the state, which a condition
        # that has been met once meets with the new time as well.
        changed.sort(key=lambda name: (name == "status", name == RECEIVED))
        return insert.on_duplicate_key_update(  # type: ignore[no-any-return]
            [(name, sa.func.if_(allowed, insert.inserted[name], table.c[name])) for name in changed]
        )
    return None


def write_plainly(conn: sa.Connection, table: sa.Table, rows: Sequence[dict[str, Any]]) -> None:
    """For other dialects: a conditional UPDATE, else an INSERT, which a unique index keeps from doubling."""
    for row in rows:
        update = (
            sa.update(table).where(table.c.task_id == row["task_id"], may_replace(table, _literals(row))).values(row)
        )
        if conn.execute(update).rowcount:
            continue
        try:
            with conn.begin_nested():
                conn.execute(sa.insert(table).values(row))
        except sa.exc.IntegrityError:  # it is there: final, or another was quicker
            conn.execute(update)


def _literals(row: Mapping[str, Any]) -> dict[str, Any]:
    found = {"status": sa.literal(row["status"])}
    if RECEIVED in row:
        found[RECEIVED] = sa.literal(row[RECEIVED], sa.Double())
    return found


def insert_or_leave(dialect: str, table: sa.Table) -> sa.sql.expression.Insert | None:
    """An INSERT that leaves a row that is there as it is; None where the dialect has none."""
    if dialect == "postgresql":
        return postgresql.insert(table).on_conflict_do_nothing()
    if dialect == "sqlite":
        return sqlite.insert(table).on_conflict_do_nothing()
    if dialect in ("mysql", "mariadb"):
        return sa.insert(table).prefix_with("IGNORE")
    return None


def write_text(text: str) -> str:
    """Any text as any column takes it (R11): PostgreSQL has no NUL in one, UTF-8 no lone surrogates, and some character
    sets little but ASCII."""
    plain = text.isascii() and "\0" not in text and not text.startswith(_QUOTED)
    return text if plain else _QUOTED + json.dumps(text)


def read_text(written: str) -> str:
    """What `write_text` was given."""
    return str(json.loads(written.removeprefix(_QUOTED))) if written.startswith(_QUOTED) else written


def unix_now(conn: sa.Connection) -> float:
    """The database's own clock, in unix seconds; ours where no way to ask is known."""
    clocks = {
        "postgresql": "SELECT extract(epoch FROM clock_timestamp())",
        "mysql": "SELECT unix_timestamp(now(6))",
        "mariadb": "SELECT unix_timestamp(now(6))",
        "sqlite": "SELECT (julianday('now') - 2440587.5) * 86400.0",
    }
    query = clocks.get(conn.dialect.name)
    return time.time() if query is None else float(conn.exec_driver_sql(query).scalar_one())
