"""What every result backend does with the bytes of a document: compress them, and refuse what the app does not accept.

In Celery's form, so that either reads what the other stored: `\\0celery-compressed\\0<type>\\0<data>`, known by that
prefix. For backends, in `encode` and `decode`; the worker's loop calls neither.
"""

from __future__ import annotations

import bz2
import lzma
import zlib
from collections.abc import Callable, Mapping
from typing import Any, Final

from celeriac.exceptions import ContentDisallowed, SettingError
from celeriac.states import SUCCESS

PREFIX: Final = b"\0celery-compressed\0"
#: What a stored result may be unpacked to: a bound for what a few hostile bytes can cost.
MAX_BYTES: Final = 256 * 1024 * 1024
#: kombu's names for compression → the MIME type, of messages too; gzip is a zlib stream, as kombu has it.
COMPRESSIONS: Final = {
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
#: Content types of kombu's serializers → the names that plugins have.
SERIALIZERS: Final = {
    "application/json": "json",
    "application/x-python-serialize": "pickle",
    "application/x-yaml": "yaml",
    "application/x-msgpack": "msgpack",
}

Compressor = Callable[[bytes], bytes]


class ResultCompression:
    """Compresses what is stored as the setting `result_compression` says, and opens whatever was compressed.

    Only successes are compressed: they are what is large, and a store that decides itself which state may replace
    which can read all the others.

    Raises:
        SettingError: Nobody knows that compression, or its library is not installed.
    """

    def __init__(self, settings: Mapping[str, Any]) -> None:
        self._compress = _compressor(settings.get("result_compression"))

    def pack(self, data: bytes, state: Any) -> bytes:
        """The bytes to store for a document in this state."""
        return data if self._compress is None or state != SUCCESS else self._compress(data)

    @staticmethod
    def split(data: bytes) -> tuple[str, bytes]:
        """The MIME type of its compression, "" for none, and the bytes: for messages, which say the one in a header."""
        if not data.startswith(PREFIX):
            return "", data
        name, _, packed = data[len(PREFIX) :].partition(b"\0")
        return name.decode("ascii", "replace"), packed

    @staticmethod
    def join(content_type: str, packed: bytes) -> bytes:
        """What `split` was given; nothing is opened yet."""
        return PREFIX + content_type.encode("utf-8", "replace") + b"\0" + packed if content_type else packed

    @staticmethod
    def unpack(data: bytes) -> bytes:
        """The bytes before `pack`, whatever this app's setting.

        Raises:
            ValueError: They are compressed in a way that is not known here, broken, or too big.
        """
        return _decompress(data) if data.startswith(PREFIX) else data


class AcceptedResults:
    """Which serializers results may have been written with: `result_accept_content`, else `accept_content`."""

    def __init__(self, settings: Mapping[str, Any]) -> None:
        names = settings.get("result_accept_content")
        if names is None:
            names = settings.get("accept_content") or ("json",)
        self._names = frozenset(SERIALIZERS.get(name, name) for name in names)

    def check(self, name: str, content_type: str = "") -> None:
        """Refuse a serializer that the app does not accept.

        Raises:
            ContentDisallowed: It is not among them.
        """
        if name not in self._names and content_type not in self._names:
            raise ContentDisallowed(
                f"refused a result of content type {content_type or name!r}, which this app does not accept. Either "
                f"write results otherwise (result_serializer), or name it in result_accept_content "
                f"(now {sorted(self._names)})"
            )


def _compressor(name: str | None) -> Compressor | None:
    if not name:
        return None
    content_type = COMPRESSIONS.get(name, name)
    compress = _COMPRESS.get(content_type) or _optional(content_type, "compress")
    if compress is None:
        raise SettingError(
            f"result_compression is {name!r}, which is unknown or needs a library that is not installed. "
            f"Known: {', '.join(sorted(COMPRESSIONS))}.",
            setting="result_compression",
        )
    head = PREFIX + content_type.encode() + b"\0"
    return lambda data: head + compress(data)


def _decompress(data: bytes) -> bytes:
    content_type, packed = ResultCompression.split(data)
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
