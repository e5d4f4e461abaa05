"""The plain call: Celery's headers in Celery's order, with nothing special in them. Pure; called by `message`.

Nearly every message is one. Its table differs from the next one's in six texts only, so it is written from pieces and
recognised by comparing pieces, at a fifth of the cost of looking at each of nineteen entries. Whatever differs in
any byte goes the general way (`table`), with the same outcome; a test holds the two against each other. Headers of
one's own may follow.
"""

from __future__ import annotations

from collections.abc import Mapping
from struct import Struct
from typing import Any, Final

from celeriac_broker_amqp.table import write_table

_long = Struct(">I").pack
_read_long = Struct(">I").unpack_from

#: The headers of a plain call. None stands for the texts that differ from call to call.
_HEADERS: Final[dict[str, Any]] = {
    "lang": "py",
    "task": None,
    "id": None,
    "shadow": None,
    "eta": None,
    "expires": None,
    "group": None,
    "group_index": None,
    "retries": 0,
    "timelimit": [None, None],
    "root_id": None,
    "parent_id": None,
    "argsrepr": None,
    "kwargsrepr": None,
    "origin": None,
    "ignore_result": None,
    "replaced_task_nesting": 0,
    "stamped_headers": None,
    "stamps": {},
}
_KEYS: Final = tuple(_HEADERS)
_COUNT: Final = len(_KEYS)
_MIDDLE: Final = tuple(_HEADERS.values())[3:10]
_END: Final = tuple(_HEADERS.values())[16:]


def _pieces(first: str, last: str, text: str = "", **values: Any) -> bytes:
    """The entries of a plain call from one header to another, then the name of the text that follows."""
    names = _KEYS[_KEYS.index(first) : _KEYS.index(last) + 1] if first else ()
    entries = write_table({name: values.get(name, _HEADERS[name]) for name in names})[4:]
    return entries + (bytes((len(text),)) + text.encode() + b"S" if text else b"")


_TO_TASK: Final = _pieces("lang", "lang", "task")
_TO_ID: Final = _pieces("", "", "id")
_TO_ROOT: Final = _pieces("shadow", "timelimit", "root_id")
_NO_PARENT: Final = _pieces("parent_id", "parent_id", "argsrepr")
_TO_PARENT: Final = _pieces("", "", "parent_id")
_TO_ARGS: Final = _pieces("", "", "argsrepr")
_TO_KWARGS: Final = _pieces("", "", "kwargsrepr")
_TO_ORIGIN: Final = _pieces("", "", "origin")
_TAILS: Final = {value: _pieces("ignore_result", "stamps", ignore_result=value) for value in (None, False, True)}
_VALUES: Final = {tail: value for value, tail in _TAILS.items()}
_TAIL_BYTES: Final = {len(tail) for tail in _VALUES}


def write_plain(headers: Mapping[str, Any]) -> bytes | None:
    """The entries of a header table, without its length; None if it is not of a plain call."""
    if tuple(headers)[:_COUNT] != _KEYS:
        return None
    values = tuple(headers.values())
    lang, task, task_id = values[:3]
    root, parent, args, kwargs, origin, ignore = values[10:16]
    if (
        lang != "py"
        or values[3:10] != _MIDDLE
        or values[16:_COUNT] != _END
        or not (ignore is None or ignore is True or ignore is False)
        or not (type(task) is type(task_id) is type(root) is type(args) is type(kwargs) is type(origin) is str)
        or not (parent is None or type(parent) is str)
    ):
        return None
    texts = [text.encode("utf-8", "surrogatepass") for text in (task, task_id, root, args, kwargs, origin)]
    task, task_id, root, args, kwargs, origin = texts
    if parent is None:
        to_args = _NO_PARENT
    else:
        parent = parent.encode("utf-8", "surrogatepass")
        to_args = b"".join((_TO_PARENT, _long(len(parent)), parent, _TO_ARGS))
    entries = b"".join(
        (
            _TO_TASK, _long(len(task)), task, _TO_ID, _long(len(task_id)), task_id, _TO_ROOT, _long(len(root)), root,
            to_args, _long(len(args)), args, _TO_KWARGS, _long(len(kwargs)), kwargs,
            _TO_ORIGIN, _long(len(origin)), origin, _TAILS[ignore],
        )
    )  # fmt: skip
    if len(values) == _COUNT:
        return entries
    return entries + write_table(dict(list(headers.items())[_COUNT:]))[4:]


def read_plain(data: bytes, pos: int) -> tuple[list[bytes], bytes, int] | None:
    """The entries of a plain call, the first of them standing at `pos`.

    Returns:
        The texts (task, id, root_id, argsrepr, kwargsrepr, origin, and parent_id if it has one), the constant entries
        at the end, and where those end; None if it is not a plain call.
    Raises:
        struct.error: Cut short.
    """
    texts: list[bytes] = []
    for piece in (_TO_TASK, _TO_ID, _TO_ROOT):
        if not data.startswith(piece, pos):
            return None
        start = pos + len(piece) + 4
        pos = start + _read_long(data, start - 4)[0]
        texts.append(data[start:pos])
    parent = None
    if data.startswith(_NO_PARENT, pos):
        pos += len(_NO_PARENT)
    elif data.startswith(_TO_PARENT, pos):
        start = pos + len(_TO_PARENT) + 4
        pos = start + _read_long(data, start - 4)[0]
        parent = data[start:pos]
        if not data.startswith(_TO_ARGS, pos):
            return None
        pos += len(_TO_ARGS)
    else:
        return None
    start = pos + 4
    pos = start + _read_long(data, pos)[0]
    texts.append(data[start:pos])
    for piece in (_TO_KWARGS, _TO_ORIGIN):
        if not data.startswith(piece, pos):
            return None
        start = pos + len(piece) + 4
        pos = start + _read_long(data, start - 4)[0]
        texts.append(data[start:pos])
    for size in _TAIL_BYTES:
        tail = data[pos : pos + size]
        if tail in _VALUES:
            if parent is not None:
                texts.append(parent)
            return texts, tail, pos + size
    return None


def make_headers(texts: list[bytes], tail: bytes) -> dict[str, Any]:
    """The headers, from what `read_plain` found.

    Raises:
        UnicodeDecodeError: A text is none.
    """
    task, task_id, root, args, kwargs, origin, *parent = [text.decode() for text in texts]
    return {
        "lang": "py",
        "task": task,
        "id": task_id,
        "shadow": None,
        "eta": None,
        "expires": None,
        "group": None,
        "group_index": None,
        "retries": 0,
        "timelimit": [None, None],
        "root_id": root,
        "parent_id": parent[0] if parent else None,
        "argsrepr": args,
        "kwargsrepr": kwargs,
        "origin": origin,
        "ignore_result": _VALUES[tail],
        "replaced_task_nesting": 0,
        "stamped_headers": None,
        "stamps": {},
    }
