"""Bytes that once broke a reader, or might: a folder for each kind of reader, a file for each entry.

The fuzz tests begin with them, and the tests of workers put them in queues. Whoever finds another adds a file.
"""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).parent


def read_corpus(kind: str) -> list[bytes]:
    """The entries of one kind, in the order of their names."""
    return [path.read_bytes() for path in sorted((ROOT / kind).iterdir())]
