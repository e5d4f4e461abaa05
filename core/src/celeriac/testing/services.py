"""Private servers for tests: Redis, Memcached, RabbitMQ, PostgreSQL and MariaDB as real programs, and nobody else's.

Every service starts in the foreground on free ports of 127.0.0.1 in a folder of its own, runs as root or as an ordinary
user, needs neither docker nor systemd, and ends with the process that started it. Servers which already run on the
machine are never used or touched. Nothing but the standard library is needed here.

    with RedisService() as redis:
        app = Celery(broker=redis.url)
        redis.kill()      # a crash: what was not on disk is gone
        redis.restart()   # same ports, same folder

The classes are used directly by fault tests, which want a server to break, and through `celeriac.testing.fixtures`
by all the others, which share one.
"""

from __future__ import annotations

import base64
import contextlib
import errno
import glob
import http.client
import itertools
import json
import os
import pwd
import random
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar, TypeVar

__all__ = [
    "MariaDBService",
    "MemcachedService",
    "PostgresService",
    "RabbitMQService",
    "RedisClusterService",
    "RedisNodeService",
    "RedisService",
    "SentinelService",
    "Service",
    "ServiceError",
    "ServiceFailed",
    "ServiceMissing",
]

HOST = "127.0.0.1"
POLL_INTERVAL_S = 0.05
ANSWER_S = 30.0  # for an answer that is sure to come, however busy the machine
START_TRIES = 3  # between choosing a free port and binding it, somebody else may take it
FEWEST_PORTS = 2000  # to choose from: among fewer, two who choose at a time meet too often
LOG_TAIL_CHARS = 2000
SBIN = ("/usr/local/sbin", "/usr/sbin", "/sbin")  # left out of an ordinary user's PATH

S = TypeVar("S", bound="Service")


class ServiceError(Exception):
    """A private server cannot be had."""


class ServiceMissing(ServiceError):
    """The server's program is not installed."""

    def __init__(self, service: str, program: str, package: str) -> None:
        self.service, self.program, self.package = service, program, package
        super().__init__(f"{service}: no program {program!r} here. On Debian and Ubuntu: apt-get install {package}")


class ServiceFailed(ServiceError):
    """The server ended, or was not ready in time; `log` has its last words."""

    def __init__(self, service: str, what: str, log: str) -> None:
        self.service, self.what, self.log = service, what, log
        super().__init__(f"{service} {what}\n{log}".rstrip())


