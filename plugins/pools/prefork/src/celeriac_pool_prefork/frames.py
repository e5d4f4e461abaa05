"""What parent and child say to each other: packets, anonymous files for big ones, and a shared page.

A packet is one message on a unix socket that keeps message borders. Down go jobs, up go reports, both as
a msgpack array. What is too big for a packet lies in an anonymous file whose descriptor travels with a
one-byte packet; its pages belong to whoever holds the descriptor, so they vanish with the last holder.

The page is a few 64-bit words that both processes see. The child writes what it runs, the parent what it
asks for; no lock guards it.

Used by `slot` (the parent's end) and `child` (the other).
"""

from __future__ import annotations

import mmap
import os
import socket
import sys
import tempfile
from collections.abc import Sequence
from typing import Final

import msgspec

from celeriac.spec import Job, JobReport
from celeriac_support_pools.process import decode_reports

#: What fits in a packet. Well below the kernel's default socket buffer, so that a few can wait in it.
PACKET_BYTES: Final = 64 * 1024

#: Down: end in an orderly way. Up: the child is ready for jobs. (An empty array.)
STOP = READY = b"\x90"
#: The packet's content is in the anonymous file that came with it; the job's token follows. (nil)
FILED: Final = b"\xc0"
#: Up: the child takes no more jobs and is about to end. (false)
LEAVING: Final = b"\xc2"
#: Up: this byte begins a text that says why the child could not begin. (str 32)
BROKEN: Final = b"\xdb"

#: The outcome by which a child hands a job back to its parent; never leaves the pool.
HANDED_BACK: Final = "handed-back"

# Words of the shared page. The child writes the first two, SINCE before TOKEN when it starts a job: whatever
# the moment of its death, jobs after the one named by TOKEN were not started.
SINCE: Final = 0  #: `time.monotonic_ns` at which the running job began, 0 between jobs
TOKEN: Final = 1  #: one more than the token of the job that was started last
SOFT: Final = 2  #: parent: one more than the token of the job that SIGUSR1 is meant for; the child clears it
ASKED: Final = 3  #: parent: how many tokens it has ever put into the ring that follows
CANCELLED: Final = 4  #: parent: a ring of tokens (plus one) that must not start
CANCELLED_LIMIT: Final = mmap.PAGESIZE // 8 - CANCELLED

_CLOSE_ON_EXEC: Final = getattr(socket, "MSG_CMSG_CLOEXEC", 0)
_ONE_DESCRIPTOR: Final = socket.CMSG_SPACE(4)

encode: Final = msgspec.msgpack.Encoder().encode
decode_jobs: Final = msgspec.msgpack.Decoder(list[Job]).decode


class Inbox:
    """Reads packets; one buffer for all sockets of a process."""

    def __init__(self) -> None:
        self._buffer = bytearray(PACKET_BYTES)
        self._view = memoryview(self._buffer)

    def receive(self, sock: socket.socket, flags: int = 0) -> tuple[memoryview, int | None]:
        """One packet and the descriptor that came with it. The view is good until the next call; empty: the end.

        Raises:
            BlockingIOError: Nothing is there, and `flags` says not to wait.
        """
        size, ancillary, _, _ = sock.recvmsg_into((self._buffer,), _ONE_DESCRIPTOR, flags | _CLOSE_ON_EXEC)
        if not ancillary:
            return self._view[:size], None
        return self._view[:size], descriptor(ancillary)


def socket_pair() -> tuple[socket.socket, socket.socket]:
    """Two connected unix sockets that keep message borders; the first one's buffer holds a few packets."""
    kind = getattr(socket, "SOCK_SEQPACKET", socket.SOCK_DGRAM)
    try:
        pair = socket.socketpair(socket.AF_UNIX, kind)
    except OSError:  # macOS names SOCK_SEQPACKET but has none for unix sockets
        pair = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    for sock in pair:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 * PACKET_BYTES)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 * PACKET_BYTES)
    return pair


def send_file(sock: socket.socket, fd: int, token: int = 0) -> None:
    """Send a short packet that carries `fd`, and says whose job is in the file."""
    rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, fd.to_bytes(4, sys.byteorder))
    sock.sendmsg([FILED, token.to_bytes(8, sys.byteorder)], [rights])


def token_of_file(packet: bytes) -> int:
    """The token in a packet that carries a file."""
    return int.from_bytes(packet[1:], sys.byteorder)


def descriptor(ancillary: list[tuple[int, int, bytes]]) -> int:
    """The descriptor that came beside a packet; the receiver's to close."""
    return int.from_bytes(ancillary[0][2][:4], sys.byteorder)


def make_file(data: bytes) -> int:
    """Put `data` into an anonymous file; the descriptor is the caller's to close."""
    fd = _open_anonymous()
    try:
        view = memoryview(data)
        while view:
            view = view[os.write(fd, view) :]
    except BaseException:
        os.close(fd)
        raise
    return fd


def read_reports(fd: int) -> list[JobReport]:
    """The reports in an anonymous file; closes `fd`."""
    try:
        with mmap.mmap(fd, 0, access=mmap.ACCESS_READ) as content:
            return decode_reports(content)
    finally:
        os.close(fd)


def read_jobs(fd: int) -> list[Job]:
    """The jobs in an anonymous file; leaves `fd` open."""
    with mmap.mmap(fd, 0, access=mmap.ACCESS_READ) as content:
        return decode_jobs(content)


def size_of(jobs: Sequence[Job]) -> int:
    """At most so many bytes these jobs take in a packet."""
    return sum(len(job.raw) + 4 * len(job.queue) + 80 for job in jobs) + 5


def _open_anonymous() -> int:
    if hasattr(os, "memfd_create"):
        return os.memfd_create("celeriac-job", os.MFD_CLOEXEC)
    with tempfile.TemporaryFile(buffering=0) as file:
        return os.dup(file.fileno())
