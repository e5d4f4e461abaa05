"""The command group: which commands there are, the options all of them share, and how a command is run.

`celeriac --help` imports none of the commands: `COMMANDS` has a line about each.
"""

from __future__ import annotations

import contextlib
import difflib
import os
import warnings
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any, NamedTuple, TypeVar

import click

from celeriac.cli.errors import report_error, say, show_warning
from celeriac.exceptions import PluginError

PROG = "celeriac"
F = TypeVar("F", bound=Callable[..., Any])

#: name → (module with an object of that name, or module:object; what it does)
COMMANDS: Mapping[str, tuple[str, str]] = {
    "worker": ("celeriac.cli.worker", "Run tasks: start a worker."),
    "call": ("celeriac.cli.call", "Send a call of a task and print its id."),
    "result": ("celeriac.cli.result", "Print the result of a call."),
    "purge": ("celeriac.cli.purge", "Remove all waiting messages from queues."),
    "dead": ("celeriac.cli.dead", "List, show, give back or drop messages that were set aside."),
    "beat": ("celeriac.cli.beat", "Send periodic tasks when they are due."),
    "schedule": ("celeriac.cli.schedule", "List, add, pause and trigger periodic tasks of running beats."),
    "status": ("celeriac.cli.remote", "Show which workers are online."),
    "inspect": ("celeriac.cli.remote", "Ask running workers about themselves."),
    "control": ("celeriac.cli.remote", "Tell running workers what to do."),
    "events": ("celeriac.cli.events", "Watch workers and tasks."),
    "multi": ("celeriac.cli.multi", "Start and stop several workers on this machine."),
    "plugins": ("celeriac.cli.plugins", "List, show and check the installed plugins."),
    "top": ("celeriac.cli.top", "Watch workers, queues and tasks on a live page."),
    "check": ("celeriac.cli.check", "Check settings, tasks and plugins; for CI."),
    "doctor": ("celeriac.cli.doctor", "Find out what is wrong with settings, servers and workers."),
    "shell": ("celeriac.cli.shell", "Start a Python shell with the app and its tasks."),
    "list": ("celeriac.cli.listing:list_group", "List the app's queues and their bindings."),
    "graph": ("celeriac.cli.listing", "Print graphs of workers and of what a worker starts."),
    "logtool": ("celeriac.cli.logtool", "Count and find things in worker logs."),
    "migrate": ("celeriac.cli.migrate", "Send waiting messages from one broker to another."),
    "amqp": ("celeriac.cli.amqp", "Speak AMQP with the broker by hand."),
    "upgrade": ("celeriac.cli.upgrade", "Rewrite old names of settings in a file."),
    "report": ("celeriac.cli.report", "Print versions and settings, for bug reports."),
}


#: Commands that may have options of the app's own.
WITH_USER_OPTIONS = ("worker", "beat", "events")


class Common(NamedTuple):
    """The options that all commands share, as given; see `common_options`."""

    app: str | None = None
    broker: str | None = None
    result_backend: str | None = None
    broker_plugin: str | None = None
    backend_plugin: str | None = None
    loader: str | None = None
    config: str | None = None
    workdir: str | None = None
    no_color: bool = False
    quiet: bool = False
    traceback: bool = False
    skip_checks: bool = False


