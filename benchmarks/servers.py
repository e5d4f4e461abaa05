"""The private servers of one run, and a fresh place on them for each cell."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.catalog import OURS
from celeriac.testing.services import RabbitMQService, RedisService, ask


@dataclass(frozen=True, slots=True)
class Place:
    """Where one cell's messages and results go, and whose CPU counts as the server's."""

    broker: str
    broker_url: str
    result_url: str
    server_pids: tuple[int, ...]


class Servers:
    """Starts each server when it is first asked for, and stops all of them at the end."""

    def __init__(self) -> None:
        self._redis: RedisService | None = None
        self._rabbitmq: RabbitMQService | None = None
        self._folder = Path(tempfile.mkdtemp(prefix="celeriac-bench-", dir="/tmp"))
        self._files = 0

    def close(self) -> None:
        """Stop what was started and remove its data."""
        for server in (self._redis, self._rabbitmq):
            if server is not None:
                server.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    def start(self, broker: str) -> None:
        """Have the broker's server running; nothing to do for sqlite.

        Raises:
            celeriac.testing.services.ServiceError: Its program is not installed, or it does not start.
        """
        if broker == "redis" and self._redis is None:
            self._redis = RedisService()
            self._redis.start()
        if broker == "rabbitmq" and self._rabbitmq is None:
            self._rabbitmq = RabbitMQService()
            self._rabbitmq.start()

    @contextmanager
    def place(self, broker: str, peer: str) -> Iterator[Place]:
        """A fresh place for one cell: an empty Redis, a virtual host, a file."""
        self.start(broker)
        if broker == "redis":
            assert self._redis is not None
            ask(self._redis.port, b"FLUSHALL SYNC\r\n")
            yield Place(broker, self._redis.url, self._redis.url, _pids(self._redis.pid))
        elif broker == "rabbitmq":
            assert self._rabbitmq is not None
            url = self._rabbitmq.fresh_url()
            try:
                yield Place(broker, url, "rpc://", _pids(self._rabbitmq.pid))
            finally:
                self._rabbitmq.delete_vhost(url.rpartition("/")[2])
        else:
            self._files += 1
            folder = self._folder / str(self._files)
            folder.mkdir()
            path = folder / "bench.db"
            url = f"sqlite:///{path}" if peer == OURS else str(path)
            try:
                yield Place(broker, url, url, ())
            finally:
                shutil.rmtree(folder, ignore_errors=True)  # with what a broker keeps beside its file


def _pids(pid: int | None) -> tuple[int, ...]:
    return () if pid is None else (pid,)
