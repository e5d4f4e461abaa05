"""`celeriac multi`: start and stop several workers on this machine, as Celery's start-up scripts do."""

from __future__ import annotations

import os
import re
import select
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Final, NamedTuple

import click

from celeriac.cli.daemon import expand, is_held, read_pid
from celeriac.cli.errors import FAILED
from celeriac.cli.group import Command
from celeriac.utils.ids import hostname
from celeriac.utils.nodenames import host_format, node_format

DEFAULT_PIDFILE: Final = "/var/run/celery/%n.pid"
DEFAULT_LOGFILE: Final = "/var/log/celery/%n%I.log"
#: Options of `multi` itself; the others are the workers'.
OWN: Final = ("cmd", "append", "prefix", "suffix", "range-prefix")
FLAGS: Final = ("nosplash", "quiet", "verbose", "no-color")
STOP_PAUSE_S: Final = 0.1

HELP: Final = """Usage: celeriac multi VERB NODES [OPTIONS of the workers]

  Start and stop several workers on this machine.

  start w1 w2 -A proj -l info     start workers w1@host and w2@host, in the background
  start 3 -A proj -c 4            celery1, celery2, celery3
  stop w1 w2                      TERM: running tasks finish (-INT, -QUIT … for another signal)
  stopwait w1 w2                  the same, and wait until they have ended
  restart w1 w2 -A proj           stopwait, then start
  kill w1 w2                      KILL: what they ran is run by others
  show 3 -A proj                  the commands that start would run
  get NODE 3 -A proj              the one of this node
  names 3 / expand TEMPLATE 3     node names; a template such as /run/%n.pid for each

  -c:1-3 10   -Q:w2,w4 images     an option for some nodes only, by number or name
  --pidfile=/var/run/celery/%n.pid   --logfile=/var/log/celery/%n%I.log
  --cmd=COMMAND --append=WORDS    run something else than «celeriac worker», with words after the options
  --prefix= --suffix= --range-prefix=celery --hostname=   how nodes are named
"""


class Node(NamedTuple):
    """One worker to be: its node name, and its options."""

    name: str
    options: Mapping[str, str | None]

    @property
    def pidfile(self) -> str:
        """Its pid file."""
        return os.path.abspath(expand(self.options.get("--pidfile") or DEFAULT_PIDFILE, self.name))


class Request(NamedTuple):
    """A command line of `multi`, read."""

    verb: str
    template: str
    nodes: list[Node]
    signum: int
    own: Mapping[str, str]
    rest: list[str]
    quiet: bool
    verbose: bool


VERBS: Final = ("start", "stop", "stopwait", "restart", "kill", "show", "get", "names", "expand", "help")
_SIGNAL: Final = re.compile(r"^-(?:SIG)?([A-Z][A-Z0-9]+)$")


@click.command(
    cls=Command,
    add_help_option=False,
    context_settings={"ignore_unknown_options": True, "allow_extra_args": True, "allow_interspersed_args": False},
)
@click.argument("words", nargs=-1, type=click.UNPROCESSED)
@click.pass_context
def multi(ctx: click.Context, words: tuple[str, ...]) -> None:
    """Start and stop several workers on this machine."""
    request = parse(list(words))
    if request.verb == "help":
        click.echo(HELP)
        return
    ctx.exit(_VERBS[request.verb](request))


def parse(words: list[str]) -> Request:
    """Read the words after `multi`.

    Raises:
        click.UsageError: No such verb, or no nodes.
    """
    verb = words.pop(0) if words else "help"
    if verb in ("-h", "--help"):
        verb = "help"
    if verb not in VERBS:
        raise click.UsageError(f"multi: there is no {verb!r}. There are: {', '.join(VERBS)}.")
    names, given, rest = split(words)
    template = names.pop(0) if verb in ("get", "expand") and names else ""
    signum = int(signal.SIGKILL if verb == "kill" else signal.SIGTERM)
    for word in [word for word, value in given if value is None and _SIGNAL.match(word)]:
        signum = _signal_of(word)
        given = [pair for pair in given if pair[0] != word]
    own = {word[2:]: value for word, value in given if word[2:] in OWN and value is not None}
    flags = {word[2:] for word, value in given if word[2:] in FLAGS}
    short = {"-q": "quiet", "-v": "verbose"}
    flags |= {short[word] for word, value in given if word in short}
    workers = [
        pair for pair in given if pair[0][2:] not in OWN and pair[0] not in short and pair[0][2:] not in FLAGS[:3]
    ]
    if not names and verb != "help":
        raise click.UsageError(f"multi {verb}: which nodes? Give names (w1 w2) or a number (3).")
    return Request(
        verb, template, make_nodes(names, workers, own), signum, own, rest, "quiet" in flags, "verbose" in flags
    )


