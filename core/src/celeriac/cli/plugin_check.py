"""Loads one plugin in a process of its own, which may hang or die. Called by `celeriac plugins check`.

`python -m celeriac.cli.plugin_check FD KIND NAME` is the child; it writes its verdict to the descriptor FD,
since a plugin may print what it likes while it is imported.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from typing import Any, NamedTuple

from celeriac.exceptions import CeleriacError, ImproperlyConfigured, PluginError
from celeriac.kernel.discovery import PluginInfo
from celeriac.kernel.kernel import Kernel
from celeriac.kernel.loader import broken


class Verdict(NamedTuple):
    """`error` says what is wrong, with the plugin's name; empty if nothing was found."""

    ok: bool
    error: str = ""


def check_plugin(info: PluginInfo, timeout_s: float) -> Verdict:
    """Load a plugin, and let it make its object where that needs no more than a URL or a name."""
    reading, writing = os.pipe()
    name = f"{info.name}@{info.dist_name}" if info.dist_name else info.name
    child = subprocess.Popen(
        [sys.executable, "-m", __name__, str(writing), info.kind, name],
        pass_fds=[writing],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,  # so that all it may have started can be ended with it
        env={**os.environ, "PYTHONPATH": os.pathsep.join(folder or os.curdir for folder in sys.path)},
    )
    os.close(writing)
    with open(reading, encoding="utf-8", errors="replace") as verdict:
        try:
            code = child.wait(timeout_s)
        except subprocess.TimeoutExpired:
            os.killpg(child.pid, signal.SIGKILL)
            child.wait()
            return Verdict(False, str(broken(info, f"importing {info.module} did not end within {timeout_s:g} s")))
        text = verdict.read() if code == 0 else ""
    if not text:
        how = f"signal {-code}" if code < 0 else f"exit code {code}"
        return Verdict(False, str(broken(info, f"importing {info.module} ended the process with {how}")))
    return Verdict(*json.loads(text))


class NoHost:
    """A backend's host where there is no app."""

    def __getattr__(self, name: str) -> Any:
        raise ImproperlyConfigured(f"there is no app in a check, so no {name}")


def try_plugin(kind: str, name: str) -> Verdict:
    """In the child: the verdict."""
    kernel = Kernel({})
    try:
        info = kernel.find(kind, name)
        url = f"{info.name}://"
        if kind == "broker":
            kernel.make_transport(url, name)
        elif kind == "backend":
            kernel.make_backend(url, name, NoHost())
        elif kind == "serializer":
            kernel.make_serializer(name)
        else:
            kernel.load(info)
    except PluginError as exc:
        return Verdict(False, str(exc))
    except CeleriacError:
        pass  # it was loaded, and wants a better URL than ours
    return Verdict(True)


def main() -> None:
    """The child."""
    descriptor, kind, name = sys.argv[1:]
    verdict = try_plugin(kind, name)
    with open(int(descriptor), "w", encoding="utf-8") as out:
        out.write(json.dumps(verdict))
    os._exit(0)  # threads that the plugin may have started are not waited for


if __name__ == "__main__":
    main()
