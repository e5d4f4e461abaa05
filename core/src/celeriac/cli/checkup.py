"""Looks an app over, part by part, and says what is wrong: settings, plugins, servers, workers.

`celeriac check` does the first two, `celeriac doctor` all of them. Nothing is changed anywhere; a part that cannot be
looked at is a finding of its own, and the others go on.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final

import click
from msgspec import Struct

from celeriac.cli.errors import FAILED, OK, UNREACHABLE, UserCodeFailed, say
from celeriac.cli.rules import RULES, Facts
from celeriac.exceptions import (
    BackendLost,
    BackendUnreachable,
    CeleriacError,
    ImproperlyConfigured,
    OperationalError,
    PluginError,
    mask_url,
)
from celeriac.kernel.kernel import first_url
from celeriac.log.lines import clean
from celeriac.spec.diagnosis import Finding
from celeriac.spec.pool import PoolOptions

COLORS: Final = {"note": "cyan", "warning": "yellow", "error": "red", "ok": "green"}
GRAVITY: Final = ("note", "warning", "error")
#: How warnings begin that the settings give by themselves when they are read.
TOLD_BY_RULES: Final = ("No setting has the name", "So far this version does not heed")
AWAY: Final = (OperationalError, BackendUnreachable, BackendLost)


class Section(Struct):
    """One part that was looked at.

    Attributes:
        facts: What is there, a line each.
        findings: (rule, finding).
        reached: False: its server could not be asked.
    """

    title: str
    facts: list[str]
    findings: list[tuple[str, Finding]]
    reached: bool = True


class Nowhere:
    """A poller for a pool that is never started."""

    def watch(self, fd: int) -> None:
        """Nobody sleeps."""

    def unwatch(self, fd: int) -> None:
        """Nobody sleeps."""


# -- the parts --------------------------------------------------------------------------------------------


def look_at_settings(app: Any, ignored: Iterable[str]) -> tuple[Section, Facts | None]:
    """The settings by all rules, and what else there is to know; None if they cannot be read."""
    section = Section("settings", [], [])
    try:
        app.conf.finalize()
        app.finalize()
    except ImproperlyConfigured as exc:
        section.findings.append(("wrong-setting", Finding("error", "setting", str(exc))))
        return section, None
    tasks = {name: task for name, task in app.tasks.regular().items() if not name.startswith("celeriac.")}
    section.facts.append(f"{len(app.conf.without_defaults())} given; tasks: {len(tasks)}")
    facts = Facts(app, app.conf, tasks, _abilities_of_backend(app))
    for name, judge in RULES.items():
        if name not in ignored:
            section.findings += [(name, finding) for finding in judge(facts)]
    return section, facts


def look_at_plugins(app: Any, facts: Facts) -> Section:
    """Whether the chosen ones load, keep their contracts, and can do what the app asks for."""
    section = Section("plugins", [], [])
    broker = _made(section, app, "broker", lambda: app.transport)
    _made(section, app, "backend", lambda: app.backend.plugin)
    for name in dict.fromkeys((app.conf.task_serializer, app.conf.result_serializer, *app.conf.accept_content)):
        if "/" not in name:
            _made(section, app, "serializer", lambda name=name: app.codec.serializer(name), name)  # type: ignore[misc]
    try:
        app.codec.check_accept()
    except CeleriacError as exc:
        section.findings.append(("unsafe-serializer", Finding("error", "serializer", str(exc))))
    pool_name = app.conf.worker_pool
    options = PoolOptions(slots=1, poller=Nowhere())
    pool = _made(section, app, "pool", lambda: app.kernel.make_pool(pool_name, lambda job: None, options), pool_name)
    if pool is not None:
        section.findings += _limits_of_pool(pool, pool_name, facts)
    if broker is not None:
        section.findings += _abilities_of_broker(broker, facts)
    for info in _extensions(app, section):
        try:
            app.kernel.load(info)
        except PluginError as exc:
            section.findings.append(("plugin", Finding("error", "plugin", str(exc))))
    section.facts = [str(info) for info in app.kernel.loaded()]
    return section


def look_at_servers(app: Any, facts: Facts, timeout_s: float) -> list[Section]:
    """Broker and result store, as they and their plugins see them."""
    sections = [_look_at_server("broker", first_url(app.conf.broker_read_url), lambda: app.transport, facts, timeout_s)]
    if _abilities_of_backend(app) is not None:
        url = first_url(app.conf.result_backend)
        sections.append(_look_at_server("results", url, lambda: app.backend.plugin, facts, timeout_s))
    return sections


def _look_at_server(title: str, url: str, get: Callable[[], Any], facts: Facts, timeout_s: float) -> Section:
    section = Section(title, [mask_url(url)], [])
    try:
        made = get()
        section.facts.append(made.ping(timeout_s))
        if "diagnose" in made.abilities:
            found = made.diagnose(longest_task_s=facts.longest_task_s, timeout_s=timeout_s)
            section.findings += [(one.about.replace(" ", "-"), one) for one in found]
    except AWAY as exc:
        section.reached = False
        section.findings.append(("unreachable", Finding("error", "unreachable", str(exc))))
    except CeleriacError as exc:
        section.findings.append(("server", Finding("error", "server", str(exc))))
    return section


def _made(section: Section, app: Any, kind: str, make: Callable[[], Any], name: str = "") -> Any:
    try:
        return make()
    except CeleriacError as exc:
        section.findings.append((kind, Finding("error", f"{kind} {name}".strip(), str(exc))))
        return None


def _extensions(app: Any, section: Section) -> list[Any]:
    try:
        found: list[Any] = app.kernel.extensions()
    except PluginError as exc:
        section.findings.append(("plugin", Finding("error", "plugin", str(exc))))
        return []
    return found


def _limits_of_pool(pool: Any, name: str, facts: Facts) -> Iterator[tuple[str, Finding]]:
    for ability, limit in (("hard_limit", facts.hard_limit_s), ("soft_limit", facts.soft_limit_s)):
        limited = sorted(task for task, made in facts.tasks.items() if limit(made))
        if limited and ability not in pool.abilities:
            yield (
                "limits-of-pool",
                Finding(
                    "warning",
                    "time limits",
                    f"The pool {name} cannot enforce the {ability.replace('_', ' time ')} that {limited[0]}"
                    f"{' and others have' if limited[1:] else ' has'}.",
                    "Use prefork.",
                ),
            )


def _abilities_of_broker(broker: Any, facts: Facts) -> Iterator[tuple[str, Finding]]:
    urgent = sorted(name for name, task in facts.tasks.items() if getattr(task, "priority", None) is not None)
    if (urgent or facts.conf.task_default_priority is not None) and "priority" not in broker.abilities:
        which = urgent[0] if urgent else "task_default_priority"
        yield "abilities", Finding("warning", "priority", f"{which} has a priority, and this broker heeds none.")
    if "delay" not in broker.abilities:
        yield (
            "abilities",
            Finding("note", "delay", "This broker holds no delayed calls: workers keep some in memory instead."),
        )
    if "fanout" not in broker.abilities:
        yield (
            "abilities",
            Finding("note", "remote control", "This broker cannot broadcast: no remote control, no events."),
        )
    if "browse_dead" not in broker.abilities:
        yield "abilities", Finding("note", "dead letters", "What is set aside on this broker cannot be listed.")


def _abilities_of_backend(app: Any) -> frozenset[str] | None:
    try:
        plugin = app.backend.plugin
    except CeleriacError:  # told by the plugins' part
        return None
    return None if plugin is None else frozenset(plugin.abilities)


# -- what a person sees -----------------------------------------------------------------------------------


def read_app(state: Any, *, required: bool = False) -> tuple[Any, list[str]]:
    """The app with its tasks imported, and what was warned of on the way (but for what rules tell as well)."""
    from celeriac.cli.find_app import import_tasks

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        app = state.app(required=required)
        try:
            import_tasks(app)
        except UserCodeFailed as exc:
            if not isinstance(exc.__cause__, ImproperlyConfigured):
                raise
            # Of the settings, whose part meets it again, and tells.
    texts = [mask_url(str(one.message)) for one in caught if issubclass(one.category, UserWarning)]
    return app, [text for text in texts if not text.startswith(TOLD_BY_RULES)]


def show(sections: list[Section], as_json: bool, quiet: bool, fail_on: str) -> int:
    """Print all sections; return the exit code."""
    level = worst(sections)
    if as_json:
        click.echo(json.dumps({"worst": level, "sections": [describe(section) for section in sections]}, indent=2))
    else:
        for section in sections:
            _print(section, quiet)
        _say_total(sections)
    if any(not section.reached for section in sections):
        return UNREACHABLE
    return FAILED if level and GRAVITY.index(level) >= GRAVITY.index(fail_on) else OK


def worst(sections: list[Section]) -> str:
    """The highest level of all findings; empty if there is none."""
    levels = [finding.level for section in sections for _, finding in section.findings]
    return max(levels, key=GRAVITY.index, default="")


def describe(section: Section) -> dict[str, Any]:
    """A section as plain data."""
    return {
        "title": section.title,
        "reached": section.reached,
        "facts": section.facts,
        "findings": [
            {
                "rule": name,
                "level": finding.level,
                "about": finding.about,
                "text": mask_url(finding.text),
                "remedy": finding.remedy,
            }
            for name, finding in section.findings
        ],
    }


def _print(section: Section, quiet: bool) -> None:
    levels = [finding.level for _, finding in section.findings]
    level = max(levels, key=GRAVITY.index, default="ok")
    if quiet and not section.findings:
        return
    mark = click.style(f"{level:8}", fg=COLORS[level], bold=True)
    click.echo(f"{mark}{click.style(section.title, bold=True)}: {clean('; '.join(section.facts)) or 'looked at'}")
    for name, finding in sorted(section.findings, key=lambda pair: -GRAVITY.index(pair[1].level)):
        word = click.style(f"{finding.level:8}", fg=COLORS[finding.level])
        click.echo(f"  {word}{clean(finding.text)} {click.style(f'[{name}]', dim=True)}")
        if finding.remedy:
            click.echo(f"          {clean(finding.remedy)}")


def _say_total(sections: list[Section]) -> None:
    levels = [finding.level for section in sections for _, finding in section.findings]
    counts = [f"{levels.count(level)} {level}{'s' * (levels.count(level) != 1)}" for level in reversed(GRAVITY)]
    say("Found " + ", ".join(counts) + "." if levels else "Found nothing wrong.")
