"""Each rule of `celeriac check` finds what it is for, and is silent about an app that is well."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest

from celeriac import Celery
from celeriac.cli.checkup import look_at_settings
from celeriac.cli.rules import RULES

Configure = Callable[[Celery], Any]


def chord(*args: Any) -> Any:
    """Stands for the one of the canvas: the rule looks for the name."""


def app_with(name: str, settings: dict[str, Any], configure: Configure = lambda app: None, **options: Any) -> Celery:
    given: dict[str, Any] = {"broker_url": f"memory://{name}", "result_backend": f"memory://{name}", **settings}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        app = Celery("tasks", changes=given, set_as_current=False)

    @app.task(name="tasks.add", **options)
    def add(x: int, y: int) -> int:
        return x + y

    configure(app)
    return app


def add_chord(app: Celery) -> None:
    @app.task(name="tasks.flow")
    def flow() -> None:
        chord(1)


def schedule_typo(app: Celery) -> None:
    app.conf.beat_schedule = {"often": {"task": "tasks.ad", "schedule": 5}}


#: rule → (level, words of its finding, settings, options of the task, configure)
WRONG: dict[str, tuple[str, str, dict[str, Any], dict[str, Any], Configure]] = {
    "unknown-setting": ("warning", "'nobody_knows_me'", {"nobody_knows_me": 1}, {}, lambda app: None),
    "soft-above-hard-limit": ("error", "tasks.add", {}, {"soft_time_limit": 20, "time_limit": 10}, lambda app: None),
    "visibility-timeout": (
        "warning",
        "tasks may run 600 s",
        {"broker_transport_options": {"visibility_timeout": 60}},
        {"time_limit": 600},
        lambda app: None,
    ),
    "prefetch-of-long-tasks": (
        "warning",
        "4 messages per slot",
        {"worker_prefetch_multiplier": 4},
        {"time_limit": 600},
        lambda app: None,
    ),
    "chords-without-results": ("error", "no result backend", {"result_backend": None}, {}, add_chord),
    "results-that-nobody-keeps": ("note", "tasks.add", {"result_backend": None}, {}, lambda app: None),
    "results-for-ever": ("note", "for ever", {"result_expires": 0}, {}, lambda app: None),
    "unsafe-serializer": (
        "warning",
        "'pickle'",
        {"accept_content": ["json", "pickle"], "allow_unsafe_serializers": True},
        {},
        lambda app: None,
    ),
    "serializer-not-accepted": ("error", "msgpack", {}, {"serializer": "msgpack"}, lambda app: None),
    "undeclared-queue": (
        "error",
        "'elsewhere'",
        {"task_create_missing_queues": False, "task_routes": {"tasks.add": {"queue": "elsewhere"}}},
        {},
        lambda app: None,
    ),
    "schedule-of-unknown-task": ("warning", "'tasks.ad'", {}, {}, schedule_typo),
    "early-acknowledgement": ("note", "lost", {"task_acks_late": False}, {}, lambda app: None),
    "eager": ("warning", "task_always_eager", {"task_always_eager": True}, {}, lambda app: None),
    "rate-limits": (
        "error",
        "tasks.add hold for all workers together",
        {"broker_url": "amqp://nowhere.invalid//", "result_backend": None, "task_ignore_result": True},
        {"rate_limit": "5/s", "rate_limit_scope": "cluster"},
        lambda app: None,
    ),
    "memory-limit-too-low": ("warning", "KiB", {"worker_max_memory_per_child": 200}, {}, lambda app: None),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_rule_finds_what_it_is_for(name: str) -> None:
    level, words, settings, options, configure = WRONG[name]
    section, _ = look_at_settings(app_with(name, settings, configure, **options), ())
    found = [finding for rule, finding in section.findings if rule == name]
    assert [(one.level, words in one.text) for one in found[:1]] == [(level, True)], section.findings
    assert all(one.text.endswith(".") for one in found)


@pytest.mark.parametrize("accepted", [{}, {"result_accept_content": ["json"], "accept_content": ["json", "msgpack"]}])
def test_results_that_nobody_could_read_are_found(accepted: dict[str, Any]) -> None:
    settings = {"result_serializer": "msgpack", **accepted}
    section, _ = look_at_settings(app_with("unread", settings, lambda app: None), ())
    found = [finding for rule, finding in section.findings if rule == "serializer-not-accepted"]
    assert ["nobody could read the results" in one.text for one in found] == [True]


def test_an_app_that_is_well_is_told_nothing() -> None:
    section, facts = look_at_settings(app_with("well", {}, time_limit=30, soft_time_limit=20), ())
    assert section.findings == []
    assert facts is not None
    assert facts.longest_task_s == 30


def test_every_rule_has_a_case() -> None:
    assert set(RULES) - set(WRONG) == {"setting-without-effect", "no-tasks"}  # which have tests of their own


def test_an_app_without_tasks_is_told() -> None:
    app = Celery("empty", broker="memory://empty", backend="memory://empty", set_as_current=False)
    assert [rule for rule, _ in look_at_settings(app, ())[0].findings] == ["no-tasks"]


def test_a_setting_that_is_not_heeded_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("celeriac.cli.rules.NOT_YET", frozenset({"task_protocol"}))
    section, _ = look_at_settings(app_with("idle", {"task_protocol": 1}), ())
    assert [finding.text for rule, finding in section.findings if rule == "setting-without-effect"] == [
        "This version does not heed task_protocol."
    ]


def test_a_chord_is_warned_of_when_results_are_ignored_and_when_they_only_answer() -> None:
    section, facts = look_at_settings(app_with("ignored", {"task_ignore_result": True}, add_chord), ())
    assert [(rule, one.level) for rule, one in section.findings] == [("chords-without-results", "warning")]
    assert facts is not None
    facts.backend_abilities = frozenset({"replies"})
    assert "answers the caller" in next(RULES["chords-without-results"](facts)).text


def test_an_acknowledgement_that_contradicts_another_setting_is_a_warning() -> None:
    settings = {"task_acks_late": False, "task_reject_on_worker_lost": True}
    section, _ = look_at_settings(app_with("contradiction", settings), ())
    assert [one.level for rule, one in section.findings if rule == "early-acknowledgement"] == ["warning"]


def test_rules_can_be_left_out() -> None:
    section, _ = look_at_settings(app_with("left-out", {"task_always_eager": True}), ("eager",))
    assert section.findings == []


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [("broke_url", "memory://", "Did you mean 'broker_url'?"), ("timezone", "Mars/Olympus", "no such zone")],
)
def test_a_setting_that_cannot_be_read_is_a_finding_and_ends_the_look(name: str, value: str, words: str) -> None:
    app = Celery("tasks", set_as_current=False)
    app.config_from_object({name: value})
    section, facts = look_at_settings(app, ())
    assert facts is None
    assert words in section.findings[0][1].text
