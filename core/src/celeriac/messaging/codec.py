"""Bodies to bytes and back: serializer, compression, and which content types are accepted.

Called by `protocol` (sending) and by `execution` (receiving). Limits apply before anything is decoded.
"""

from __future__ import annotations

import bz2
import importlib.util
import lzma
import zlib
from collections.abc import Callable, Iterable
from typing import Any, Final, Protocol

from celeriac.exceptions import ImproperlyConfigured, SecurityError
from celeriac.messaging.seal import Seal
from celeriac.spec.serializer import Serializer

MAX_BODY_BYTES: Final = 256 * 1024 * 1024
#: A decompressed body may be this many times its compressed size, or `FREE_BYTES`, whichever is more.
MAX_RATIO: Final = 200
FREE_BYTES: Final = 16 * 1024 * 1024

#: kombu's names for compression → the MIME type in the header. gzip is a zlib stream (kombu's own habit).
COMPRESSION_TYPES: Final = {
    "gzip": "application/x-gzip",
    "zlib": "application/x-gzip",
    "bzip2": "application/x-bz2",
    "bzip": "application/x-bz2",
    "lzma": "application/x-lzma",
    "xz": "application/x-lzma",
    "zstd": "application/zstd",
    "zstandard": "application/zstd",
    "brotli": "application/x-brotli",
}


class SerializerSource(Protocol):
    """Where serializers come from: the kernel."""

    def make_serializer(self, name: str) -> Serializer: ...

    def serializer_for_content_type(self, content_type: str) -> Serializer: ...


class ContentDisallowed(SecurityError):
    """A message has a content type that this app does not accept."""


def compress(body: bytes, name: str) -> tuple[bytes, str]:
    """Compressed bytes and the MIME type that the header `compression` must name.

    Raises:
        ImproperlyConfigured: No such method here.
    """
    mime = COMPRESSION_TYPES.get(name, name)
    try:
        pack = _COMPRESSORS[mime]
    except KeyError:
        known = ", ".join(sorted({key for key, value in COMPRESSION_TYPES.items() if value in _COMPRESSORS}))
        raise ImproperlyConfigured(f"no compression method is called {name!r}; there are {known}") from None
    return pack(body), mime


def decompress(body: bytes, mime: str) -> bytes:
    """The bytes before compression, within the limits.

    Raises:
        ValueError: An unknown method, broken bytes, or a body that grows past the limits.
    """
    mime = COMPRESSION_TYPES.get(mime, mime)
    opener = _DECOMPRESSORS.get(mime)
    if opener is None:
        raise ValueError(f"unknown compression {mime!r}")
    limit = min(max(len(body) * MAX_RATIO, FREE_BYTES), MAX_BODY_BYTES)
    try:
        return opener(body, limit)
    except (zlib.error, OSError, EOFError, lzma.LZMAError) as exc:
        raise ValueError(f"body is not valid {mime}: {exc}") from exc


def _bounded(make: Callable[[], Any]) -> Callable[[bytes, int], bytes]:
    def run(body: bytes, limit: int) -> bytes:
        data = make().decompress(body, limit + 1)
        if len(data) > limit:
            raise ValueError(f"{len(body)} compressed bytes grow past {limit}")
        return bytes(data)

    return run


def _zstd_compress(body: bytes) -> bytes:
    zstandard = importlib.import_module("zstandard")
    return bytes(zstandard.ZstdCompressor().compress(body))


def _zstd_decompress(body: bytes, limit: int) -> bytes:
    zstandard = importlib.import_module("zstandard")
    try:
        reader = zstandard.ZstdDecompressor().stream_reader(body)
        data = bytes(reader.read(limit + 1))
    except zstandard.ZstdError as exc:
        raise ValueError(f"body is not valid application/zstd: {exc}") from exc
    if len(data) > limit:
        raise ValueError(f"{len(body)} compressed bytes grow past {limit}")
    return data


def _brotli_compress(body: bytes) -> bytes:
    return bytes(importlib.import_module("brotli").compress(body))