class Service:
    """One private server: what all of them have in common.

    A subclass says which program it is, how to write its command line and when it is ready. Ports and folder are
    chosen at the first start and kept until `close`, so that `restart` finds the old data and clients find the server.
    Start a service in a thread that outlives it: where `setpriv` is installed, the server ends with that thread.
    """

    name: ClassVar[str]
    package: ClassVar[str]
    port_count: ClassVar[int] = 1
    account: ClassVar[str | None] = None  # who runs it when we are root; None: root may
    stop_signal: ClassVar[signal.Signals] = signal.SIGTERM
    close_signal: ClassVar[signal.Signals] = signal.SIGKILL  # its data goes too, so why wait for it to be tidied up
    start_timeout_s: ClassVar[float] = 60.0
    stop_timeout_s: ClassVar[float] = 30.0

    def __init__(self) -> None:
        self.ports: list[int] = []
        self.folder = Path()
        self._server: subprocess.Popen[bytes] | None = None

    # what a subclass says

    @property
    def url(self) -> str:
        """Where a client finds it."""
        raise NotImplementedError

    def command(self) -> Sequence[str | Path]:
        """The command line, program first; ports and folder are chosen by now.

        Raises:
            ServiceMissing: The program is not installed.
        """
        raise NotImplementedError

    def environment(self) -> Mapping[str, str]:
        """What the server's environment has beyond ours."""
        return {}

    def prepare(self) -> None:
        """Write what must stand in the fresh folder before the first start."""

    def is_ready(self) -> bool:
        """Whether the server answers in its own protocol."""
        raise NotImplementedError

    # what a test does with it

    @property
    def port(self) -> int:
        """The port that clients use."""
        return self.ports[0]

    @property
    def pid(self) -> int | None:
        """The server's process, None when it is stopped."""
        return self._server.pid if self._server is not None and self.is_running else None

    @property
    def is_running(self) -> bool:
        return self._server is not None and self._server.poll() is None

    def start(self) -> None:
        """Start the server and return when it answers; does nothing when it runs.

        Raises:
            ServiceMissing: The program is not installed.
            ServiceFailed: It ended early, or did not answer in time.
        """
        if self.is_running:
            return
        if self.folder != Path():
            self._launch()
            return
        for tries_left in reversed(range(START_TRIES)):
            try:
                self._first_start()
                return
            except ServiceFailed as exc:
                self.close()
                if not tries_left or not any(words in exc.log.lower() for words in ("in use", "eaddrinuse")):
                    raise
            except BaseException:
                self.close()
                raise

    def stop(self) -> None:
        """End the server in its own good order; data and ports stay for `restart`."""
        self._end(self.stop_signal)

    def kill(self) -> None:
        """End the server as a crash would: at once, with whatever belongs to it."""
        self._end(signal.SIGKILL)

    def restart(self) -> None:
        """Stop the server if it runs, and start it on the same ports and data."""
        self.stop()
        self.start()

    def freeze(self) -> None:
        """Let the server hang: connections stay open and nothing is answered until `thaw`.

        Its threads stop one by one, some after the signal was sent: this returns when all of them stand still.
        """
        self._signal(signal.SIGSTOP)
        if self._server is not None and hasattr(os, "waitid"):
            with contextlib.suppress(ChildProcessError):  # it had ended, and was waited for
                os.waitid(os.P_PID, self._server.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)

    def thaw(self) -> None:
        """Let a frozen server go on where it was."""
        self._signal(signal.SIGCONT)

    def close(self) -> None:
        """End the server and forget its data; a later `start` makes a new one."""
        self._end(self.close_signal)
        if self.folder != Path():
            shutil.rmtree(self.folder, ignore_errors=True)
            self.folder = Path()

    def __enter__(self: S) -> S:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def log(self) -> str:
        """The last of what the server wrote."""
        try:
            return self._log_path.read_text(errors="replace")[-LOG_TAIL_CHARS:]
        except OSError:
            return ""

    # how it is done

    @property
    def _log_path(self) -> Path:
        return self.folder / "server.log"

    def _first_start(self) -> None:
        self.ports = free_ports(self.port_count)
        # Right in /tmp: an account other than ours cannot pass pytest's folders, and a unix socket's path is short.
        self.folder = Path(tempfile.mkdtemp(prefix=f"celeriac-{self.name.lower()}-", dir="/tmp"))
        if (owner := self._owner()) is not None:
            os.chown(self.folder, owner.pw_uid, owner.pw_gid)
        self.prepare()
        self._launch()

    def _launch(self) -> None:
        self._server = self._spawn(self.command())
        self._wait_until(self.is_ready, self._server, self.start_timeout_s)

    def _spawn(self, command: Sequence[str | Path]) -> subprocess.Popen[bytes]:
        """Start a program in our folder, as our account, in a group of its own, tied to our life."""
        with self._log_path.open("ab") as log:
            return subprocess.Popen(
                [*tie_to_parent(), *command],
                cwd=self.folder,
                env={**os.environ, **self.environment()},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                **self._as_account(),
            )

    def _run(self, command: Sequence[str | Path]) -> None:
        """Run a program to its end, as our account; its output goes to the log."""
        status = self._spawn(command).wait(timeout=self.start_timeout_s)
        if status:
            raise ServiceFailed(self.name, f"could not be prepared: {command[0]} ended with {status}", self.log())

    def _owner(self) -> pwd.struct_passwd | None:
        """The account that the server has to run as, None for our own."""
        if self.account is None or os.geteuid() != 0:
            return None
        try:
            return pwd.getpwnam(self.account)
        except KeyError:
            raise ServiceMissing(self.name, f"(account {self.account})", self.package) from None

    def _as_account(self) -> dict[str, Any]:
        owner = self._owner()
        return {} if owner is None else {"user": owner.pw_uid, "group": owner.pw_gid, "extra_groups": []}

    def _wait_until(self, is_ready: Callable[[], bool], server: subprocess.Popen[bytes], timeout_s: float) -> None:
        deadline = time.monotonic() + timeout_s
        while not is_ready():
            if (status := server.poll()) is not None:
                raise ServiceFailed(self.name, f"ended with {status} while it started", self.log())
            if time.monotonic() > deadline:
                log = self.log()
                self.kill()
                raise ServiceFailed(self.name, f"was not ready after {timeout_s:g} s", log)
            time.sleep(POLL_INTERVAL_S)

    def _end(self, how: signal.Signals) -> None:
        if self._server is not None:
            end_process(self._server, how, self.stop_timeout_s)
            self._server = None

    def _signal(self, what: signal.Signals) -> None:
        if self._server is not None and self.is_running:
            os.killpg(self._server.pid, what)

    def _program(self, name: str, *folders: str) -> Path:
        """Find a program in these folders (patterns are allowed), on PATH, or in sbin."""
        places = [*itertools.chain.from_iterable(sorted(glob.glob(folder), reverse=True) for folder in folders)]
        path = os.pathsep.join([*places, os.environ.get("PATH", os.defpath), *SBIN])
        found = shutil.which(name, path=path)
        if found is None:
            raise ServiceMissing(self.name, name, self.package)
        return Path(found)


