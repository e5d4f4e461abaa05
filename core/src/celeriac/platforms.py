"""What differs between systems, and what daemons need: pid files, other users, signals, exit codes; at Celery's path.

The command line's own daemons (`cli/daemon.py`) stand on this; programs of their own may, too.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import grp
import importlib
import math
import os
import platform as _platform
import pwd
import signal
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import TracebackType
from typing import Any, Final

from celeriac.exceptions import SecurityError

__all__ = [
    "DAEMON_WORKDIR",
    "EX_CANTCREAT",
    "EX_FAILURE",
    "EX_OK",
    "EX_UNAVAILABLE",
    "EX_USAGE",
    "IS_WINDOWS",
    "SYSTEM",
    "DaemonContext",
    "IS_macOS",
    "LockFailed",
    "PIDFile",
    "Pidfile",
    "Signals",
    "close_open_fds",
    "create_pidlock",
    "detached",
    "get_errno_name",
    "get_fdmax",
    "ignore_errno",
    "initgroups",
    "isatty",
    "maybe_drop_privileges",
    "parse_gid",
    "parse_uid",
    "pyimplementation",
    "set_process_title",
    "setgid",
    "setgroups",
    "setuid",
    "signal_name",
    "signals",
    "strargv",
]  # fmt: skip

SYSTEM: Final = _platform.system()
IS_macOS: Final = SYSTEM == "Darwin"
IS_WINDOWS: Final = SYSTEM == "Windows"

EX_OK: Final = 0
EX_FAILURE: Final = 1
EX_USAGE: Final = getattr(os, "EX_USAGE", 64)
EX_UNAVAILABLE: Final = getattr(os, "EX_UNAVAILABLE", 69)
EX_CANTCREAT: Final = getattr(os, "EX_CANTCREAT", 73)

DAEMON_WORKDIR: Final = "/"


class LockFailed(Exception):
    """A pid file is held by somebody who lives, or cannot be written.

    Attributes:
        holder: The pid of who holds it, as far as known; None if nobody does.
    """

    def __init__(self, message: str, holder: int | None = None) -> None:
        self.holder = holder
        super().__init__(message)


# -- pid files --------------------------------------------------------------------------------------------


class Pidfile:
    """A file with the pid of the process that holds it. A lock tells a living holder from one that was killed.

    As a context manager it is held inside.

    Attributes:
        path: Where it is; absolute.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = os.path.abspath(path)
        self._fd: int | None = None

    def acquire(self) -> Pidfile:
        """Hold it, and have our pid in it.

        Raises:
            LockFailed: Somebody else holds it, or it cannot be written.
        """
        while self._fd is None:
            try:
                fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            except OSError as exc:
                raise LockFailed(f"cannot write {self.path!r}: {exc.strerror}") from exc
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)  # forked children share it: held until all are gone
            except OSError as exc:
                os.close(fd)
                raise self._held() from exc
            if self._is_there(fd):
                self._fd = fd
            else:  # whoever held it took it away before we had it: it is no file that anybody will look at
                os.close(fd)
        self.write_pid()
        return self

    def _is_there(self, fd: int) -> bool:
        """Whether this is still the file of our path."""
        try:
            return os.path.samestat(os.fstat(fd), os.stat(self.path))
        except FileNotFoundError:
            return False

    def write_pid(self) -> None:
        """Write our pid into the file that is held."""
        if self._fd is None:
            raise LockFailed(f"{self.path!r} is not held by this process")
        os.ftruncate(self._fd, 0)
        os.pwrite(self._fd, f"{os.getpid()}\n".encode("ascii"), 0)

    def read_pid(self) -> int | None:
        """The pid in it; None if there is no such file, or no number in it."""
        try:
            with open(self.path, encoding="ascii") as file:
                return int(file.read(32))
        except (OSError, ValueError):
            return None

    def is_locked(self) -> bool:
        """Whether the process that wrote it lives. A number alone may be another process's by now."""
        if self._fd is not None:
            return True
        try:
            fd = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return False
        try:
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            return True
        finally:
            os.close(fd)
        return False

    def remove_if_stale(self) -> bool:
        """Remove what a dead process has left; whether the file may be taken now."""
        if self.is_locked():
            return False
        self._unlink()
        return True

    def remove(self) -> None:
        """Let go of it, and take it away if it is still ours: the file of whoever came after us stays."""
        if self._fd is not None:
            if self.read_pid() == os.getpid():
                self._unlink()
            os.close(self._fd)
            self._fd = None

    def release(self, *args: Any) -> None:
        """As `remove`."""
        self.remove()

    def __enter__(self) -> Pidfile:
        return self.acquire()

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    def _unlink(self) -> None:
        with contextlib.suppress(OSError):  # somebody else has removed it, or it may not be
            os.unlink(self.path)

    def _held(self) -> LockFailed:
        holder = self.read_pid()
        return LockFailed(f"{self.path!r} belongs to process {holder}, which runs", holder or 0)