class State:
    """What the commands get as `ctx.obj`: the common options, and the app they lead to.

    Args:
        app: An app that is there already (`app.start()`), or None.
    """

    def __init__(self, app: Any = None) -> None:
        self.given = Common()
        self._app = app
        self._was_given = app is not None
        self._applied: Common | None = None
        self._began_in = ""

    def take(self, options: Mapping[str, Any]) -> None:
        """Note common options; those that were not given leave earlier ones as they are."""
        self.given = self.given._replace(**{key: value for key, value in options.items() if value})
        if self.given.traceback:
            os.environ["CELERIAC_TRACEBACK"] = "1"
        if self.given.skip_checks:
            os.environ["CELERIAC_SKIP_CHECKS"] = "1"
        if options.get("config"):
            os.environ["CELERIAC_CONFIG_MODULE"] = options["config"]  # for apps that name no source of their own
        if self.given.workdir and options.get("workdir"):
            self._enter(self.given.workdir)

    def app(self, *, required: bool = False) -> Any:
        """The app of `-A`, with the settings of `-b` and its kin; without `-A` one of its own.

        Args:
            required: Without `-A` there is nothing to do.
        """
        from celeriac.cli.find_app import find_app  # imports the whole library, which help does not need

        if self._app is None:
            if not self.given.app and required:
                raise click.UsageError(
                    "Which app? Name its module: celeriac -A tasks worker (for tasks.py with app = Celery(…))."
                )
            self._app = find_app(self.given.app)
        if self._applied != self.given:  # the app may have been wanted before all options were read
            if self.given.loader:
                self._app.loader_cls = _find_loader(self.given.loader)
            names = {"broker": "broker_url", "result_backend": "result_backend"}
            changes = {name: getattr(self.given, option) for option, name in names.items()}
            changes |= {name: getattr(self.given, name) for name in ("broker_plugin", "backend_plugin")}
            self._app.conf.override({name: value for name, value in changes.items() if value})
            self._applied = self.given
        return self._app

    @property
    def app_name(self) -> str | None:
        """What `-A` says, or nothing; None for an app that was there already."""
        return None if self._was_given else self.given.app or ""

    @property
    def knows_app(self) -> bool:
        """Whether the app was found already."""
        return self._applied is not None

    def go_back(self) -> None:
        """To the folder where this process began, for the same command line to run anew: its `--workdir` counts from
        there."""
        if self._began_in:
            with contextlib.suppress(OSError):  # it is gone: then only a whole path leads on
                os.chdir(self._began_in)

    def _enter(self, folder: str) -> None:
        try:
            self._began_in = self._began_in or os.getcwd()
            os.chdir(folder)
        except OSError as exc:
            raise click.UsageError(f"--workdir: cannot enter {folder!r}: {exc.strerror}.") from exc


class Option(click.Option):
    """An option that also reads Celery's environment variable: CELERY_WORKER_POOL after CELERIAC_WORKER_POOL."""

    def resolve_envvar_value(self, ctx: click.Context) -> str | None:
        """The first variable that is set."""
        value = super().resolve_envvar_value(ctx)
        prefix = ctx.auto_envvar_prefix
        if value is None and self.allow_from_autoenv and prefix and self.name:
            value = os.environ.get(f"{prefix.replace('CELERIAC', 'CELERY', 1)}_{self.name.upper()}") or None
        return value


def option(*names: str, **attributes: Any) -> Callable[[F], F]:
    """`click.option` with our `Option`."""
    return click.option(*names, cls=Option, **attributes)


def common_options(*, hidden: bool) -> list[click.Option]:
    """The options that all commands share. Commands take them too, hidden, and without their variables."""

    def envvar(*names: str) -> list[str] | None:
        return None if hidden else list(names)

    shared: dict[str, Any] = {"hidden": hidden, "expose_value": False, "callback": _take}
    return [
        Option(
            ["-A", "--app"], metavar="APP", envvar=envvar("CELERIAC_APP", "CELERY_APP", "APP"), **shared,
            help="The app: its module (tasks), or with its name in there (tasks:app, proj.tasks.app).",
        ),
        Option(
            ["-b", "--broker"], metavar="URL", **shared,
            envvar=envvar("CELERIAC_BROKER", "CELERY_BROKER", "BROKER_URL"),
            help="The broker's URL, instead of the setting broker_url.",
        ),
        Option(
            ["--result-backend"], metavar="URL", **shared,
            envvar=envvar("CELERIAC_RESULT_BACKEND", "CELERY_RESULT_BACKEND", "RESULT_BACKEND"),
            help="The result store's URL, instead of the setting result_backend.",
        ),
        Option(
            ["--broker-plugin"], metavar="NAME", envvar=envvar("CELERIAC_BROKER_PLUGIN"), **shared,
            help="The broker plugin, NAME or NAME@DIST, instead of the one for the URL's scheme.",
        ),
        Option(
            ["--backend-plugin"], metavar="NAME", envvar=envvar("CELERIAC_BACKEND_PLUGIN"), **shared,
            help="The result backend plugin, likewise.",
        ),
        Option(
            ["--config"], metavar="MODULE", envvar=envvar("CELERIAC_CONFIG", "CELERY_CONFIG"), **shared,
            help="The module of settings, for an app that names none.",
        ),
        Option(
            ["--loader"], metavar="NAME", envvar=envvar("CELERIAC_LOADER", "CELERY_LOADER", "LOADER"), **shared,
            help="The loader class: app, default, or module:Class.",
        ),
        Option(
            ["--workdir"], metavar="FOLDER", envvar=envvar("CELERIAC_WORKDIR", "CELERY_WORKDIR"), **shared,
            help="Go to this folder first.",
        ),
        Option(
            ["-C", "--no-color"], is_flag=True, envvar=envvar("CELERIAC_NO_COLOR", "CELERY_NO_COLOR"), **shared,
            help="Print without colours.",
        ),
        Option(
            ["-q", "--quiet"], is_flag=True, envvar=envvar("CELERIAC_QUIET", "CELERY_QUIET"), **shared,
            help="Print only what was asked for.",
        ),
        Option(
            ["--skip-checks"], is_flag=True, envvar=envvar("CELERIAC_SKIP_CHECKS", "CELERY_SKIP_CHECKS", "SKIP_CHECKS"),
            **shared, help="Start without the system checks of a Django project.",
        ),
        Option(["--traceback"], is_flag=True, **shared, help="Show the traceback of errors (CELERIAC_TRACEBACK=1)."),
    ]  # fmt: skip