class RedisService(Service):
    """A Redis that keeps everything in memory, or, when `durable`, on disk before it answers.

    Without `durable` a crash (and a stop) loses all keys; with it, `kill` and `restart` bring every acknowledged write
    back.
    """

    name = "Redis"
    package = "redis-server"
    database_count = 1024

    def __init__(self, *, durable: bool = False, options: Sequence[str] = ()) -> None:
        super().__init__()
        self.durable = durable
        self.options = options
        self._databases = itertools.cycle(range(1, self.database_count))

    @property
    def url(self) -> str:
        return f"redis://{HOST}:{self.port}/0"

    def fresh_url(self) -> str:
        """A database that no test has used lately, and that is empty."""
        database = next(self._databases)
        question, answer = f"SELECT {database}\r\nFLUSHDB\r\n".encode(), b"+OK\r\n+OK\r\n"
        if (said := ask(self.port, question, enough=len(answer), timeout_s=ANSWER_S)) != answer:
            raise ServiceFailed(self.name, f"did not empty database {database}, but said {said!r}", self.log())
        return f"redis://{HOST}:{self.port}/{database}"

    def command(self) -> Sequence[str | Path]:
        durability = ["--appendonly", "yes", "--appendfsync", "always"] if self.durable else ["--appendonly", "no"]
        return [
            self._program("redis-server"),
            *("--port", str(self.port), "--bind", HOST, "--dir", self.folder, "--save", "", "--daemonize", "no"),
            *("--databases", str(self.database_count), *durability, *self.options),
        ]

    def is_ready(self) -> bool:
        return ask(self.port, b"PING\r\n").startswith(b"+PONG")


class RedisNodeService(RedisService):
    """A Redis in cluster mode; it has no slots until somebody gives it some.

    Args:
        node_timeout_s: After so long a silence the others take it for dead.
    """

    port_count = 2

    def __init__(self, *, node_timeout_s: float = 30.0) -> None:
        super().__init__()
        self.node_timeout_s = node_timeout_s

    def command(self) -> Sequence[str | Path]:
        timeout = ("--cluster-node-timeout", f"{self.node_timeout_s * 1000:.0f}")
        return [*super().command(), "--cluster-enabled", "yes", "--cluster-port", str(self.ports[1]), *timeout]

    def ask(self, *words: str | int) -> str:
        """The reply to one command that is answered in one piece, as it is on the wire."""
        return ask(self.port, " ".join(map(str, words)).encode() + b"\r\n", timeout_s=ANSWER_S).decode()


