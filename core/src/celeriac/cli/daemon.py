"""Daemons: pid files, other users, and commands that go on in the background.

`worker`, `beat` and `events` take the options of `daemon_options` and run inside `daemonized`; `multi` starts workers
with these.
"""

from __future__ import annotations

import contextlib
import os
import select
import sys
import weakref
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final, NoReturn

import click

from celeriac.cli.errors import FAILED, exit_code
from celeriac.cli.group import F, State, option
from celeriac.exceptions import SecurityError
from celeriac.platforms import LockFailed, Pidfile, close_open_fds, maybe_drop_privileges
from celeriac.utils.nodenames import node_format

#: How long `--detach` waits for the daemon to say that it works, before it lets it be.
READY_S: Final = 60.0
#: Command → option → the setting that stands in when the option is not given.
SETTINGS: Final[Mapping[str, Mapping[str, str]]] = {
    "worker": {
        "logfile": "worker_logfile", "pidfile": "worker_pidfile", "uid": "worker_uid", "gid": "worker_gid",
        "umask": "worker_umask", "executable": "worker_executable",
    },
    "beat": {
        "logfile": "beat_logfile", "pidfile": "beat_pidfile", "uid": "beat_uid", "gid": "beat_gid",
        "umask": "beat_umask", "executable": "beat_executable",
    },
    "events": {
        "logfile": "events_logfile", "pidfile": "events_pidfile", "uid": "events_uid", "gid": "events_gid",
        "umask": "events_umask", "executable": "events_executable",
    },
}  # fmt: skip
#: In the environment of a process in the background whose program begins anew: its pid, and the descriptor by which it
#: is waited for, if it is.
DETACHED: Final = "_CELERIAC_DETACHED"