class Command(click.Command):
    """A command that also takes the common options after its name: `celeriac worker -A tasks`."""

    def __init__(self, *args: Any, **attributes: Any) -> None:
        super().__init__(*args, **attributes)
        taken = {name for parameter in self.params for name in parameter.opts}
        for extra in common_options(hidden=True):
            if not taken & set(extra.opts):
                self.params.append(extra)

    def invoke(self, ctx: click.Context) -> Any:
        """Run it; what the app wants to know of its own options it is told first."""
        state = ctx.find_object(State)
        if state is not None and state.knows_app:
            from celeriac.cli.user_options import tell_preload_options  # not needed by commands without an app

            tell_preload_options(ctx, state.app())
        return super().invoke(ctx)


class Group(click.Group):
    """The top group: commands are imported when they are used, and those of extensions are found."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Our commands in their order, then those of extensions."""
        _add_extension_commands(self)
        return [*COMMANDS, *sorted({*self.commands, *_commands_for_celery()} - set(COMMANDS))]

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        """Import one command."""
        if name in COMMANDS:
            module, _, attribute = COMMANDS[name][0].partition(":")
            command: click.Command = getattr(import_module(module), attribute or name)
            return command
        _add_extension_commands(self)
        if name not in self.commands and name in _commands_for_celery():
            return _load_command_for_celery(ctx, name)
        return self.commands.get(name)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command of the first word, or say which one may have been meant."""
        name = args[0]
        if not name.startswith("-") and not ctx.resilient_parsing and self.get_command(ctx, name) is None:
            near = difflib.get_close_matches(name, self.list_commands(ctx), n=1, cutoff=0.5)
            hint = f" Did you mean {near[0]!r}?" if near else f" There are: {', '.join(self.list_commands(ctx))}."
            ctx.fail(f"No such command {name!r}.{hint}")
        found = super().resolve_command(ctx, args)
        state = ctx.find_object(State)
        if found[1] is not None and name in WITH_USER_OPTIONS and state is not None and state.given.app:
            from celeriac.cli.user_options import add_user_options  # imports signals, which help does not need

            add_user_options(found[1], name, state.app())
        return found

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the table of commands without importing ours."""
        rows = []
        for name in self.list_commands(ctx):
            if name in COMMANDS:
                text = COMMANDS[name][1]
            elif name in self.commands:
                text = self.commands[name].get_short_help_str()
            else:
                text = "A command of a program written for Celery."
            rows.append((name, text))
        with formatter.section("Commands"):
            formatter.write_dl(rows)