PIDFile = Pidfile


def create_pidlock(pidfile: str | os.PathLike[str]) -> Pidfile:
    """Hold a pid file until this process ends.

    Raises:
        SystemExit: Somebody who lives holds it, or it cannot be written; with `EX_CANTCREAT`, and said on stderr.
    """
    import atexit  # only for this

    lock = Pidfile(pidfile)
    try:
        lock.acquire()
    except LockFailed as exc:
        sys.stderr.write(f"ERROR: {exc}.\n")
        raise SystemExit(EX_CANTCREAT) from exc
    owner = os.getpid()
    atexit.register(lambda: lock.release() if os.getpid() == owner else None)
    return lock


# -- daemons ----------------------------------------------------------------------------------------------


class DaemonContext:
    """Goes on in the background inside a `with`: a session of its own, no terminal, output to nowhere.

    Args:
        workdir: Where it goes; default `/`.
        umask: A number or octal text.
        fake: Do not go to the background, only do the rest.
        after_chdir: Called before the output is given up.
        after_forkers: Taken for Celery's sake; nothing is to be done here.
    """

    def __init__(
        self,
        pidfile: str | None = None,
        workdir: str | None = None,
        umask: int | str | None = None,
        fake: bool = False,
        after_chdir: Callable[[], Any] | None = None,
        after_forkers: bool = True,
        **kwargs: Any,
    ) -> None:
        self.workdir = workdir or DAEMON_WORKDIR
        self.umask = int(umask, 8) if isinstance(umask, str) else umask
        self.fake = fake
        self.after_chdir = after_chdir
        self.stdfds = (sys.stdin, sys.stdout, sys.stderr)
        self._is_open = False

    def open(self) -> None:
        """Go to the background; the process that called ends, with code 0."""
        if self._is_open:
            return
        if not self.fake:
            sys.stdout.flush()
            sys.stderr.flush()
            _leave_caller()
            os.setsid()
            _leave_caller()  # so that it can never have a terminal again
        os.chdir(self.workdir)
        if self.umask is not None:
            os.umask(self.umask)
        if self.after_chdir is not None:
            self.after_chdir()
        if not self.fake:
            null = os.open(os.devnull, os.O_RDWR)
            for fd in range(3):
                os.dup2(null, fd)
            os.close(null)
        self._is_open = True

    def close(self, *args: Any) -> None:
        """There is no way back; the next `open` does it anew."""
        self._is_open = False

    def __enter__(self) -> DaemonContext:
        self.open()
        return self

    __exit__ = close


def _leave_caller() -> None:
    if os.fork():
        os._exit(0)


