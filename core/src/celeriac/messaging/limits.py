"""What bytes from anywhere may cost: judged before anything is built from them (B26). Pure; called by `codec`.

A few compressed bytes can stand for very many, and few bytes of JSON for large objects: `[]` takes two bytes on the
wire and eighty in memory. So a compressed body is opened piece by piece, up to a size that goes with what was sent, and
what stands in it is weighed by its punctuation before a parser sees it. Bodies that came as they are cost their sender
as much as they cost us, and are held to `max_bytes` alone. Depth and the digits of numbers are the parsers' own limits:
of the msgspec, json and msgpack packages, and of Python.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from msgspec import Struct

#: An opened body may always be so large.
FREE_BYTES: Final = 8 * 1024 * 1024
#: What an opened body may become in memory, in any case, and for each byte that was sent.
FREE_COST: Final = 48 * 1024 * 1024
COST_PER_BYTE: Final = 100
#: An opened body up to here is not weighed.
LIGHT_BYTES: Final = 256 * 1024

# What the things that a mark stands for take in memory, roughly: measured with CPython 3.11.
_OBJECT, _LIST, _PAIR, _ITEM = 64, 88, 120, 64
_BINARY_CONTAINERS: Final = bytes(range(0x80, 0xA0))
_BINARY_TEXTS: Final = bytes(range(0xA0, 0xC0))


class Limits(Struct, frozen=True):
    """The limits of one app.

    Attributes:
        max_bytes: Of a body, as it came and when it is opened.
        max_ratio: How many times its compressed size an opened body may have, beyond `FREE_BYTES`.
    """

    max_bytes: int = 256 * 1024 * 1024
    max_ratio: float = 40.0

    def opened(self, sent: int) -> int:
        """The size up to which a compressed body of so many bytes is opened."""
        return int(min(max(sent * self.max_ratio, FREE_BYTES), self.max_bytes))

    def check_size(self, size: int) -> None:
        """Raise ValueError if a body is larger than allowed."""
        if size > self.max_bytes:
            raise ValueError(f"body of {size} bytes is larger than {self.max_bytes} (setting message_max_bytes)")


USUAL: Final = Limits()


def gather(chunks: Iterable[bytes], limit: int, sent: int) -> bytes:
    """Put an opened body together, as long as it stays within the limit.

    Raises:
        ValueError: It does not.
    """
    out: list[bytes] = []
    size = 0
    for chunk in chunks:
        size += len(chunk)
        if size > limit:
            out.clear()
            raise ValueError(
                f"{sent} compressed bytes grow past {limit} (settings message_max_ratio, message_max_bytes)"
            )
        out.append(chunk)
    return b"".join(out)


def check_cost(body: bytes, sent: int, content_type: str) -> None:
    """Weigh an opened body.

    Args:
        sent: How many bytes of it were sent.
    Raises:
        ValueError: What is in it would take too much memory.
    """
    if len(body) <= LIGHT_BYTES:
        return
    weigh = _weigh_text if content_type.endswith(("json", "yaml")) else _weigh_binary
    cost, allowed = weigh(body), max(FREE_COST, COST_PER_BYTE * sent)
    if cost > allowed:
        raise ValueError(
            f"{sent} compressed bytes hold about {cost} bytes of objects, of {allowed} allowed; "
            "send it uncompressed, or in several calls"
        )


def _weigh_text(body: bytes) -> int:
    count = body.count
    things = count(b"{") * _OBJECT + count(b"[") * _LIST + count(b":") * _PAIR + count(b",") * _ITEM
    # One letter beyond the basic plane makes four bytes of every other letter of its text.
    return things + len(body) * (1 if body.isascii() and b"\\u" not in body else 4)


def _weigh_binary(body: bytes) -> int:
    size = len(body)
    containers = size - len(body.translate(None, _BINARY_CONTAINERS))
    texts = size - len(body.translate(None, _BINARY_TEXTS))
    return containers * _LIST + texts * _ITEM + size * 8
