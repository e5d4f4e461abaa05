"""What parent and child say to each other: frames on a stream, and a shared page.

A frame is its length (8 bytes), a byte that says what it is, and its content. Down go jobs and what to do with them, up
go reports. Two 64-bit words of shared memory name the one job that a signal is meant for.

Used by `pool` (the parent's end) and `child` (the other).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Final

import msgspec

from celeriac.spec import Job

# Down.
RUN: Final = b"J"  #: jobs to begin at once
END: Final = b"E"  #: a token: end this job
STOP: Final = b"S"  #: end when the last job has ended
GIVE_UP: Final = b"X"  #: end the jobs that run, then yourself
# Up.
READY: Final = b"R"
BROKEN: Final = b"B"  #: a text: why it could not begin
REPORTS: Final = b"P"

# Words of the page, written by the parent before it sends a signal.
MEANT: Final = 0  #: one more than the token of the job that the signal is for
CANCEL: Final = 1  #: 1 if that job is to be ended whatever its limits are

_HEAD: Final = struct.Struct("<Qc")

encode: Final = msgspec.msgpack.Encoder().encode
decode_jobs: Final = msgspec.msgpack.Decoder(list[Job]).decode
decode_token: Final = msgspec.msgpack.Decoder(int).decode


def frame(kind: bytes, content: bytes = b"") -> bytes:
    """One frame."""
    return _HEAD.pack(len(content), kind) + content


class Reader:
    """Cuts a stream into frames."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[tuple[bytes, bytes]]:
        """The frames that are complete now: (kind, content)."""
        buffer = self._buffer
        buffer += data
        while len(buffer) >= _HEAD.size:
            size, kind = _HEAD.unpack_from(buffer)
            end = _HEAD.size + size
            if len(buffer) < end:
                return
            content = bytes(memoryview(buffer)[_HEAD.size : end])
            del buffer[:end]
            yield kind, content
