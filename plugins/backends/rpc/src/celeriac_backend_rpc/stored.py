"""The stored form of a result here: its bytes with their content type, as the message that carries it has them.

    content type · newline · content encoding · newline · body

Pure functions; called by `backend` and `mailbox`.
"""

from __future__ import annotations


def join(content_type: str, content_encoding: str, body: bytes) -> bytes:
    """The stored form."""
    return f"{content_type}\n{content_encoding}\n".encode() + body


def split(data: bytes) -> tuple[str, str, bytes]:
    """Content type, content encoding and body.

    Raises:
        ValueError: Not a stored form.
    """
    parts = data.split(b"\n", 2)
    if len(parts) != 3:
        raise ValueError(f"not a stored result: {data[:60]!r}")
    return parts[0].decode("utf-8", "replace"), parts[1].decode("utf-8", "replace"), parts[2]
