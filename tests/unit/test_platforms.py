"""`celeriac.platforms`: pid files, users, signals and the rest, as programs import them."""

from __future__ import annotations

import errno
import fcntl
import os
import pwd
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from celeriac import platforms
from celeriac.platforms import LockFailed, Pidfile, create_pidlock, detached, maybe_drop_privileges, signals
from celeriac.testing.kit import eventually


def test_a_pid_file_is_held_by_one_and_gone_after_it(tmp_path: Path) -> None:
    path = tmp_path / "x.pid"
    with Pidfile(path) as held:
        assert held.read_pid() == os.getpid()
        other = Pidfile(path)
        assert other.is_locked()
        assert not other.remove_if_stale()
        with pytest.raises(LockFailed, match=f"belongs to process {os.getpid()}, which runs"):
            other.acquire()
    assert not path.exists()


def test_what_a_dead_process_left_may_be_taken(tmp_path: Path) -> None:
    path = tmp_path / "x.pid"
    path.write_text("1\n")
    assert not Pidfile(path).is_locked()
    with Pidfile(path) as held:
        assert held.read_pid() == os.getpid()
    path.write_text("1\n")
    assert Pidfile(path).remove_if_stale()
    assert not path.exists()


def test_a_lock_lasts_until_its_process_ends(tmp_path: Path) -> None:
    path = tmp_path / "x.pid"
    name = str(path)
    code = f"from celeriac.platforms import create_pidlock; create_pidlock({name!r}); print(open({name!r}).read())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) > 1
    assert not path.exists()


def test_a_lock_that_is_held_ends_the_program(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Pidfile(tmp_path / "x.pid"), pytest.raises(SystemExit) as ended:
        create_pidlock(tmp_path / "x.pid")
    assert ended.value.code == platforms.EX_CANTCREAT
    assert "which runs" in capsys.readouterr().err


def test_detached_goes_on_in_the_background(tmp_path: Path) -> None:
    told = tmp_path / "told"
    os.mkfifo(told)
    code = (
        "import os; from celeriac.platforms import detached\n"
        f"with detached(workdir={str(tmp_path)!r}, umask='027'):\n"
        f"    said = os.getpid(), os.getsid(0) != {os.getsid(0)}, os.getcwd(), oct(os.umask(0))\n"
        "    open('told', 'w').write(' '.join(map(str, said)))"
    )
    caller = subprocess.Popen([sys.executable, "-c", code])
    pid, own_session, folder, mask = told.read_text().split()
    assert caller.wait(20) == 0
    assert int(pid) != caller.pid
    assert (own_session, folder, mask) == ("True", str(tmp_path), "0o27")


def test_detached_says_at_once_that_somebody_runs(tmp_path: Path) -> None:
    with Pidfile(tmp_path / "x.pid"), pytest.raises(LockFailed):
        detached(pidfile=str(tmp_path / "x.pid"))


def test_users_and_groups_have_numbers_and_names() -> None:
    me = pwd.getpwuid(os.getuid())
    assert platforms.parse_uid(me.pw_name) == platforms.parse_uid(me.pw_uid) == platforms.parse_uid(str(me.pw_uid))
    with pytest.raises(KeyError, match="no user 'nobody-of-that-name'"):
        platforms.parse_uid("nobody-of-that-name")
    maybe_drop_privileges()
    maybe_drop_privileges(uid=me.pw_uid, gid=os.getgid())  # who one is already


def test_signals_go_by_short_names() -> None:
    before = signals["USR2"]
    heard: list[int] = []
    try:
        signals["USR2"] = lambda number, frame: heard.append(number)
        os.kill(os.getpid(), signal.SIGUSR2)
        assert heard == [signals.signum("SIGUSR2")] == [signal.SIGUSR2]
        signals.ignore("USR2")
        os.kill(os.getpid(), signal.SIGUSR2)
        assert len(heard) == 1
        signals.update(NOSUCH=None)
        assert not signals.supported("NOSUCH")
        with pytest.raises(TypeError):
            signals.signum("usr2")
    finally:
        signals["USR2"] = before
    assert platforms.signal_name(15) == "TERM"


def test_errors_of_the_system_are_passed_over_by_name() -> None:
    with platforms.ignore_errno("ENOENT"):
        os.unlink("/no/such/file")
    with pytest.raises(FileNotFoundError), platforms.ignore_errno(errno.EPIPE):
        os.unlink("/no/such/file")


def test_a_file_that_was_taken_away_under_our_hands_is_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x.pid"
    first = Pidfile(path).acquire()
    flock = fcntl.flock

    def late(fd: int, operation: int) -> None:  # as if the first had ended between our opening and locking it
        monkeypatch.setattr(fcntl, "flock", flock)
        first.remove()
        flock(fd, operation)

    monkeypatch.setattr(fcntl, "flock", late)
    with Pidfile(path) as second:
        assert second.read_pid() == os.getpid()
        assert Pidfile(path).is_locked()


def test_what_a_killed_worker_has_forked_does_not_hold_its_pid_file(tmp_path: Path) -> None:
    path = tmp_path / "x.pid"
    code = (
        "import os, signal; from celeriac.cli.daemon import PidFile\n"
        f"held = PidFile({str(path)!r})\n"
        "child = os.fork()\n"
        "if not child: signal.pause()\n"
        "print(child, flush=True)\n"
        "os._exit(0)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        child = int(holder.stdout.readline())
        try:
            holder.wait(20)
            assert path.exists()
            eventually(lambda: not Pidfile(path).is_locked())
        finally:
            os.kill(child, signal.SIGKILL)


def test_all_descriptors_are_closed_but_those_to_be_kept() -> None:
    code = (
        "import os; from celeriac.platforms import close_open_fds; kept, other = os.pipe()\n"
        "close_open_fds([0, 1, 2, kept]); os.fstat(kept)\n"
        "try: os.fstat(other)\n"
        "except OSError: os.write(1, b'as it should be')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    assert done.stdout == b"as it should be"
