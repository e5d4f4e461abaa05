"""AMQP field tables: headers and arguments as bytes, and back. Pure; nothing here knows a connection.

A table is read in three depths: `find_values` hops over the entries by their lengths and reads only the wanted
ones (the worker, per message), `read_table` reads all (the pool slot), and `write_table` writes one.
Types are RabbitMQ's, which is what the server itself sends; those py-amqp writes are read alike.

Source: AMQP 0-9-1, 4.2.5.5, with RabbitMQ's errata; values as py-amqp 5.4 maps them.
"""

from __future__ import annotations

import calendar
import datetime
import re
from collections.abc import Container, Mapping
from decimal import Decimal
from struct import Struct, error
from typing import Any, Final

#: Beyond these a table is refused before more of it is read (B26).
MAX_ENTRIES: Final = 256
MAX_DEPTH: Final = 32
MAX_TABLE_BYTES: Final = 128 * 1024
#: Half a character: a lone surrogate, which is text to Python and not to UTF-8.
HALF: Final = re.compile("[\ud800-\udfff]")

_long = Struct(">I").pack
_read_long = Struct(">I").unpack_from
_int32 = Struct(">ci").pack
_int64 = Struct(">cq").pack
_double = Struct(">cd").pack
_decimal = Struct(">cBi").pack
_timestamp = Struct(">cQ").pack

#: type letter → how to read it; all of fixed size.
_FIXED: Final = {
    ord(letter): Struct(">" + code)
    for letter, code in {
        "t": "?", "b": "b", "B": "B", "s": "h", "U": "h", "u": "H", "I": "i", "i": "I",
        "l": "q", "L": "q", "f": "f", "d": "d",
    }.items()
}  # fmt: skip
_FIXED_SIZES: Final = {letter: form.size for letter, form in _FIXED.items()} | {ord("D"): 5, ord("T"): 8, ord("V"): 0}
_LONG_TEXT: Final = ord("S")
_BYTES: Final = ord("x")
_TABLE: Final = ord("F")
_ARRAY: Final = ord("A")
_DECIMAL: Final = ord("D")
_TIMESTAMP: Final = ord("T")
_VOID: Final = ord("V")
_LENGTHY: Final = frozenset((_LONG_TEXT, _BYTES, _TABLE, _ARRAY))

_KEYS: dict[str, bytes] = {}
_KEYS_KEPT: Final = 1024


class BadTable(ValueError):
    """The bytes are no field table, or one beyond the limits."""


def write_table(values: Mapping[str, Any]) -> bytes:
    """A table with its length in front.

    Raises:
        ValueError, TypeError: A key or value that AMQP has no word for; the text names the key.
    """
    entries = _write_entries(values)
    return _long(len(entries)) + entries


def _write_entries(values: Mapping[str, Any]) -> bytes:
    out: list[bytes] = []
    add = out.append
    for key, value in values.items():
        try:
            add(_KEYS.get(key) or _write_key(key))
            kind = type(value)
            if kind is str:
                data = value.encode("utf-8", "surrogatepass")
                add(b"S" + _long(len(data)))
                add(data)
            elif value is None:
                add(b"V")
            else:
                add(_write_value(value))
        except (ValueError, TypeError, OverflowError, error, RecursionError) as exc:
            raise ValueError(f"{key!r}: {exc}") from exc
    return b"".join(out)


def _write_key(key: str) -> bytes:
    if not isinstance(key, str):
        raise TypeError(f"keys are texts in AMQP, not {type(key).__name__}")
    data = key.encode("utf-8", "surrogatepass")
    if len(data) > 255:
        raise ValueError(f"a key of {len(data)} bytes; AMQP allows 255")
    written = bytes((len(data),)) + data
    if len(_KEYS) < _KEYS_KEPT:
        _KEYS[key] = written
    return written


def _write_value(value: Any) -> bytes:
    if value is True:
        return b"t\x01"
    if value is False:
        return b"t\x00"
    if isinstance(value, int):
        return _int32(b"I", value) if -0x80000000 <= value <= 0x7FFFFFFF else _int64(b"l", value)
    if isinstance(value, (str, bytes, bytearray)):
        data = value.encode("utf-8", "surrogatepass") if isinstance(value, str) else bytes(value)
        return b"S" + _long(len(data)) + data
    if isinstance(value, Mapping):
        return b"F" + write_table(value)
    if isinstance(value, (list, tuple)):
        items = b"".join([_write_value(item) for item in value])
        return b"A" + _long(len(items)) + items
    if value is None:
        return b"V"
    if isinstance(value, float):
        return _double(b"d", value)
    if isinstance(value, datetime.datetime):
        return _timestamp(b"T", calendar.timegm(value.utctimetuple()))
    if isinstance(value, Decimal):
        return _write_decimal(value)
    raise TypeError(f"AMQP has no word for a {type(value).__name__}")


def _write_decimal(value: Decimal) -> bytes:
    sign, digits, exponent = value.as_tuple()
    if not isinstance(exponent, int):
        raise ValueError(f"AMQP has no word for {value}")
    number = int("".join(map(str, digits))) * 10 ** max(exponent, 0)
    return _decimal(b"D", max(-exponent, 0), -number if sign else number)


def read_table(data: bytes, at: int) -> tuple[dict[str, Any], int]:
    """The table whose length stands at `at`, and where it ends.

    Raises:
        BadTable: Cut short, an unknown type, or beyond a limit.
    """
    end = table_end(data, at)
    return read_entries(data, at + 4, end), end