class RedisClusterService(Service):
    """A Redis Cluster of three masters that share the slots evenly, each with a replica of its own if asked for.

    A master with a replica is replaced when it has said nothing for three seconds. Without replicas a silence ends
    nothing but the service of the whole cluster, so it may be as long as a busy machine keeps a node waiting.

    Attributes:
        masters, replicas: The nodes as they began; replicas in the order of their masters.
    """

    name = "Redis Cluster"
    package = "redis-server"
    slot_count = 16384

    def __init__(self, *, replicas: bool = False) -> None:
        super().__init__()
        node_timeout_s = 3.0 if replicas else 30.0
        self.masters = [RedisNodeService(node_timeout_s=node_timeout_s) for _ in range(3)]
        self.replicas = [RedisNodeService(node_timeout_s=node_timeout_s) for _ in self.masters] if replicas else []

    @property
    def nodes(self) -> list[RedisNodeService]:
        return [*self.masters, *self.replicas]

    @property
    def url(self) -> str:
        return "redis+cluster://" + ";".join(f"{HOST}:{node.port}" for node in self.nodes)

    def start(self) -> None:
        """See `Service.start`: returns when every node knows all others and every slot is served."""
        for node in self.nodes:
            node.start()
        share = self.slot_count // len(self.masters)
        for number, master in enumerate(self.masters):
            last = self.slot_count - 1 if master is self.masters[-1] else (number + 1) * share - 1
            master.ask("CLUSTER", "SET-CONFIG-EPOCH", number + 1)
            master.ask("CLUSTER", "ADDSLOTSRANGE", number * share, last)
        for node in self.nodes[1:]:
            self.masters[0].ask("CLUSTER", "MEET", HOST, node.port, node.ports[1])
        self._until(lambda: all(f"cluster_known_nodes:{len(self.nodes)}" in self._info(node) for node in self.nodes))
        for master, replica in zip(self.masters, self.replicas, strict=False):
            name = master.ask("CLUSTER", "MYID").split()[1]
            self._until(lambda name=name, replica=replica: "+OK" in replica.ask("CLUSTER", "REPLICATE", name))  # type: ignore[misc]
        self._until(lambda: all("cluster_state:ok" in self._info(node) for node in self.nodes))
        self._until(lambda: all("master_link_status:up" in node.ask("INFO", "replication") for node in self.replicas))

    def close(self) -> None:
        """See `Service.close`."""
        for node in self.nodes:
            node.close()

    @staticmethod
    def _info(node: RedisNodeService) -> str:
        return node.ask("CLUSTER", "INFO")

    def _until(self, holds: Callable[[], bool]) -> None:
        deadline = time.monotonic() + self.start_timeout_s
        while not holds():
            if time.monotonic() > deadline:
                raise ServiceFailed(self.name, "did not become one", "\n".join(node.log() for node in self.nodes))
            time.sleep(POLL_INTERVAL_S)


class SentinelService(Service):
    """A Redis Sentinel that alone decides on a failover of one master, when that has said nothing for three seconds.

    Args:
        master_port: Where the master is.
        master_name: What the Sentinel calls it.
        password: What the Sentinel itself asks for, if anything.
    """

    name = "Sentinel"
    package = "redis-server"

    def __init__(self, master_port: int, master_name: str = "mymaster", password: str = "") -> None:
        super().__init__()
        self.password = password
        self.master_port = master_port
        self.master_name = master_name

    @property
    def url(self) -> str:
        return f"sentinel://{HOST}:{self.port}/0"

    def prepare(self) -> None:
        lines = [
            f"port {self.port}",
            f"bind {HOST}",
            f"dir {self.folder}",
            f"sentinel monitor {self.master_name} {HOST} {self.master_port} 1",
            f"sentinel down-after-milliseconds {self.master_name} 3000",
            f"sentinel failover-timeout {self.master_name} 10000",
            *([f"requirepass {self.password}"] if self.password else []),
        ]
        (self.folder / "sentinel.conf").write_text("".join(f"{line}\n" for line in lines))

    def command(self) -> Sequence[str | Path]:
        return [self._program("redis-server"), self.folder / "sentinel.conf", "--sentinel"]

    def is_ready(self) -> bool:
        return ask(self.port, b"PING\r\n").startswith((b"+PONG", b"-NOAUTH"))


class MemcachedService(Service):
    """A Memcached of 32 MB.

    Args:
        options: More words of its command line, as in `("-I", "8m")` for items of more than a megabyte.
    """

    name = "Memcached"
    package = "memcached"
    account = "nobody"  # it refuses to run as root

    def __init__(self, *, options: Sequence[str] = ()) -> None:
        super().__init__()
        self.options = options

    @property
    def url(self) -> str:
        return f"memcached://{HOST}:{self.port}"

    def command(self) -> Sequence[str | Path]:
        return [self._program("memcached"), "-l", HOST, "-p", str(self.port), "-U", "0", "-m", "32", *self.options]

    def is_ready(self) -> bool:
        return ask(self.port, b"version\r\n").startswith(b"VERSION")