def detached(
    logfile: str | None = None,
    pidfile: str | None = None,
    uid: str | int | None = None,
    gid: str | int | None = None,
    umask: int | str = 0,
    workdir: str | None = None,
    fake: bool = False,
    **opts: Any,
) -> DaemonContext:
    """What goes on in the background inside a `with`, as another user if asked.

    Raises:
        LockFailed: The pid file is held by a process that runs.
        OSError: The log file cannot be written. Both before anything is done.
    """
    workdir = os.getcwd() if workdir is None else workdir
    maybe_drop_privileges(uid=uid, gid=gid)
    if logfile:
        with open(logfile, "a", encoding="utf-8"):
            pass  # said now, while there is a terminal
    if pidfile and Pidfile(pidfile).is_locked():
        raise Pidfile(pidfile)._held()
    return DaemonContext(umask=umask, workdir=workdir, fake=fake, **opts)


# -- users and groups -------------------------------------------------------------------------------------


def parse_uid(uid: str | int) -> int:
    """The number of a user, given as number or name.

    Raises:
        KeyError: There is no such user.
    """
    return int(uid) if str(uid).isdigit() else _user(uid).pw_uid


def parse_gid(gid: str | int) -> int:
    """The number of a group, likewise."""
    return int(gid) if str(gid).isdigit() else _group(gid)


def _user(uid: str | int) -> pwd.struct_passwd:
    try:
        return pwd.getpwuid(int(uid)) if str(uid).isdigit() else pwd.getpwnam(str(uid))
    except KeyError:
        raise KeyError(f"there is no user {uid!r} on this machine") from None


def _group(gid: str | int) -> int:
    try:
        return (grp.getgrgid(int(gid)) if str(gid).isdigit() else grp.getgrnam(str(gid))).gr_gid
    except KeyError:
        raise KeyError(f"there is no group {gid!r} on this machine") from None


def setgroups(groups: Iterable[int]) -> None:
    """Have these supplementary groups, and no others."""
    os.setgroups(list(groups))


def initgroups(uid: int, gid: int) -> None:
    """Have the supplementary groups of a user."""
    os.initgroups(pwd.getpwuid(uid).pw_name, gid)


def setgid(gid: str | int) -> None:
    """Become a group, by number or name."""
    os.setgid(parse_gid(gid))


def setuid(uid: str | int) -> None:
    """Become a user, by number or name."""
    os.setuid(parse_uid(uid))


def maybe_drop_privileges(uid: str | int | None = None, gid: str | int | None = None) -> None:
    """Become another user and group, wholly: supplementary groups too, and with no way back. Nothing, if none is given.

    Args:
        uid, gid: Names or numbers. Without `gid` the user's own groups; without `uid` only the group changes.
    Raises:
        KeyError: No such user or group.
        PermissionError: This process may not change.
        SecurityError: It could still become root again.
    """
    if uid is None and gid is None:
        return
    user = None if uid is None else _user(uid)
    wanted = os.getuid() if user is None else user.pw_uid
    group = _group(gid) if gid is not None else user.pw_gid if user is not None else os.getgid()
    if (os.getuid(), os.geteuid(), os.getgid(), os.getegid()) == (wanted, wanted, group, group):
        return
    if user is not None:
        os.initgroups(user.pw_name, group)
    else:
        os.setgroups([group])
    os.setresgid(group, group, group)
    os.setresuid(wanted, wanted, wanted)
    if wanted != 0:
        try:
            os.setuid(0)
        except PermissionError:
            pass  # as it should be
        else:
            raise SecurityError("this process could still become root again; it will not run")
    if user is not None:
        os.environ.update(HOME=user.pw_dir, USER=user.pw_name, LOGNAME=user.pw_name)


# -- signals ----------------------------------------------------------------------------------------------


