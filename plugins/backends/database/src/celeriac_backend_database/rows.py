"""A result document as the columns of Celery's table, packed into bytes for the way from the slot to the store.

Pure: `backend` calls it, nothing here knows a database.
"""

from __future__ import annotations

import hashlib
import re
from datetime import datetime, timezone
from typing import Any, Final

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from celeriac.spec import Document, ResultCompression, Serializer
from celeriac.states import READY_STATES

#: What Celery's columns hold, in characters.
STATUS_CHARS: Final = 50
TEXT_CHARS: Final = 155
#: Half of a character, as which JSON and Python know it, and UTF-8 does not.
_SURROGATE: Final = re.compile("[\ud800-\udfff]")
#: Keys that are columns of their own; what else an extended document has are its stamps.
OWN_KEYS: Final = frozenset(
    {
        "status", "result", "traceback", "children", "date_done", "task_id", "group_id", "parent_id",
        "name", "args", "kwargs", "worker", "retries", "queue", "stamped_headers",
    }
)  # fmt: skip


class Row(Struct, array_like=True):
    """One row of `celery_taskmeta`; bytes are what the result serializer made.

    Attributes:
        date_done: Naive, in UTC, as the column has it.
        celeriac_received: As `tables.RECEIVED` says; not known before it is stored.
        extended: The document had `name`, `args` … (setting `result_extended`).
    """

    task_id: str
    status: str
    result: bytes
    date_done: datetime | None = None
    traceback: str | None = None
    children: bytes | None = None
    extended: bool = False
    name: str | None = None
    args: bytes | None = None
    kwargs: bytes | None = None
    worker: str | None = None
    retries: int | None = None
    queue: str | None = None
    stamps: bytes | None = None
    celeriac_received: float | None = None


#: Bytes that MySQL's client escapes, and more than the rest of a statement has.
_ESCAPED: Final = (b"\0", b"\n", b"\r", b"\x1a", b'"', b"'", b"\\")
_SQL_BYTES: Final = 16_384
_encoder: Final = msgspec.msgpack.Encoder()
_decoder: Final = msgspec.msgpack.Decoder(Row)
pack = _encoder.encode


def unpack(data: bytes) -> Row:
    """Read what `pack` wrote.

    Raises:
        ValueError: It is something else.
    """
    return _decoder.decode(data)


def from_document(document: Document, serializer: Serializer, compression: ResultCompression) -> Row:
    """The columns of a document; of these the result is compressed, if `result_compression` says so.

    Raises:
        ValueError, TypeError: Something in it cannot be serialized, or does not fit its column.
    """
    status = str(document["status"])
    if len(status) > STATUS_CHARS:
        raise ValueError(
            f"the state {status!r} is longer than {STATUS_CHARS} characters, which is what the table holds"
        )
    row = Row(
        task_id=document["task_id"],
        status=status,
        result=compression.pack(serializer.dumps(document["result"]), status),
        date_done=_naive_utc(document.get("date_done")),
        traceback=_text(document.get("traceback")),
        children=serializer.dumps(document["children"]) if document.get("children") else None,
    )
    if "name" in document:
        row.extended = True
        row.name = _text(document["name"], TEXT_CHARS)
        row.args = serializer.dumps(document.get("args"))
        row.kwargs = serializer.dumps(document.get("kwargs"))
        row.worker = _text(document.get("worker"), TEXT_CHARS)
        row.retries = document.get("retries")
        row.queue = _text(document.get("queue"), TEXT_CHARS)
        if document.get("stamped_headers"):
            stamps = {key: value for key, value in document.items() if key not in OWN_KEYS}
            row.stamps = serializer.dumps({"stamped_headers": document["stamped_headers"], "stamps": stamps})
    return row


def to_document(row: Row, serializer: Serializer) -> Document:
    """The document that the columns stand for."""
    document: Document = {
        "status": row.status,
        "result": serializer.loads(ResultCompression.unpack(row.result)),
        "traceback": row.traceback,
        "children": serializer.loads(row.children) if row.children else [],
        "date_done": _iso(row.date_done) if row.status in READY_STATES else None,
        "task_id": row.task_id,
    }
    if row.extended:
        document.update(
            name=row.name,
            args=serializer.loads(row.args) if row.args is not None else None,
            kwargs=serializer.loads(row.kwargs) if row.kwargs is not None else None,
            worker=row.worker,
            retries=row.retries,
            queue=row.queue,
        )
        if row.stamps:
            stamps: dict[str, Any] = serializer.loads(row.stamps)
            document["stamped_headers"] = stamps.get("stamped_headers")
            document.update(stamps.get("stamps") or {})
    return document


def key_of(text: str) -> str:
    """An id or a key as a column takes it: as it is, unless it does not fit there; then its hash (R11). (To MariaDB,
    blanks at the end are nothing.)"""
    if len(text) <= TEXT_CHARS and "\0" not in text and not text.endswith(" ") and not _SURROGATE.search(text):
        return text
    return "sha256:" + hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def in_ascii(row: Row) -> Row:
    """The same with texts for people that every character set has: MySQL's of old are not Unicode's."""
    limits = {"traceback": None, "name": TEXT_CHARS, "worker": TEXT_CHARS, "queue": TEXT_CHARS}
    texts = {name: getattr(row, name) for name in limits}
    plain = {name: text.encode("ascii", "backslashreplace").decode() for name, text in texts.items() if text}
    return replace(row, **{name: text[: limits[name]] for name, text in plain.items()})


def statement_size(row: Row) -> int:
    """How many bytes MySQL's client sends for a row."""
    texts = (row.result, row.children, row.args, row.kwargs, row.stamps, (row.traceback or "").encode())
    return escaped_size(*texts)


def escaped_size(*texts: bytes | None) -> int:
    """How many bytes MySQL's client sends for a statement with these: each of some characters becomes two."""
    return _SQL_BYTES + sum(len(text) + sum(map(text.count, _ESCAPED)) for text in texts if text)


def _naive_utc(value: Any) -> datetime | None:
    if isinstance(value, str):
        value = datetime.fromisoformat(value.replace("Z", "+00:00"))
    if isinstance(value, datetime) and value.tzinfo is not None:
        value = value.astimezone(timezone.utc).replace(tzinfo=None)
    return value if isinstance(value, datetime) else None


def _iso(value: datetime | None) -> str | None:
    return None if value is None else value.replace(tzinfo=timezone.utc).isoformat()


def _text(value: Any, limit: int | None = None) -> str | None:
    """Text that every database takes: PostgreSQL refuses NUL, and UTF-8 has no lone surrogates, as Python writes bytes
    of a file name that is not UTF-8."""
    if value is None:
        return None
    return str(value).replace("\0", "\\0").encode("utf-8", "backslashreplace").decode("utf-8")[:limit]