class PostgresService(Service):
    """A PostgreSQL that trusts everybody on 127.0.0.1 and does not wait for the disk."""

    name = "PostgreSQL"
    package = "postgresql"
    account = "postgres"  # it refuses to run as root
    stop_signal = signal.SIGINT  # «fast»: SIGTERM would wait for the clients to go
    close_signal = signal.SIGINT  # killed, it would leave its shared memory behind
    programs = "/usr/lib/postgresql/*/bin"

    def __init__(self) -> None:
        super().__init__()
        self._database_numbers = itertools.count(1)

    @property
    def url(self) -> str:
        return self._url("postgres")

    def fresh_url(self) -> str:
        """A new, empty database."""
        database = f"test_{next(self._database_numbers)}"
        statement = f"CREATE DATABASE {database}"
        connection = ("-h", HOST, "-p", str(self.port), "-U", "celeriac", "-d", "postgres")
        self._run([self._program("psql", self.programs), "-q", *connection, "-c", statement])
        return self._url(database)

    def _url(self, database: str) -> str:
        return f"postgresql://celeriac@{HOST}:{self.port}/{database}"

    @property
    def _data(self) -> Path:
        return self.folder / "data"

    def prepare(self) -> None:
        initdb = self._program("initdb", self.programs)
        options = ["-U", "celeriac", "-A", "trust", "-N", "-E", "UTF8", "--locale=C.UTF-8"]
        self._run([initdb, "-D", self._data, *options])

    def command(self) -> Sequence[str | Path]:
        settings = {
            "listen_addresses": HOST,
            "unix_socket_directories": str(self.folder),
            "synchronous_commit": "off",
            "full_page_writes": "off",
            "max_connections": "50",
            "shared_buffers": "32MB",
        }
        postgres = self._program("postgres", self.programs)
        options = [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
        return [postgres, "-D", self._data, "-p", str(self.port), "-F", *options]

    def is_ready(self) -> bool:
        pg_isready = self._program("pg_isready", self.programs)
        return subprocess.run([pg_isready, "-q", "-h", HOST, "-p", str(self.port)], check=False).returncode == 0


class MariaDBService(Service):
    """A MariaDB whose user `celeriac` may do everything, from 127.0.0.1, and that does not wait for the disk."""

    name = "MariaDB"
    package = "mariadb-server"
    account = "mysql"
    start_timeout_s = 60.0

    def __init__(self) -> None:
        super().__init__()
        self._database_numbers = itertools.count(1)

    @property
    def url(self) -> str:
        return self._url("test")

    def fresh_url(self) -> str:
        """A new, empty database."""
        database = f"test_{next(self._database_numbers)}"
        self._run([*self._client("mariadb"), "-e", f"CREATE DATABASE {database}"])
        return self._url(database)

    def prepare(self) -> None:
        install = self._program("mariadb-install-db")
        data = ("--auth-root-authentication-method=normal", "--skip-test-db", "--skip-name-resolve")
        self._run([install, "--no-defaults", f"--datadir={self._data}", *data])
        (self.folder / "init.sql").write_text(
            "CREATE DATABASE test;\nCREATE USER celeriac@'127.0.0.1';\nGRANT ALL ON *.* TO celeriac@'127.0.0.1';\n"
        )

    def command(self) -> Sequence[str | Path]:
        first_time = () if (self._data / "test").exists() else (f"--init-file={self.folder / 'init.sql'}",)
        return [
            self._program("mariadbd"),
            *("--no-defaults", f"--datadir={self._data}", f"--socket={self._socket}", f"--pid-file={self.folder}/pid"),
            *(f"--port={self.port}", f"--bind-address={HOST}", "--skip-name-resolve", "--skip-log-bin", *first_time),
            *("--innodb-buffer-pool-size=32M", "--innodb-log-file-size=16M", "--innodb-flush-log-at-trx-commit=0"),
        ]

    def is_ready(self) -> bool:
        if not self._socket.exists():
            return False
        ping = subprocess.run([*self._client("mariadb-admin"), "ping"], capture_output=True, check=False)
        return ping.returncode == 0

    def _client(self, program: str) -> Sequence[str | Path]:
        return [self._program(program), "--no-defaults", "-uroot", f"--socket={self._socket}"]

    def _url(self, database: str) -> str:
        return f"mysql://celeriac@{HOST}:{self.port}/{database}"

    @property
    def _data(self) -> Path:
        return self.folder / "data"

    @property
    def _socket(self) -> Path:
        return self.folder / "s.sock"


class RabbitMQService(Service):
    """A RabbitMQ node with its management API, and with an epmd of its own.

    A virtual host costs some milliseconds, a node ten seconds: give each test a `fresh_url`, and a node of its own only
    to a test that breaks it. `api` asks the management API, which is how a test looks at queues and connections.
    """

    name = "RabbitMQ"
    package = "rabbitmq-server"
    port_count = 4  # clients, other nodes, management, epmd
    start_timeout_s = 90.0
    programs = "/usr/lib/rabbitmq/bin"  # those on PATH are wrappers that change the account, and then lack our folder

    def __init__(self) -> None:
        super().__init__()
        self._vhost_numbers = itertools.count(1)
        self._epmd: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return self._url("/")

    def fresh_url(self) -> str:
        """A virtual host with nothing in it."""
        return self.add_vhost(f"test-{next(self._vhost_numbers)}")

    def add_vhost(self, vhost: str) -> str:
        """Make a virtual host, empty, in which guest may do everything; returns its URL."""
        self.api("PUT", f"vhosts/{vhost}", {})
        self.api("PUT", f"permissions/{vhost}/guest", {"configure": ".*", "write": ".*", "read": ".*"})
        return self._url(vhost)

    def delete_vhost(self, vhost: str) -> None:
        """Remove a virtual host with its queues; connections to it are closed by the server."""
        self.api("DELETE", f"vhosts/{vhost}")

    def close_connections(self) -> None:
        """Close every client's connection, as an operator or a failing-over cluster does."""
        for connection in self.api("GET", "connections"):
            self.api("DELETE", f"connections/{connection['name'].replace(' ', '%20').replace('>', '%3E')}")

    def api(self, method: str, path: str, body: object = None) -> Any:
        """Ask the management API, `path` being what follows /api/; returns its JSON, None where it sends none.

        Raises:
            ServiceFailed: It answered with an error; 404 too.
        """
        headers = {"Authorization": "Basic " + base64.b64encode(b"guest:guest").decode()}
        connection = http.client.HTTPConnection(HOST, self._management_port, timeout=60)
        try:
            text = None if body is None else json.dumps(body)
            connection.request(method, f"/api/{path}", text, {**headers, "Content-Type": "application/json"})
            response = connection.getresponse()
            answer = response.read()
        finally:
            connection.close()
        if response.status >= 400:
            raise ServiceFailed(self.name, f"answered {response.status} to {method} {path}", answer.decode())
        return json.loads(answer) if answer else None

    def close(self) -> None:
        super().close()
        if self._epmd is not None:
            end_process(self._epmd, signal.SIGTERM, self.stop_timeout_s)
            self._epmd = None

    def prepare(self) -> None:
        cookie = self.folder / ".erlang.cookie"
        cookie.write_text(secrets.token_hex(10))
        cookie.chmod(0o400)
        (self.folder / "enabled_plugins").write_text("[rabbitmq_management].\n")
        settings = {
            "listeners.tcp.default": f"{HOST}:{self.port}",
            "management.tcp.ip": HOST,
            "management.tcp.port": self._management_port,
            "log.console": "false",
            "disk_free_limit.absolute": "50MB",
            "vm_memory_high_watermark.absolute": "2GB",  # below half of it nothing is paged to disk
        }
        lines = [f"{name} = {value}\n" for name, value in settings.items()]
        (self.folder / "rabbitmq.conf").write_text("".join(lines))

    def environment(self) -> Mapping[str, str]:
        return {
            "HOME": str(self.folder),  # where Erlang looks for the cookie
            "ERL_EPMD_PORT": str(self._epmd_port),
            "ERL_EPMD_ADDRESS": HOST,
            "RABBITMQ_CONF_ENV_FILE": "/dev/null",
            "RABBITMQ_NODENAME": self._node,
            "RABBITMQ_NODE_IP_ADDRESS": HOST,
            "RABBITMQ_NODE_PORT": str(self.port),
            "RABBITMQ_DIST_PORT": str(self._node_port),
            "RABBITMQ_MNESIA_BASE": str(self.folder / "mnesia"),
            "RABBITMQ_LOG_BASE": str(self.folder / "log"),
            "RABBITMQ_CONFIG_FILE": str(self.folder / "rabbitmq.conf"),
            "RABBITMQ_ADVANCED_CONFIG_FILE": str(self.folder / "advanced.config"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(self.folder / "enabled_plugins"),
            "RABBITMQ_PID_FILE": str(self.folder / "pid"),
            # Schedulers that spin while they wait would take a core each from the tests.
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "+S 2:2 +sbwt none +sbwtdcpu none +sbwtdio none "
            "-kernel inet_dist_use_interface {127,0,0,1}",
        }

    def command(self) -> Sequence[str | Path]:
        server = self._program("rabbitmq-server", self.programs)
        self._start_epmd()
        self._node_log.unlink(missing_ok=True)  # it is read for readiness, and an old one would say yes
        return [server]

    def is_ready(self) -> bool:
        return (
            self._node_log.exists()
            and "Server startup complete" in self._node_log.read_text(errors="replace")
            and ask(self.port, b"AMQP\x00\x00\x09\x01").startswith(b"\x01\x00\x00")
        )

    def log(self) -> str:
        node_log = self._node_log.read_text(errors="replace")[-LOG_TAIL_CHARS:] if self._node_log.exists() else ""
        return super().log() + node_log

    def _start_epmd(self) -> None:
        """Start our own port mapper: one that a node starts for itself would stay behind."""
        if self._epmd is not None and self._epmd.poll() is None:
            return
        epmd = self._program("epmd", "/usr/lib/erlang/erts-*/bin")
        self._epmd = self._spawn([epmd, "-port", str(self._epmd_port), "-address", HOST])
        answer = self._epmd_port.to_bytes(4, "big")
        self._wait_until(lambda: ask(self._epmd_port, b"\x00\x01\x6e").startswith(answer), self._epmd, 30.0)

    def _url(self, vhost: str) -> str:
        return f"amqp://guest:guest@{HOST}:{self.port}/{vhost}"

    @property
    def _node(self) -> str:
        return f"c{self.port}@localhost"

    @property
    def _node_log(self) -> Path:
        return self.folder / "log" / f"{self._node}.log"

    @property
    def _node_port(self) -> int:
        return self.ports[1]

    @property
    def _management_port(self) -> int:
        return self.ports[2]

    @property
    def _epmd_port(self) -> int:
        return self.ports[3]


def free_ports(count: int) -> list[int]:
    """Ports of 127.0.0.1 that nobody listens on now, each different.

    They are not among those that the system gives to clients, and to servers that take any: else somebody could be
    given one before it is bound, or while its server is restarted.
    """
    ports, dice = _ports_to_choose_from(), random.SystemRandom()  # for `random` may have the same seed in all processes
    found: dict[int, socket.socket] = {}
    with ExitStack() as held:
        while len(found) < count:
            one = held.enter_context(socket.socket())
            try:
                one.bind((HOST, dice.choice(ports)))
            except OSError as exc:
                if exc.errno != errno.EADDRINUSE:
                    raise
                continue
            found[one.getsockname()[1]] = one
        return list(found)


def _ports_to_choose_from() -> Sequence[int]:
    try:
        first, last = map(int, Path("/proc/sys/net/ipv4/ip_local_port_range").read_text(encoding="ascii").split())
    except OSError:
        return [0]  # any
    ports = max(range(20_000, first), range(last + 1, 65_536), key=len)
    return ports if len(ports) >= FEWEST_PORTS else [0]


def ask(port: int, question: bytes, *, enough: int = 1, timeout_s: float = 1.0) -> bytes:
    """Send bytes to a port of 127.0.0.1 and read at least `enough` bytes; fewer when no more come in time.

    As it stands it is for asking again and again. Who asks once, a server that is there, gives it `ANSWER_S`.
    """
    answer = b""
    try:
        with socket.create_connection((HOST, port), timeout=timeout_s) as connection:
            connection.sendall(question)
            while len(answer) < enough and (chunk := connection.recv(4096)):
                answer += chunk
    except OSError:
        pass  # not listening yet, or hung up: the answer so far says so
    return answer


def tie_to_parent() -> Sequence[str]:
    """The words before a command that end it when the thread that starts it ends, even by SIGKILL."""
    setpriv = shutil.which("setpriv")
    return [] if setpriv is None else [setpriv, "--pdeathsig", "TERM", "--"]


def end_process(process: subprocess.Popen[bytes], how: signal.Signals, timeout_s: float) -> None:
    """End a process that leads its own group: SIGKILL goes to the group, anything else to the process alone."""
    if how is not signal.SIGKILL and process.poll() is None:
        process.send_signal(signal.SIGCONT)  # a frozen one hears nothing else
        process.send_signal(how)
        try:
            process.wait(timeout_s)
            return
        except subprocess.TimeoutExpired:
            pass  # then the hard way
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass  # the whole group has gone by itself
    process.wait()