def _signal_of(word: str) -> int:
    name = f"SIG{_SIGNAL.match(word).group(1)}"  # type: ignore[union-attr]
    try:
        return int(getattr(signal, name))
    except AttributeError:
        raise click.UsageError(f"multi: there is no signal {name}.") from None


def split(words: Sequence[str]) -> tuple[list[str], list[tuple[str, str | None]], list[str]]:
    """Node names, options with their values, and what follows `--`.

    An option takes the next word as its value unless that begins with a dash, or it is a signal or a known flag.
    """
    alone = {f"--{name}" for name in FLAGS} | {"-q", "-v"} | set(_FLAGS_OF_WORKERS)
    names: list[str] = []
    given: list[tuple[str, str | None]] = []
    todo = list(words)
    while todo:
        word = todo.pop(0)
        if word == "--":
            return names, given, ["--", *todo]
        if not word.startswith("-"):
            names.append(word)
            continue
        option, equals, value = word.partition("=")
        if equals:
            given.append((option, value))
        elif option.partition(":")[0] in alone or _SIGNAL.match(option) or not todo or todo[0].startswith("-"):
            given.append((option, None))
        else:
            given.append((option, todo.pop(0)))
    return names, given, []


#: Options of `worker` without a value: the word after them is a node.
_FLAGS_OF_WORKERS: Final = (
    "-E", "--task-events", "--events", "-B", "--beat", "--purge", "--discard", "--without-gossip", "--without-mingle",
    "--gossip", "--mingle",
    "--without-heartbeat", "-D", "--detach", "--disable-prefetch", "-C", "--traceback",
    "--skip-checks", "--pool-putlocks", "--no-pool-putlocks",
)  # fmt: skip


def make_nodes(names: Sequence[str], given: Sequence[tuple[str, str | None]], own: Mapping[str, str]) -> list[Node]:
    """The nodes of names or of a number, each with its options: `-c:1-3 10` is for the first three."""
    prefix = own.get("range-prefix") or own.get("prefix") or "celery"
    if len(names) == 1 and names[0].isdigit():
        names = [f"{prefix}{number}" for number in range(1, int(names[0]) + 1)]
    elif own.get("prefix"):
        names = [f"{own['prefix']}{name}" for name in names]
    host = dict(given).get("--hostname") or dict(given).get("-n")
    suffix = own.get("suffix") or (host_format(host) if host else hostname())
    shared = {option: value for option, value in given if ":" not in option and option not in ("--hostname", "-n")}
    full = [name if "@" in name else f"{name}@{suffix}" for name in names]
    options: list[dict[str, str | None]] = [dict(shared) for _ in full]
    for option, value in given:
        flag, colon, whom = option.partition(":")
        if colon:
            for index in _indexes(whom, names):
                options[index][flag] = value
    return [Node(name, own_options) for name, own_options in zip(full, options, strict=True)]


def _indexes(text: str, names: Sequence[str]) -> Iterator[int]:
    """Positions of `1-3`, `2,4` or `w1,w2` among the nodes.

    Raises:
        click.UsageError: There is no such node.
    """
    for part in text.split(","):
        first, dash, last = part.partition("-")
        if first.isdigit() and (last.isdigit() or not dash):
            wanted = range(int(first) - 1, int(last or first))
            if wanted.start < 0 or wanted.stop > len(names):
                raise click.UsageError(f"multi: :{part} is outside of the {len(names)} nodes.")
            yield from wanted
        elif part in names:
            yield names.index(part)
        else:
            raise click.UsageError(f"multi: there is no node {part!r}; there are: {', '.join(names)}.")


