"""Bodies to bytes and back: serializer, compression, and which content types are accepted.

Called by `protocol` (sending) and by `execution` (receiving). Limits apply before anything is decoded.
"""

from __future__ import annotations

import bz2
import importlib.util
import lzma
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Final, Protocol

from celeriac.exceptions import ContentDisallowed, ImproperlyConfigured, SecurityError
from celeriac.messaging.limits import USUAL, Limits, check_cost, gather
from celeriac.messaging.seal import Seal
from celeriac.spec.results import COMPRESSIONS
from celeriac.spec.serializer import Serializer

#: Opened bodies are looked at in pieces of this size.
CHUNK_BYTES: Final = 1024 * 1024
#: The most that a body may ask a decompressor to set aside for itself.
MAX_WINDOW_BYTES: Final = 32 * 1024 * 1024


class SerializerSource(Protocol):
    """Where serializers come from: the kernel."""

    def make_serializer(self, name: str) -> Serializer: ...

    def serializer_for_content_type(self, content_type: str) -> Serializer: ...


def compress(body: bytes, name: str) -> tuple[bytes, str]:
    """Compressed bytes and the MIME type that the header `compression` must name.

    Raises:
        ImproperlyConfigured: No such method here.
    """
    mime = COMPRESSIONS.get(name, name)
    try:
        pack = _COMPRESSORS[mime]
    except KeyError:
        known = ", ".join(sorted({key for key, value in COMPRESSIONS.items() if value in _COMPRESSORS}))
        raise ImproperlyConfigured(f"no compression method is called {name!r}; there are {known}") from None
    return pack(body), mime


def decompress(body: bytes, mime: str, limits: Limits = USUAL) -> bytes:
    """The bytes before compression, within the limits.

    Raises:
        ValueError: An unknown method, broken bytes, or a body that grows past the limits.
    """
    mime = COMPRESSIONS.get(mime, mime)
    opener = _DECOMPRESSORS.get(mime)
    if opener is None:
        raise ValueError(f"unknown compression {mime!r:.80}")
    limits.check_size(len(body))
    try:
        return gather(opener(body), limits.opened(len(body)), len(body))
    except (zlib.error, OSError, EOFError, lzma.LZMAError) as exc:
        raise ValueError(f"body is not valid {mime}: {exc}") from exc


def _open_zlib(body: bytes) -> Iterator[bytes]:
    reader = zlib.decompressobj()
    while not reader.eof:
        chunk = reader.decompress(body, CHUNK_BYTES)
        yield chunk
        body = reader.unconsumed_tail
        if not chunk and not body and not reader.eof:
            raise EOFError("it ends too early")


def _opener(make: Callable[[], Any]) -> Callable[[bytes], Iterator[bytes]]:
    """For the readers of bz2 and lzma, which keep what they have not looked at."""

    def run(body: bytes) -> Iterator[bytes]:
        reader = make()
        while not reader.eof:
            chunk = reader.decompress(body, CHUNK_BYTES)
            yield chunk
            body = b""
            if reader.needs_input and not reader.eof:
                raise EOFError("it ends too early")

    return run


def _zstd_compress(body: bytes) -> bytes:
    zstandard = importlib.import_module("zstandard")
    return bytes(zstandard.ZstdCompressor().compress(body))


def _open_zstd(body: bytes) -> Iterator[bytes]:
    zstandard = importlib.import_module("zstandard")
    try:
        reader = zstandard.ZstdDecompressor(max_window_size=MAX_WINDOW_BYTES).stream_reader(body)
        while chunk := reader.read(CHUNK_BYTES):
            yield bytes(chunk)
    except zstandard.ZstdError as exc:
        raise ValueError(f"body is not valid application/zstd: {exc}") from exc


def _brotli_compress(body: bytes) -> bytes:
    return bytes(importlib.import_module("brotli").compress(body))


def _open_brotli(body: bytes) -> Iterator[bytes]:
    brotli = importlib.import_module("brotli")
    reader = brotli.Decompressor()
    try:
        yield bytes(reader.process(body, output_buffer_limit=CHUNK_BYTES))
        while not reader.is_finished():
            more = bytes(reader.process(b"", output_buffer_limit=CHUNK_BYTES))
            if not more:
                raise EOFError("it ends too early")
            yield more
    except brotli.error as exc:
        raise ValueError(f"body is not valid application/x-brotli: {exc}") from exc


_COMPRESSORS: dict[str, Callable[[bytes], bytes]] = {
    "application/x-gzip": zlib.compress,
    "application/x-bz2": bz2.compress,
    "application/x-lzma": lzma.compress,
}
_DECOMPRESSORS: dict[str, Callable[[bytes], Iterator[bytes]]] = {
    "application/x-gzip": _open_zlib,
    "application/x-bz2": _opener(bz2.BZ2Decompressor),
    "application/x-lzma": _opener(lambda: lzma.LZMADecompressor(memlimit=MAX_WINDOW_BYTES)),
}
if importlib.util.find_spec("brotli"):
    _COMPRESSORS["application/x-brotli"] = _brotli_compress
    _DECOMPRESSORS["application/x-brotli"] = _open_brotli
if importlib.util.find_spec("zstandard"):
    _COMPRESSORS["application/zstd"] = _zstd_compress
    _DECOMPRESSORS["application/zstd"] = _open_zstd


class Codec:
    """Encodes and decodes bodies for one app.

    Args:
        source: Makes serializers by name and by content type.
        accept: Names or content types that may be decoded.
        allow_unsafe: Serializers whose loading can run code may be in `accept`.
        repr_depth: How deep arguments are shown in headers, for logs and monitors.
        protocol: Which version of Celery's message protocol calls are written in: 2 or 1.
        seal: Put on every call and asked of every one, if the app has a key.
        limits: What bodies may cost.
    """

    def __init__(
        self,
        source: SerializerSource,
        accept: Iterable[str],
        allow_unsafe: bool,
        seal: Seal | None = None,
        limits: Limits = USUAL,
        repr_depth: int = 3,
        protocol: int = 2,
    ) -> None:
        self._source = source
        self._accept = frozenset(accept)
        self._allow_unsafe = allow_unsafe
        self.seal = seal
        self._limits = limits
        self._max_bytes = limits.max_bytes
        self.repr_depth = repr_depth
        self.protocol = protocol
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
            if type(compression) is not str:
                raise ValueError(f"header compression must be text, not {compression!r:.80}")
            sent, body = len(body), decompress(body, compression, self._limits)
            check_cost(body, sent, content_type)
        elif len(body) > self._max_bytes:
            self._limits.check_size(len(body))
        return load(body)

    def check_accept(self) -> None:
        """Refuse an accept list that asks for unsafe serializers without saying so aloud.

        Raises:
            SecurityError: Names the serializer and the setting.
        """
        for name in self._accept:
            if "/" not in name:
                self._require_safe(self.serializer(name))

    def check_chosen(self, conf: Mapping[str, Any]) -> None:
        """Refuse settings by which nothing could be sent, before anybody tries.

        Raises:
            PluginNotFound: There is no such serializer.
            ImproperlyConfigured: There is no such compression.
        """
        for setting in ("task_serializer", "event_serializer"):
            self.serializer(conf[setting])
        if conf["task_compression"]:
            compress(b"", conf["task_compression"])

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