def run(words: list[str], app: Any = None, prog: str = PROG) -> int:
    """Run a command; return the exit code. Nothing but `SystemExit` comes out of it."""
    warnings.showwarning = show_warning
    state = State(app)
    try:
        code = cli.main(words, prog_name=prog, standalone_mode=False, obj=state)
    except (Exception, KeyboardInterrupt) as exc:  # by now nobody else remembers what was said of colours
        plain = state.given.no_color or os.environ.get("NO_COLOR") or {"-C", "--no-color"} & set(words)
        return report_error(exc, False if plain else None)
    return code if isinstance(code, int) else 0


def _find_loader(name: str) -> Any:
    """The class that `--loader` names."""
    from celeriac.loaders import get_loader_cls  # as little needed by help as the app

    try:
        return get_loader_cls(name)
    except (ImportError, AttributeError, ValueError) as exc:
        text = f"--loader: there is no loader {name!r} ({exc}). Give app, default, or module:Class."
        raise click.UsageError(text) from exc


def _take(ctx: click.Context, parameter: click.Parameter, value: Any) -> Any:
    if ctx.obj is None:  # shell completion parses without running
        ctx.obj = State()
    ctx.obj.take({str(parameter.name): value})
    if parameter.name == "no_color" and (value or os.environ.get("NO_COLOR")):
        ctx.color = False
        ctx.obj.take({"no_color": True})
    return value


def _print_version(ctx: click.Context, parameter: click.Parameter, value: bool) -> None:
    if value and not ctx.resilient_parsing:
        from importlib.metadata import version

        click.echo(f"{PROG} {version('celeriac')}")
        ctx.exit()


class CeleryContext:
    """What commands written for Celery find as `ctx.obj`.

    Attributes:
        app: The app of `-A`.
    """

    def __init__(self, state: State) -> None:
        self.app = state.app()
        self.no_color = state.given.no_color
        self.quiet = state.given.quiet
        self.workdir = state.given.workdir

    def echo(self, *args: Any, **kwargs: Any) -> None:
        """As `click.echo`."""
        click.echo(*args, **kwargs)


def _commands_for_celery() -> Mapping[str, Any]:
    """Commands of entry points that were made for Celery: name → entry point, unloaded."""
    from celeriac.kernel.discovery import named_objects  # not needed by our own commands' help

    return named_objects(("celery.commands",))


def _load_command_for_celery(ctx: click.Context, name: str) -> click.Command | None:
    try:
        command = _commands_for_celery()[name].load()
    except Exception as exc:  # whatever the import of a stranger's module raises
        say(f"Warning: the command {name!r}, written for Celery, cannot be loaded: {type(exc).__name__}: {exc}")
        return None
    if not isinstance(command, click.Command):
        say(f"Warning: the command {name!r}, written for Celery, is {type(command).__name__}, not a click command.")
        return None
    if isinstance(ctx.obj, State) and not ctx.resilient_parsing:
        ctx.obj = CeleryContext(ctx.obj)
    return command


_extensions_added = False


def _add_extension_commands(group: click.Group) -> None:
    """Ask installed extensions for their commands; one that is broken costs only its own."""
    global _extensions_added
    if _extensions_added:
        return
    _extensions_added = True
    from celeriac.kernel.kernel import Kernel  # not needed by our own commands' help

    kernel = Kernel({})
    for info in kernel.extensions():
        try:
            kernel.load(info)
        except PluginError as exc:
            say(f"Warning: {exc}")
    kernel.notify("celeriac_add_commands", group=group)


@click.group(
    cls=Group,
    context_settings={
        "help_option_names": ["-h", "--help"],
        "auto_envvar_prefix": "CELERIAC",
        "max_content_width": 100,
    },
    epilog=(
        "Options may also come from the environment: CELERIAC_APP, CELERIAC_BROKER, CELERIAC_WORKER_CONCURRENCY …, or "
        "Celery's names of the same (CELERY_APP …). Shell completion: add to your shell's start-up file "
        'eval "$(_CELERIAC_COMPLETE=bash_source celeriac)" (or zsh_source, fish_source).'
    ),
)
@click.option(
    "--version", is_flag=True, expose_value=False, is_eager=True, callback=_print_version, help="Print the version."
)
def cli() -> None:
    """celeriac: a distributed task queue made of plugins."""


cli.params[:0] = common_options(hidden=False)

__all__ = ["COMMANDS", "Command", "Common", "Group", "Option", "State", "cli", "option", "run"]