class Signals:
    """Signals by short names: `signals["TERM"] = handler`, `signals.reset("INT", "USR1")`.

    Names that this system does not have are passed over, so that one program serves all. Handlers can be set in the
    main thread only; elsewhere nothing is done.
    """

    ignored: Final = signal.SIG_IGN
    default: Final = signal.SIG_DFL

    def signum(self, name: Any) -> int:
        """The number of `TERM`, `SIGTERM` or a number.

        Raises:
            AttributeError: This system has no such signal.
            TypeError: It is neither a name nor a number.
        """
        if isinstance(name, int):
            return name
        if not isinstance(name, str) or not name.isupper():
            raise TypeError(f"a signal is named in capitals, as TERM, or by its number; not {name!r}")
        return int(getattr(signal, name if name.startswith("SIG") else f"SIG{name}"))

    def supported(self, name: str | int) -> bool:
        """Whether this system has it."""
        try:
            self.signum(name)
        except AttributeError:
            return False
        return True

    def alarm(self, seconds: float) -> None:
        """Ask for an ALRM after so long; no sooner."""
        signal.alarm(math.ceil(seconds))

    arm_alarm = alarm

    def reset_alarm(self) -> None:
        """Ask for none."""
        signal.alarm(0)

    def reset(self, *names: str | int) -> None:
        """Have the system's own handlers for these."""
        self.update((name, self.default) for name in names)

    def ignore(self, *names: str | int) -> None:
        """Do nothing when these come."""
        self.update((name, self.ignored) for name in names)

    def update(self, handlers: Any = (), **more: Any) -> None:
        """Set several handlers: a mapping, or pairs."""
        pairs = handlers.items() if isinstance(handlers, Mapping) else handlers
        for name, handler in [*pairs, *more.items()]:
            self[name] = handler

    def __getitem__(self, name: str | int) -> Any:
        return signal.getsignal(self.signum(name))

    def __setitem__(self, name: str | int, handler: Any) -> None:
        try:
            signal.signal(self.signum(name), handler)
        except (AttributeError, ValueError):
            return  # this system has none such; or this is not the main thread


signals: Final = Signals()


def signal_name(signum: int) -> str:
    """`TERM` for 15."""
    return signal.Signals(signum).name.removeprefix("SIG")


# -- the process ------------------------------------------------------------------------------------------


def pyimplementation() -> str:
    """`CPython`, `PyPy` …"""
    return _platform.python_implementation()


def get_fdmax(default: int | None = None) -> int | None:
    """One more than the highest descriptor that this process may have."""
    import resource  # not on every system

    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    return default if most == resource.RLIM_INFINITY else most


def close_open_fds(keep: Iterable[Any] | None = None) -> None:
    """Close all descriptors but these (numbers, or files)."""
    kept = {one if isinstance(one, int) else one.fileno() for one in keep or ()}
    try:
        there = [int(name) for name in os.listdir("/dev/fd")]
    except OSError:  # this system does not show them
        there = list(range(get_fdmax() or 65536))
    for fd in there:
        if fd not in kept:
            with contextlib.suppress(OSError):  # not open: the one by which they were listed, say
                os.close(fd)


def isatty(fh: Any) -> bool:
    """Whether a file is a terminal; also if it is no file at all, or closed."""
    try:
        return bool(fh.isatty())
    except (AttributeError, ValueError):
        return False


def strargv(argv: Iterable[str]) -> str:
    """The words of a command line in one text."""
    return " ".join(argv)


def set_process_title(progname: str, info: str | None = None) -> str:
    """Call this process so in `ps`, where setproctitle is installed; returns the title."""
    title = f"[{progname}] {info}" if info else f"[{progname}]"
    with contextlib.suppress(ImportError):
        importlib.import_module("setproctitle").setproctitle(title)
    return title


def get_errno_name(n: int | str) -> int:
    """The number of an error, by name or number."""
    return n if isinstance(n, int) else int(getattr(errno, n))


@contextlib.contextmanager
def ignore_errno(*errnos: int | str, types: type[Exception] | tuple[type[Exception], ...] = OSError) -> Iterator[None]:
    """Pass over errors of the system with these numbers or names."""
    numbers = {get_errno_name(one) for one in errnos}
    try:
        yield
    except types as exc:
        if getattr(exc, "errno", None) not in numbers:
            raise