def command_of(node: Node, request: Request) -> list[str]:
    """The words that start a node."""
    options = dict(node.options)
    if "cmd" in request.own:
        words = shlex.split(request.own["cmd"])
    else:
        app = next((options.pop(name) for name in ("-A", "--app") if name in options), None)
        words = [sys.executable, "-m", "celeriac", *(("-A", app) if app else ()), "worker"]
    options.setdefault("--pidfile", DEFAULT_PIDFILE)
    options.setdefault("--logfile", options.pop("-f", None) or DEFAULT_LOGFILE)
    words += ["--detach", "-n", node.name]
    for option, value in options.items():
        expanded = value if value is None else node_format(value, node.name, i="%i", I="%I")
        if expanded is None:
            words.append(option)
        elif option.startswith("--"):
            words.append(f"{option}={expanded}")
        else:
            words += [option, expanded]
    return [*words, *shlex.split(request.own.get("append", "")), *request.rest]


# -- verbs: each returns the exit code, the number of nodes for which it failed ---------------------------------


def start(request: Request) -> int:
    """Start all; one that does not come up costs the others nothing."""
    failed = 0
    for node in request.nodes:
        if is_held(node.pidfile):
            _say(request, f"> {node.name}: runs already (pid {read_pid(node.pidfile)})")
            continue
        words = command_of(node, request)
        if request.verbose:
            _say(request, f"> {shlex.join(words)}")
        try:
            code = subprocess.run(words, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL).returncode
        except OSError as exc:  # of --cmd
            _say(request, f"> {node.name}: cannot run {words[0]!r}: {exc.strerror}")
            code = FAILED
        failed += code != 0
        _say(request, f"> {node.name}: {'OK' if code == 0 else f'FAILED (exit code {code})'}")
    return failed


def stop(request: Request) -> int:
    """Send the signal to those that run."""
    _signal(request)
    return 0


def stopwait(request: Request) -> int:
    """Send the signal, and wait for the end of each."""
    waiting = _signal(request)
    while waiting:
        time.sleep(STOP_PAUSE_S)
        for node, process in [pair for pair in waiting if pair[1].has_ended()]:
            waiting.remove((node, process))
            _say(request, f"> {node.name}: has ended")
    return 0


def restart(request: Request) -> int:
    """Stop all, then start all."""
    stopwait(request)
    return start(request)


class _Process:
    """A process by its number, and by a handle that no later process of that number is taken for."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._handle = os.pidfd_open(pid) if hasattr(os, "pidfd_open") else None

    def has_ended(self) -> bool:
        """Also of one that nobody has waited for."""
        if self._handle is not None:
            return bool(select.select([self._handle], [], [], 0)[0])
        try:
            os.kill(self._pid, 0)
        except OSError:
            return True
        return False


def _signal(request: Request) -> list[tuple[Node, _Process]]:
    signalled = []
    for node in request.nodes:
        pid = read_pid(node.pidfile)
        if pid is None or not is_held(node.pidfile):
            _say(request, f"> {node.name}: does not run (no living process holds {node.pidfile})")
            continue
        try:
            process = _Process(pid)
            os.kill(pid, request.signum)
        except OSError as exc:
            _say(request, f"> {node.name}: pid {pid}: {exc.strerror}")
            continue
        _say(request, f"> {node.name}: {signal.Signals(request.signum).name} -> {pid}")
        signalled.append((node, process))
    return signalled


def show(request: Request) -> int:
    """Print the commands."""
    for node in request.nodes:
        click.echo(shlex.join(command_of(node, request)))
    return 0


def get(request: Request) -> int:
    """Print the command of one node."""
    for node in request.nodes:
        if request.template in (node.name, node.name.partition("@")[0]):
            click.echo(shlex.join(command_of(node, request)))
            return 0
    raise click.UsageError(f"multi get: there is no node {request.template!r} among these.")


def names(request: Request) -> int:
    """Print node names."""
    for node in request.nodes:
        click.echo(node.name)
    return 0


def expand_all(request: Request) -> int:
    """Print a template for each node."""
    for node in request.nodes:
        click.echo(node_format(request.template, node.name, i="%i", I="%I"))
    return 0


def _say(request: Request, text: str) -> None:
    if not request.quiet:
        click.echo(text)


_VERBS: Final[Mapping[str, Callable[[Request], int]]] = {
    "start": start, "stop": stop, "stopwait": stopwait, "kill": stop, "restart": restart, "show": show, "get": get,
    "names": names, "expand": expand_all,
}  # fmt: skip