def _brotli_decompress(body: bytes, limit: int) -> bytes:
    brotli = importlib.import_module("brotli")
    reader = brotli.Decompressor()
    try:
        data = bytes(reader.process(body, output_buffer_limit=limit + 1))
        while not reader.is_finished() and len(data) <= limit:
            more = reader.process(b"", output_buffer_limit=limit + 1 - len(data))
            if not more:
                raise ValueError("body is not valid application/x-brotli: it ends too early")
            data += more
    except brotli.error as exc:
        raise ValueError(f"body is not valid application/x-brotli: {exc}") from exc
    if len(data) > limit:
        raise ValueError(f"{len(body)} compressed bytes grow past {limit}")
    return data


_COMPRESSORS: dict[str, Callable[[bytes], bytes]] = {
    "application/x-gzip": zlib.compress,
    "application/x-bz2": bz2.compress,
    "application/x-lzma": lzma.compress,
}
_DECOMPRESSORS: dict[str, Callable[[bytes, int], bytes]] = {
    "application/x-gzip": _bounded(zlib.decompressobj),
    "application/x-bz2": _bounded(bz2.BZ2Decompressor),
    "application/x-lzma": _bounded(lzma.LZMADecompressor),
}
if importlib.util.find_spec("brotli"):
    _COMPRESSORS["application/x-brotli"] = _brotli_compress
    _DECOMPRESSORS["application/x-brotli"] = _brotli_decompress
if importlib.util.find_spec("zstandard"):
    _COMPRESSORS["application/zstd"] = _zstd_compress
    _DECOMPRESSORS["application/zstd"] = _zstd_decompress


class Codec:
    """Encodes and decodes bodies for one app.

    Args:
        source: Makes serializers by name and by content type.
        accept: Names or content types that may be decoded.
        allow_unsafe: Serializers whose loading can run code may be in `accept`.
        seal: Put on every call and asked of every one, if the app has a key.
    """

    def __init__(
        self, source: SerializerSource, accept: Iterable[str], allow_unsafe: bool, seal: Seal | None = None
    ) -> None:
        self._source = source
        self._accept = frozenset(accept)
        self._allow_unsafe = allow_unsafe
        self.seal = seal
        self._by_name: dict[str, Serializer] = {}
        self._loaders: dict[str, Callable[[bytes], Any]] = {}

    def serializer(self, name: str) -> Serializer:
        """The serializer of that name, made once."""
        found = self._by_name.get(name)
        if found is None:
            found = self._by_name[name] = self._source.make_serializer(name)
        return found

    def loader(self, content_type: str) -> Callable[[bytes], Any]:
        """The function that decodes this content type.

        Raises:
            ContentDisallowed: Not accepted, or unsafe and not allowed.
        """
        found = self._loaders.get(content_type)
        if found is None:
            found = self._loaders[content_type] = self._find_loader(content_type)
        return found

    def decode(self, body: bytes, content_type: str, compression: str | None = None) -> Any:
        """The object in a body.

        Raises:
            ContentDisallowed: See `loader`.
            ValueError: Not valid, or over the limits.
        """
        load = self._loaders.get(content_type) or self.loader(content_type)
        if compression:
            body = decompress(body, compression)
        if len(body) > MAX_BODY_BYTES:
            raise ValueError(f"body of {len(body)} bytes is larger than {MAX_BODY_BYTES}")
        return load(body)

    def check_accept(self) -> None:
        """Refuse an accept list that asks for unsafe serializers without saying so aloud.

        Raises:
            SecurityError: Names the serializer and the setting.
        """
        for name in self._accept:
            if "/" not in name:
                self._require_safe(self.serializer(name))

    def _find_loader(self, content_type: str) -> Callable[[bytes], Any]:
        # From what is accepted to its content type, never from a message's text to a plugin.
        for name in self._accept:
            serializer = self._source.serializer_for_content_type(name) if "/" in name else self.serializer(name)
            if serializer.content_type == content_type:
                self._require_safe(serializer)
                return serializer.loads
        raise ContentDisallowed(
            f"refused a message of content type {content_type!r}: accept_content is {sorted(self._accept)}"
        )

    def _require_safe(self, serializer: Serializer) -> None:
        if serializer.unsafe and not self._allow_unsafe:
            raise SecurityError(
                f"accept_content names {serializer.name!r}, whose messages can run any code in the reader. If everyone "
                f"who can write to the broker is trusted, say so: allow_unsafe_serializers = True."
            )
