"""Compressed results, in Celery's form: `\\0celery-compressed\\0<type>\\0<data>`; readers know them by that prefix."""

from __future__ import annotations

import bz2
import lzma
import zlib
from collections.abc import Callable
from typing import Any, Final

from celeriac.exceptions import SettingError

PREFIX: Final = b"\0celery-compressed\0"
#: What a stored result may be unpacked to: a bound for what a few hostile bytes can cost.
MAX_BYTES: Final = 256 * 1024 * 1024
TYPES: Final = {
    "gzip": "application/x-gzip",
    "zlib": "application/x-gzip",
    "bzip2": "application/x-bz2",
    "bzip": "application/x-bz2",
    "lzma": "application/x-lzma",
    "xz": "application/x-lzma",
    "brotli": "application/x-brotli",
    "zstd": "application/zstd",
    "zstandard": "application/zstd",
}

Compressor = Callable[[bytes], bytes]


def compressor(name: str | None) -> Compressor | None:
    """What compresses a document under `result_compression`; None if nothing does.

    Raises:
        SettingError: Nobody knows that name, or its library is not installed.
    """
    if not name:
        return None
    content_type = TYPES.get(name, name)
    compress = _COMPRESS.get(content_type) or _optional(content_type, "compress")
    if compress is None:
        raise SettingError(
            f"result_compression is {name!r}, which is unknown or needs a library that is not installed. "
            f"Known: {', '.join(sorted(TYPES))}.",
            setting="result_compression",
        )
    head = PREFIX + content_type.encode() + b"\0"
    return lambda data: head + compress(data)


def decompress(data: bytes) -> bytes:
    """The document in `data`, compressed or not.

    Raises:
        ValueError: It is compressed in a way that is not known here, broken, or too big.
    """
    if not data.startswith(PREFIX):
        return data
    name, _, packed = data[len(PREFIX) :].partition(b"\0")
    content_type = name.decode("ascii", "replace")
    unpack = _DECOMPRESS.get(content_type) or _optional(content_type, "decompress")
    if unpack is None:
        raise ValueError(f"a result is compressed as {content_type!r}, for which no library is installed here")
    try:
        return unpack(packed)
    except (zlib.error, OSError, EOFError, lzma.LZMAError) as exc:
        raise ValueError(f"a result is not valid {content_type}: {exc}") from exc


def _bounded(make: Callable[[], Any]) -> Compressor:
    def unpack(data: bytes) -> bytes:
        found: bytes = make().decompress(data, MAX_BYTES + 1)
        if len(found) > MAX_BYTES:
            raise ValueError(f"a result unpacks to more than {MAX_BYTES} bytes")
        return found

    return unpack


def _optional(content_type: str, verb: str) -> Compressor | None:
    """brotli and zstandard, when they are installed."""
    try:
        if content_type == "application/x-brotli":
            import brotli  # type: ignore[import-not-found, unused-ignore]

            return getattr(brotli, verb)  # type: ignore[no-any-return]
        if content_type == "application/zstd":
            import zstandard  # type: ignore[import-not-found, unused-ignore]

            if verb == "compress":
                return zstandard.ZstdCompressor().compress  # type: ignore[no-any-return]
            return lambda data: zstandard.ZstdDecompressor().decompress(data, max_output_size=MAX_BYTES)
    except ImportError:
        return None  # the caller says which library is missing
    return None


_COMPRESS: Final[dict[str, Compressor]] = {
    "application/x-gzip": zlib.compress,
    "application/x-bz2": bz2.compress,
    "application/x-lzma": lzma.compress,
}
_DECOMPRESS: Final[dict[str, Compressor]] = {
    "application/x-gzip": _bounded(zlib.decompressobj),
    "application/x-bz2": _bounded(bz2.BZ2Decompressor),
    "application/x-lzma": _bounded(lzma.LZMADecompressor),
}
