"""Limits before decoding: few bytes cannot cost much memory, and what is within the limits comes through whole."""

from __future__ import annotations

import bz2
import json
import lzma
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest

from celeriac import Celery
from celeriac.messaging import codec
from celeriac.messaging.codec import compress, decompress
from celeriac.messaging.limits import Limits, check_cost

MB = 1024 * 1024

#: Decodes a hostile body in a process of its own and prints by how many bytes its memory grew at the worst.
_CHILD = """
import resource, sys
from celeriac import Celery
app = Celery("victim", broker="memory://", set_as_current=False)
app.conf.accept_content = ["json", "msgpack"]
body, kind, compression = open(sys.argv[1], "rb").read(), sys.argv[2], sys.argv[3] or None
app.codec.decode(b"[]", "application/json")
app.codec.loader(kind)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    app.codec.decode(body, kind, compression)
    print("decoded")
except ValueError as exc:
    print("refused")
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024)
"""

JSON, MSGPACK = "application/json", "application/x-msgpack"
GZIP, BZ2, LZMA = "application/x-gzip", "application/x-bz2", "application/x-lzma"


def _zstd_with_a_window_of_a_gigabyte(size: int) -> bytes:
    """A frame whose header asks for a window of 1 GB, with one block that repeats a byte."""
    block = (size << 3 | 1 << 1 | 1).to_bytes(3, "little") + b" "
    return b"\x28\xb5\x2f\xfd\x00" + bytes(((30 - 10) << 3,)) + block


def _lzma_with_a_dictionary_of_a_gigabyte() -> bytes:
    filters = [{"id": lzma.FILTER_LZMA2, "dict_size": 1 << 20}]
    return lzma.compress(b" " * 100, format=lzma.FORMAT_ALONE, filters=[{"id": lzma.FILTER_LZMA1}])[:1] + (
        (1 << 30).to_bytes(4, "little") + lzma.compress(b" ", format=lzma.FORMAT_RAW, filters=filters)
    )


BOMBS: dict[str, Callable[[], tuple[bytes, str, str]]] = {
    "zeros": lambda: (zlib.compress(b"[" + b"0," * 10 * MB + b"0]"), JSON, GZIP),
    "blanks in bz2": lambda: (bz2.compress(b" " * 40 * MB), JSON, BZ2),
    "blanks in lzma": lambda: (lzma.compress(b" " * 40 * MB), JSON, LZMA),
    "lists": lambda: (zlib.compress(b"[" + b"[]," * (7 * MB // 3) + b"[]]"), JSON, GZIP),
    "objects": lambda: (zlib.compress(b"[" + b'{"a":{}},' * (7 * MB // 9) + b"[]]"), JSON, GZIP),
    "wide letters": lambda: (zlib.compress(b'["\xf0\x9f\x98\x80' + b"a" * 7 * MB + b'"]'), JSON, GZIP),
    "escaped wide letters": lambda: (zlib.compress(b'["\\ud83d\\ude00' + b"a" * 30 * MB + b'"]'), JSON, GZIP),
    "packed lists": lambda: (zlib.compress(b"\xdd\x00\x60\x00\x00" + b"\x90" * 0x600000), MSGPACK, GZIP),
    "deep": lambda: (b"[" * 200_000, JSON, ""),
    "deep objects": lambda: (b'{"a":' * 40_000, JSON, ""),
    "packed deep": lambda: (b"\x91" * 200_000, MSGPACK, ""),
    "digits": lambda: (b"[" + b"9" * 190_000 + b"]", JSON, ""),
    "a huge dictionary": lambda: (_lzma_with_a_dictionary_of_a_gigabyte(), JSON, LZMA),
    "a huge window": lambda: (_zstd_with_a_window_of_a_gigabyte(100_000), JSON, "application/zstd"),
}


@pytest.mark.parametrize("what", BOMBS)
def test_B26_a_bomb_of_200_kb_costs_less_than_64_mb(what: str, tmp_path: Path) -> None:
    body, kind, compression = BOMBS[what]()
    assert len(body) <= 200_000
    path = tmp_path / "bomb"
    path.write_bytes(body)
    words = [sys.executable, "-c", _CHILD, str(path), kind, compression]
    ran = subprocess.run(words, capture_output=True, text=True, timeout=120, check=True)
    verdict, grown = ran.stdout.split()
    assert verdict == "refused" or what == "wide letters"
    assert int(grown) < 64 * MB, f"{what} cost {int(grown) / MB:.0f} MB"


@pytest.mark.parametrize("name", ["gzip", "bzip2", "lzma"])
@pytest.mark.parametrize("size", [0, 1, 100_000, 5 * MB])
def test_what_is_within_the_limits_comes_through_whole(name: str, size: int) -> None:
    body = (b"0123456789abcdef" * (size // 16 + 1))[:size]
    packed, mime = compress(body, name)
    assert decompress(packed, mime) == body


@pytest.mark.parametrize("mime", [GZIP, BZ2, LZMA])
def test_a_body_that_ends_too_early_is_refused(mime: str) -> None:
    pack = {GZIP: zlib.compress, BZ2: bz2.compress, LZMA: lzma.compress}[mime]
    packed = pack(json.dumps(list(range(10_000))).encode())
    for cut in (0, 1, len(packed) // 2, len(packed) - 1):
        with pytest.raises(ValueError, match="not valid"):
            decompress(packed[:cut], mime)


def test_a_large_and_ordinary_call_may_be_compressed() -> None:
    rows = [{"id": n, "name": f"row {n}", "value": n / 7} for n in range(60_000)]
    body = json.dumps([[rows], {}, {}]).encode()
    packed, mime = compress(body, "gzip")
    assert len(body) > 3 * MB
    app = Celery("sender", broker="memory://", set_as_current=False)
    assert app.codec.decode(packed, JSON, mime)[0][0] == rows


def test_the_settings_are_the_limits() -> None:
    app = Celery("strict", broker="memory://", set_as_current=False)
    app.conf.message_max_bytes = 1000
    with pytest.raises(ValueError, match=r"larger than 1000 .*message_max_bytes"):
        app.codec.decode(b" " * 1001, JSON)
    with pytest.raises(ValueError, match="grow past 1000"):
        app.codec.decode(zlib.compress(b" " * 2000), JSON, "gzip")
    assert Limits(max_ratio=10).opened(10 * MB) == 100 * MB
    assert Limits().opened(1) == 8 * MB


def test_nan_and_repeated_keys_are_read_as_celery_reads_them() -> None:
    app = Celery("reader", broker="memory://", set_as_current=False)
    assert app.codec.decode(b'{"a": 1, "a": 2}', JSON) == {"a": 2}
    (value,) = app.codec.decode(b"[NaN]", JSON)
    assert value != value


def test_small_bodies_are_not_weighed() -> None:
    check_cost(b"[]," * 80_000, 10, JSON)
    with pytest.raises(ValueError, match="hold about"):
        check_cost(b"[]," * 800_000, 10, JSON)
    assert codec.CHUNK_BYTES == MB
