"""Where a campaign takes place: a server of its own behind a wire that fails on demand, or a file system of its own."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import urlsplit

from celeriac.testing.faults import FaultProxy
from celeriac.testing.services import RabbitMQService, RedisService
from celeriac_support_redis.wire import connect, parse_url

#: Room enough for a campaign.
ROOM_MB = 512


class Place:
    """One broker and result store.

    Args:
        durable: Redis writes everything to its disk before it answers.
        room_mb: Room for sqlite's file, when it has a file system of its own.
        server: A RabbitMQ that runs already, whose life is not ours to end; the place is a virtual host on it.

    Attributes:
        broker, backend: URLs for workers and clients, through the wire if there is one.
        direct: The broker's, past the wire.
        wire, server: None on sqlite.
        file: sqlite's; None elsewhere.
        can_mount: The file has a file system of its own, which may be filled and made read-only.
    """

    def __init__(self, kind: str, *, durable: bool = True, room_mb: int = ROOM_MB, server: Any = None) -> None:
        self.kind = kind
        self._durable, self._room_mb = durable, room_mb
        self._is_guest = server is not None
        self.vhost = "/"
        self.direct = ""
        self.folder = Path(tempfile.mkdtemp(prefix="celeriac-chaos-", dir="/tmp"))
        self.wire: FaultProxy | None = None
        self.server: Any = server
        self.file: Path | None = None
        self.can_mount = False
        try:
            getattr(self, f"_make_{kind}")()
        except BaseException:
            self.close()
            raise

    def _make_redis(self) -> None:
        self.server = RedisService(durable=self._durable)
        self.server.start()
        self.direct = self.server.url
        self.wire = FaultProxy(self.direct)
        self.broker = self.backend = self.wire.url

    def _make_amqp(self) -> None:
        if not self._is_guest:
            self.server = RabbitMQService()
            self.server.start()
        self.direct = self.server.fresh_url()
        self.vhost = urlsplit(self.direct).path[1:]
        self.wire = FaultProxy(self.direct)
        self.broker, self.backend = self.wire.url, f"sqlite:///{self.folder}/results.db"

    def _make_sqlite(self) -> None:
        room = self.folder / "room"
        room.mkdir()
        if os.geteuid() == 0:
            command = ["mount", "-t", "tmpfs", "-o", f"size={self._room_mb}m", "celeriac-chaos", str(room)]
            self.can_mount = subprocess.run(command, check=False, capture_output=True).returncode == 0
        self.file = room / "chaos.db"
        self.direct = self.broker = self.backend = f"sqlite:///{self.file}"

    def redis(self, *words: Any) -> Any:
        """Ask Redis something, past the wire."""
        wire = connect(parse_url(self.server.url)[0])
        try:
            return wire.call(*words)
        finally:
            wire.close()

    def rabbitmqctl(self, *words: str) -> str:
        """Run rabbitmqctl on our node."""
        return subprocess.run(
            ["/usr/lib/rabbitmq/bin/rabbitmqctl", *words],
            env={**os.environ, **self.server.environment()},
            check=True,
            capture_output=True,
            text=True,
            timeout=90,
        ).stdout

    def remount(self, how: str) -> None:
        """Change the options of the file's own file system."""
        assert self.file is not None
        subprocess.run(["mount", "-o", f"remount,{how}", str(self.file.parent)], check=True, capture_output=True)

    def close(self) -> None:
        """Leave nothing behind."""
        if self.wire is not None:
            self.wire.close()
        if self._is_guest:
            self.server.delete_vhost(self.vhost)
        elif self.server is not None:
            self.server.close()
        if self.can_mount and self.file is not None:
            subprocess.run(["umount", "-l", str(self.file.parent)], check=False, capture_output=True)
        shutil.rmtree(self.folder, ignore_errors=True)

    def __enter__(self) -> Place:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