def read_entries(data: bytes, pos: int, end: int) -> dict[str, Any]:
    """The entries from `pos` to `end`.

    Raises:
        BadTable: As `read_table`.
    """
    try:
        return _read_entries(data, pos, end, MAX_DEPTH)
    except (error, IndexError, OverflowError) as exc:
        raise BadTable(f"not a field table: {exc}") from exc


def find_values(data: bytes, at: int, wanted: Container[bytes]) -> dict[bytes, Any]:
    """The values of the wanted keys of the table whose length stands at `at`; all others are hopped over.

    Raises:
        BadTable: As `read_table`.
    """
    return find_entries(data, at + 4, table_end(data, at), wanted)


def find_entries(data: bytes, pos: int, end: int, wanted: Container[bytes]) -> dict[bytes, Any]:
    """As `find_values`, among the entries from `pos` to `end`."""
    found: dict[bytes, Any] = {}
    try:
        entries = 0
        while pos < end:
            start = pos + 1
            pos = start + data[pos]
            key = data[start:pos]
            kind = data[pos]
            pos += 1
            if kind == _LONG_TEXT:
                start = pos + 4
                pos = start + _read_long(data, pos)[0]
                if key in wanted:
                    found[key] = _text(data[start:pos])
            elif kind == _VOID:
                pass  # as good as not there
            elif key in wanted:
                found[key], pos = _read_value(data, pos - 1, end, MAX_DEPTH)
            elif kind in _LENGTHY:
                pos += 4 + _read_long(data, pos)[0]
            else:
                pos += _FIXED_SIZES[kind]
            entries += 1
    except (error, IndexError, OverflowError) as exc:
        raise BadTable(f"not a field table: {exc}") from exc
    except KeyError as exc:
        raise BadTable(f"unknown type {chr(exc.args[0])!r} in a field table") from None
    if pos != end or entries > MAX_ENTRIES:
        raise BadTable(f"a field table of {entries} entries that ends at {pos}, not {end}")
    return found


def table_end(data: bytes, at: int) -> int:
    """Where the table ends whose length stands at `at`.

    Raises:
        BadTable: Beyond the end of the data, or too large.
    """
    try:
        size: int = _read_long(data, at)[0]
    except error as exc:
        raise BadTable(f"not a field table: {exc}") from exc
    if size > MAX_TABLE_BYTES:
        raise BadTable(f"a field table of {size} bytes; at most {MAX_TABLE_BYTES} are read")
    if at + 4 + size > len(data):
        raise BadTable(f"a field table of {size} bytes that is cut off after {len(data) - at - 4}")
    return at + 4 + size


def _read_entries(data: bytes, pos: int, end: int, depth: int) -> dict[str, Any]:
    values: dict[str, Any] = {}
    while pos < end:
        start = pos + 1
        pos = start + data[pos]
        key = data[start:pos].decode("utf-8", "backslashreplace")
        values[key], pos = _read_value(data, pos, end, depth)
        if len(values) > MAX_ENTRIES:
            raise BadTable(f"more than {MAX_ENTRIES} entries in a field table")
    if pos != end:
        raise BadTable(f"a field table that ends at {pos}, not {end}")
    return values


def _read_value(data: bytes, pos: int, end: int, depth: int) -> tuple[Any, int]:
    """The value whose type letter stands at `pos`, and where it ends."""
    kind = data[pos]
    pos += 1
    if kind in _LENGTHY:
        start = pos + 4
        pos = start + _read_long(data, pos)[0]
        if pos > end:
            raise BadTable(f"a value of {pos - start} bytes that is cut off")
        if kind == _LONG_TEXT:
            return _text(data[start:pos]), pos
        if kind == _BYTES:
            return data[start:pos], pos
        if depth == 0:
            raise BadTable(f"tables more than {MAX_DEPTH} deep")
        if kind == _TABLE:
            return _read_entries(data, start, pos, depth - 1), pos
        return _read_items(data, start, pos, depth - 1), pos
    form = _FIXED.get(kind)
    if form is not None:
        return form.unpack_from(data, pos)[0], pos + form.size
    if kind == _VOID:
        return None, pos
    if kind == _TIMESTAMP:
        return _read_time(_read_long(data, pos + 4)[0] | _read_long(data, pos)[0] << 32), pos + 8
    if kind == _DECIMAL:
        scale, number = Struct(">Bi").unpack_from(data, pos)
        return Decimal(number).scaleb(-scale), pos + 5
    raise BadTable(f"unknown type {chr(kind)!r} in a field table")


def _read_items(data: bytes, pos: int, end: int, depth: int) -> list[Any]:
    items = []
    while pos < end:
        item, pos = _read_value(data, pos, end, depth)
        items.append(item)
    if pos != end:
        raise BadTable(f"a field array that ends at {pos}, not {end}")
    return items


def _text(data: bytes) -> Any:
    """A long string is text if it can be, else bytes, as py-amqp has it.

    Python clients write halves of characters (lone surrogates), as in names of files. AMQP carries them, but neither
    stores nor other brokers do: each is read as the character that stands for what cannot be shown.
    """
    try:
        return data.decode()
    except UnicodeDecodeError:
        pass
    try:
        return HALF.sub("\ufffd", data.decode("utf-8", "surrogatepass"))
    except UnicodeDecodeError:
        return data


def _read_time(seconds: int) -> datetime.datetime | int:
    try:
        return datetime.datetime.fromtimestamp(seconds, datetime.timezone.utc)
    except (ValueError, OverflowError, OSError):
        return seconds  # beyond the year 9999: still worth showing