class PidFile(Pidfile):
    """The pid file of `--pidfile`, held from the beginning.

    Raises:
        click.UsageError: Somebody else holds it, or it cannot be written.
    """

    def __init__(self, path: str) -> None:
        super().__init__(path)
        with contextlib.suppress(OSError):  # then it cannot be written either, which is said better
            os.makedirs(os.path.dirname(self.path), exist_ok=True)
        try:
            self.acquire()
        except LockFailed as exc:
            todo = "Name a file where this user may write" if exc.holder is None else "Stop it, or name another file"
            raise click.UsageError(f"--pidfile: {exc}. {todo}.") from exc
        _held.add(self)

    def let_go(self) -> None:
        """In a forked child: the lock is our parent's alone. What a task has forked may outlive the worker, and must
        not keep the next one away."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None


_held: weakref.WeakSet[PidFile] = weakref.WeakSet()


def _let_go_in_child() -> None:
    for pidfile in list(_held):
        pidfile.let_go()


os.register_at_fork(after_in_child=_let_go_in_child)


def read_pid(path: str) -> int | None:
    """The pid in a pid file; None if there is no such file, or no number in it."""
    return Pidfile(path).read_pid()


def is_held(path: str) -> bool:
    """Whether the process that wrote a pid file lives."""
    return Pidfile(path).is_locked()


def drop_privileges(uid: str | None, gid: str | None) -> None:
    """Become another user and group, wholly: supplementary groups too, and with no way back.

    Args:
        uid, gid: Names or numbers. Without `gid` the user's own groups; without `uid` only the group changes.
    Raises:
        click.UsageError: No such user or group, or this process may not change.
    """
    try:
        maybe_drop_privileges(uid, gid)
    except KeyError as exc:
        raise click.UsageError(f"--uid, --gid: {exc.args[0]}.") from None
    except PermissionError as exc:
        raise click.UsageError(f"--uid, --gid: only root may become another user; this is {os.getuid()}.") from exc
    except SecurityError as exc:
        raise click.UsageError(f"--uid: {exc}.") from exc


class Detached:
    """The way from a command to the one that waits for it to work: itself, in the foreground."""

    def ready(self) -> None:
        """It works."""

    def failed(self, code: int) -> None:
        """It ends with this exit code, and will say why on standard error."""


class _Background(Detached):
    """A daemon's way to the process that started it, which relays to the terminal what is said before the daemon works.

    The daemon itself never has the terminal: its pool processes would keep it open.
    """

    def __init__(self, write_fd: int) -> None:
        self._fd = write_fd
        self._waited_for = True

    def ready(self) -> None:
        self._tell(b"+")
        os.close(self._fd)

    def failed(self, code: int) -> None:
        if self._waited_for:
            self._tell(b"-" + bytes([code & 0xFF or FAILED]))  # it has not worked, even if it was told to end
            os.dup2(self._fd, 2)
            os.close(self._fd)

    def _tell(self, word: bytes) -> None:
        self._waited_for = False
        with contextlib.suppress(OSError):  # it is not waiting any more
            os.write(self._fd, word)


def detach(logfile: str | None, executable: str | None) -> NoReturn:
    """Begin anew in the background, in a session of its own; output goes to the log file, or nowhere.

    Anew, for what importing the app has begun (threads, connections) does not survive a fork. The process that was
    called ends when the daemon works, with code 0, or when it has failed, with its words.

    Args:
        executable: Another Python.
    Raises:
        click.UsageError: In the new process: that Python cannot be run.
    """
    target = os.open(logfile or os.devnull, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    read_fd, write_fd = os.pipe()
    if os.fork():
        close_open_fds([0, 1, 2, read_fd])  # a port that the app has taken is the daemon's to take
        os._exit(_await_daemon(read_fd))
    os.close(read_fd)
    os.setsid()
    if os.fork():  # so that it can never have a terminal again
        os._exit(0)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.dup2(target, 1)
    os.dup2(target, 2)
    os.close(null)
    os.close(target)
    os.set_inheritable(write_fd, True)
    try:
        begin_anew(executable, write_fd)
    except OSError as exc:  # a folder, or no program: the one who waits is to hear it, not the log file
        error = click.UsageError(f"--detach: cannot run {executable or sys.executable!r}: {exc.strerror}.")
        _Background(write_fd).failed(exit_code(error))
        raise error from exc


def begin_anew(executable: str | None = None, waited_by: int | None = None) -> NoReturn:
    """Run the same command line in this process, as one that is in the background already.

    Args:
        executable: Another Python.
        waited_by: The descriptor by which the caller is told when it works.
    """
    os.environ[DETACHED] = f"{os.getpid()}:{'' if waited_by is None else waited_by}"
    run_anew(executable)


def run_anew(executable: str | None = None) -> NoReturn:
    """Run the same command line in this process."""
    program = os.path.abspath(executable or sys.executable)
    state = click.get_current_context().find_object(State)
    if state is not None:
        state.go_back()
    os.execv(program, [program, *(("-m", "celeriac", *sys.argv[1:]) if executable else sys.orig_argv[1:])])


def _background() -> Detached | None:
    """The way to whoever waits for this process, if it is in the background already."""
    pid, _, fd = os.environ.pop(DETACHED, "").partition(":")
    if pid != str(os.getpid()):
        return None
    if not fd:
        return Detached()
    os.set_inheritable(int(fd), False)
    return _Background(int(fd))


def _await_daemon(read_fd: int) -> int:
    """The exit code: 0 once it works, or is still busy with starting after a while; if it has ended, the daemon's own,
    or 1 if it could not say it."""
    if not select.select([read_fd], [], [], READY_S)[0]:
        os.write(2, f"It has not said that it works within {READY_S:g} s; it goes on in the background.\n".encode())
        return 0
    word = os.read(read_fd, 1)
    if not word:
        os.write(2, b"It has ended without a word before it worked: killed, or by os._exit.\n")
    code = os.read(read_fd, 1) if word == b"-" else b""
    while word == b"-" and (words := os.read(read_fd, 4096)):
        os.write(2, words)
    return 0 if word == b"+" else code[0] if code else 1


def daemon_options(command: F) -> F:
    """The options of a command that can be a daemon."""
    for decorate in reversed(
        [
            option("-D", "--detach", is_flag=True, help="Go on in the background; returns when it works."),
            option("--pidfile", metavar="FILE", help="Write the pid to this file (%n, %h, %d as in --hostname)."),
            option("--uid", metavar="USER", help="Run as this user (name or number; needs root)."),
            option("--gid", metavar="GROUP", help="Run as this group."),
            option("--umask", metavar="OCTAL", help="Permissions that new files do not get, such as 022."),
            option("--executable", metavar="PATH", help="With --detach: run with this Python."),
        ]
    ):
        command = decorate(command)
    return command


@contextlib.contextmanager
def daemonized(
    options: dict[str, Any], node: str, command: str, find_app: Callable[[], Any] = lambda: None
) -> Iterator[Detached]:
    """Do what the daemon options ask for, in the one safe order, and take the pid file away at the end.

    First who we are: files made later are that user's, and so is what importing the app does. Then what the app's
    settings say where no option does. The pid file comes last, for it has the pid of the process that stays.

    Args:
        options: Of `daemon_options` and `log_options`; completed here, and `%n` and its kin expanded in file names.
        node: The node's name.
        command: Whose settings count: `worker`, `beat` or `events`.
        find_app: Whose settings.
    """
    background = _background()
    detached = background or Detached()
    pidfile: PidFile | None = None
    try:
        _complete(options, node, command, find_app)
        if options["detach"] and background is None:
            _detach(options)
        pidfile = PidFile(options["pidfile"]) if options["pidfile"] else None
        yield detached
    except BaseException as exc:
        detached.failed(exit_code(exc))
        raise
    finally:
        if pidfile is not None:
            pidfile.remove()


def _read_umask(text: str) -> int:
    try:
        return int(text.removeprefix("0o"), 8)
    except ValueError:
        raise click.UsageError(f"--umask: {text!r} is no octal number such as 022.") from None


def _complete(options: dict[str, Any], node: str, command: str, find_app: Callable[[], Any]) -> None:
    """Be who is asked for, and have all options as they will be used."""
    drop_privileges(options["uid"], options["gid"])
    app = find_app()
    for name, setting in SETTINGS[command].items() if app is not None else ():
        value = app.conf[setting]
        if options[name] is None and value is not None:
            options[name] = f"{value:o}" if name == "umask" and isinstance(value, int) else str(value)
    if options["umask"]:
        os.umask(_read_umask(options["umask"]))
    drop_privileges(options["uid"], options["gid"])
    for name in ("logfile", "pidfile"):
        if options.get(name):
            options[name] = os.path.abspath(expand(options[name], node)) if options[name] != "-" else "-"


def _detach(options: dict[str, Any]) -> NoReturn:
    executable, logfile = options["executable"], options.get("logfile")
    if executable and not os.access(executable, os.X_OK):
        raise click.UsageError(f"--executable: cannot run {executable!r}.")
    if logfile == "-":
        logfile = None
    if logfile:
        with contextlib.suppress(OSError):  # whoever opens it says what is wrong
            os.makedirs(os.path.dirname(logfile), exist_ok=True)
    try:
        detach(logfile, executable)
    except OSError as exc:
        raise click.UsageError(f"--detach: cannot write to {exc.filename!r}: {exc.strerror}.") from exc


def expand(text: str, node: str) -> str:
    """A file's name for a node: `%n %h %d`. `%i` and `%I` number pool processes in Celery; here one file serves all."""
    return node_format(text, node, i="0", I="")
