"""`app.conf`: names, values, layers, laziness, secrets."""

from __future__ import annotations

import copy
import datetime as dt
import pickle
import subprocess
import sys
import threading
import warnings
from pathlib import Path
from typing import Any

import pytest

from celeriac.app import settings_source
from celeriac.app.settings import EMBEDDED_URL, TABLE, Setting, Settings, declare_setting
from celeriac.app.settings_values import KINDS, read_value
from celeriac.exceptions import CeleriacWarning, SettingError

#: Which settings nothing heeds so far is of no interest here.
pytestmark = pytest.mark.filterwarnings("ignore:So far this version does not heed")


@pytest.fixture(autouse=True)
def _clean(monkeypatch: pytest.MonkeyPatch) -> None:
    for variables in settings_source.ENVIRONMENT.values():
        for variable in variables:
            monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(settings_source, "_warned", set())


def conf(**changes: Any) -> Settings:
    return Settings(changes)


# -- the table --------------------------------------------------------------------------------------------


def test_every_default_is_a_value_that_its_setting_takes() -> None:
    for setting in TABLE.values():
        assert read_value(setting, setting.default) == setting.default, setting.name


def test_every_setting_has_a_kind_that_exists_and_a_meaning() -> None:
    for setting in TABLE.values():
        assert setting.kind in KINDS or setting.kind.startswith("choice:"), setting.name
        assert setting.meaning.endswith((".", "…")), setting.name
        assert setting.name.islower()


def test_no_two_settings_share_a_name_or_an_older_name() -> None:
    old = [setting.old for setting in TABLE.values() if setting.old]
    assert len(old) == len(set(old))


def test_no_setting_hides_behind_an_attribute_of_the_mapping() -> None:
    assert not [name for name in TABLE if hasattr(Settings, name)]


# -- the embedded default ---------------------------------------------------------------------------------


def test_an_app_told_nothing_has_the_embedded_broker_and_results() -> None:
    settings = conf()
    assert settings.broker_url == EMBEDDED_URL == "sqlite://"
    assert settings.result_backend == EMBEDDED_URL
    assert settings.broker_read_url == settings.broker_write_url == EMBEDDED_URL


def test_an_app_with_a_broker_of_its_own_has_no_results_until_told() -> None:
    settings = conf(broker_url="redis://localhost/0")
    assert settings.result_backend is None
    assert settings.broker_read_url == "redis://localhost/0"


def test_the_embedded_broker_asked_for_by_name_brings_no_results() -> None:
    assert conf(broker_url="sqlite://").result_backend is None


def test_results_can_be_turned_off_for_the_embedded_broker() -> None:
    assert conf(result_backend=None).result_backend is None


def test_a_broker_url_of_none_counts_as_not_given() -> None:
    assert conf(broker_url=None).broker_url == EMBEDDED_URL


def test_a_broker_given_in_parts_becomes_a_url() -> None:
    settings = conf(broker_host="h", broker_user="u", broker_password="p@/", broker_vhost="v", broker_port="5673")
    assert settings.broker_url == "amqp://u:p%40%2F@h:5673/v"


def test_a_broker_plugin_without_a_url_gets_its_own_scheme() -> None:
    settings = conf(broker_plugin="memory@some-dist", backend_plugin="memory")
    assert (settings.broker_url, settings.result_backend) == ("memory://", "memory://")


def test_the_default_exchange_and_key_are_those_of_the_default_queue() -> None:
    settings = conf(task_default_queue="mine")
    assert (settings.task_default_exchange, settings.task_default_routing_key) == ("mine", "mine")


def test_defaults_are_those_of_at_least_once() -> None:
    settings = conf()
    assert settings.task_acks_late is True
    assert settings.worker_prefetch_multiplier is None
    assert settings.allow_unsafe_serializers is False
    assert settings.publish_timeout == 10.0


# -- reading and changing ---------------------------------------------------------------------------------


def test_attributes_items_and_update_are_one() -> None:
    settings = conf()
    settings.task_serializer = "msgpack"
    assert settings["task_serializer"] == "msgpack"
    settings["timezone"] = "Europe/Berlin"
    assert settings.timezone == "Europe/Berlin"
    settings.update({"enable_utc": False}, accept_content=["json"])
    assert settings.enable_utc is False
    assert settings.accept_content == ["json"]
    assert settings.changes == {
        "task_serializer": "msgpack",
        "timezone": "Europe/Berlin",
        "enable_utc": False,
        "accept_content": ["json"],
    }


def test_a_change_after_reading_shows_everywhere() -> None:
    settings = conf()
    view = settings.as_mapping()
    assert settings.broker_read_url == EMBEDDED_URL
    settings.broker_url = "redis://h/1"
    assert settings.broker_read_url == view["broker_read_url"] == "redis://h/1"
    del settings.broker_url
    assert settings.broker_url == view["broker_url"] == EMBEDDED_URL


def test_the_mapping_for_plugins_cannot_be_written() -> None:
    view = conf().as_mapping()
    with pytest.raises(TypeError):
        view["task_serializer"] = "x"  # type: ignore[index]
    assert set(TABLE) <= set(view)
    assert len(view) == len(list(view))


def test_what_is_put_into_a_default_dict_lasts_and_stays_in_its_app() -> None:
    settings, other = conf(), conf()
    settings.beat_schedule["every"] = {"task": "t"}
    settings.task_serializer = "msgpack"
    assert settings.beat_schedule == {"every": {"task": "t"}}
    assert settings.without_defaults()["beat_schedule"] == {"every": {"task": "t"}}
    assert other.beat_schedule == {}


def test_old_names_work_wherever_a_name_is_taken() -> None:
    settings = conf(CELERYD_CONCURRENCY=3)
    settings.CELERY_ALWAYS_EAGER = True
    settings["BROKER_URL"] = "redis://h"
    assert settings.worker_concurrency == settings.CELERYD_CONCURRENCY == settings["CELERYD_CONCURRENCY"] == 3
    assert settings.task_always_eager is True
    assert settings.broker_url == "redis://h"
    assert "CELERY_TASK_SERIALIZER" in settings
    assert settings.get("CELERY_TASK_SERIALIZER") == "json"


def test_new_names_in_capitals_after_celery_work_too() -> None:
    assert conf(CELERY_BROKER_URL="redis://h").broker_url == "redis://h"


def test_none_means_not_set_where_it_is_no_value() -> None:
    assert conf(task_serializer=None).task_serializer == "json"
    assert conf(result_expires=None).result_expires is None
    assert conf(broker_heartbeat=None).broker_heartbeat is None


def test_an_unknown_attribute_names_the_nearest() -> None:
    with pytest.raises(AttributeError, match="Did you mean 'broker_url'"):
        _ = conf().broke_url
    with pytest.raises(AttributeError):
        _ = conf().no_such_thing
    with pytest.raises(KeyError):
        conf()["no_such_thing"]
    assert conf().get("no_such_thing", 7) == 7


def test_questions_of_celerys_settings_are_answered() -> None:
    settings = conf(task_default_queue="q")
    assert settings.first("nothing", "broker_password", "task_default_queue") == "q"
    assert settings.first("nothing") is None
    assert settings.get_by_parts("task", "default", "queue") == "q"
    assert settings.get_by_parts("", "timezone") is None
    assert settings.find_option("default_queue", namespace="task").option.name == "task_default_queue"
    assert settings.find_option("concurrency").option.name == "worker_concurrency"
    assert settings.find_value_for_key("default_queue") == "q"
    with pytest.raises(KeyError):
        settings.find_option("nothing_at_all")
    assert settings.value_set_for("task_default_queue")
    assert not settings.value_set_for("task_serializer")
    assert settings.without_defaults() == {"task_default_queue": "q"}
    assert settings.setdefault("task_default_queue", "other") == "q"
    assert set(TABLE) == set(settings.keys())


def test_copies_do_not_share_changes() -> None:
    settings = conf(timezone="UTC")
    for other in (settings.copy(), copy.copy(settings), pickle.loads(pickle.dumps(settings))):
        assert other.timezone == "UTC"
        other.timezone = "Europe/Berlin"
    assert settings.timezone == "UTC"


def test_update_changes_all_or_nothing() -> None:
    settings = conf()
    with pytest.raises(SettingError):
        settings.update(task_serializer="msgpack", worker_concurrency="lots")
    assert settings.task_serializer == "json"


def test_reading_from_many_threads_configures_once() -> None:
    calls: list[int] = []
    settings = Settings({}, on_configure=lambda: calls.append(1))
    start = threading.Barrier(8)

    def read() -> None:
        start.wait()
        assert settings.task_serializer == "json"

    threads = [threading.Thread(target=read) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert calls == [1]


# -- wrong names ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wrong", "right"),
    [
        ("broke_url", "broker_url"),
        ("broker_uri", "broker_url"),
        ("result_backed", "result_backend"),
        ("results_backend", "result_backend"),
        ("task_queue", "task_queues"),
        ("task_ack_late", "task_acks_late"),
        ("worker_prefetch_multipler", "worker_prefetch_multiplier"),
        ("accepts_content", "accept_content"),
        ("time_zone", "timezone"),
        ("CELERY_RESULT_BACKND", "CELERY_RESULT_BACKEND"),
        ("CELERYD_CONCURENCY", "CELERYD_CONCURRENCY"),
        ("BROKER_ULR", "BROKER_URL"),
        ("RESULT_BACKEND", "result_backend"),
    ],
)
def test_a_slip_is_refused_with_the_right_name(wrong: str, right: str) -> None:
    with pytest.raises(SettingError, match=f"no setting '{wrong}'.*Did you mean '{right}'") as caught:
        conf(**{wrong: "x"})
    assert (caught.value.setting, caught.value.suggestion) == (wrong, right)
    settings = conf()
    with pytest.raises(SettingError):
        setattr(settings, wrong, "x")
    with pytest.raises(SettingError):
        settings.update({wrong: "x"})


def test_a_name_nobody_knows_is_warned_about_once() -> None:
    with pytest.warns(CeleriacWarning, match="'colour_of_walls'"):
        settings = conf(colour_of_walls="blue")
    assert settings.colour_of_walls == "blue"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        settings.colour_of_walls = "red"
    assert settings["colour_of_walls"] == "red"


def test_names_of_others_pass_in_silence() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        settings = conf(x_mine=1, SECRET_KEY="s", DEBUG=True, SESSION_COOKIE_NAME="c")
    assert settings.x_mine == 1
    assert settings["SECRET_KEY"] == "s"


def test_a_plugin_declares_settings_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settings_source, "_declared", dict(TABLE))
    nats = Setting(name="nats_ack_wait", kind="seconds", default=30.0, meaning="How long.", none_ok=False)
    declare_setting(nats)
    declare_setting(nats)
    assert conf().nats_ack_wait == 30.0
    assert conf(nats_ack_wait="5").nats_ack_wait == 5
    with pytest.raises(SettingError, match="nats_ack_wait"):
        conf(nats_ack_wait="long")
    with pytest.raises(SettingError, match="Did you mean"):
        conf(nats_ackwait=5)
    with pytest.raises(SettingError, match="declared already"):
        declare_setting(Setting(name="nats_ack_wait", kind="int", default=1, meaning="Other."))


def test_a_setting_that_nothing_heeds_yet_is_warned_about_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settings_source, "NOT_YET", frozenset({"worker_direct", "worker_agent"}))
    with pytest.warns(CeleriacWarning, match="does not heed worker_agent and worker_direct") as seen:
        conf(worker_direct=True, worker_agent="a:B")
    assert len(seen) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        conf(worker_direct=True)
        conf(worker_direct=False, worker_agent=None)


# -- wrong values -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("worker_concurrency", "lots", ["worker_concurrency", "'lots'", "whole number", "auto"]),
        ("worker_concurrency", -1, ["less than 0"]),
        ("worker_concurrency", 2.5, ["2.5", "not a whole number"]),
        ("worker_concurrency", True, ["True"]),
        ("task_acks_late", "maybe", ["task_acks_late", "True or False"]),
        ("task_acks_late", 2, ["True or False"]),
        ("task_time_limit", "soon", ["seconds", "timedelta"]),
        ("task_time_limit", -5, ["less than 0"]),
        ("task_time_limit", float("nan"), ["nan"]),
        ("task_serializer", 5, ["text"]),
        ("task_protocol", 3, ["1 or 2"]),
        ("task_default_queue_type", "quorom", ["classic or quorum"]),
        ("task_default_rate_limit", "10/day", ["10/s"]),
        ("task_default_priority", 300, ["0 to 255"]),
        ("task_default_delivery_mode", 3, ["persistent"]),
        ("task_publish_retry_policy", [1], ["a dict"]),
        ("task_queues", "celery", ["list of queues"]),
        ("timezone", "Europe/Atlantis", ["no such zone"]),
        ("accept_content", 5, ["list of texts"]),
        ("accept_content", ["json", 5], ["not all of them are text"]),
        ("imports", {"a": 1}, ["list of texts"]),
        ("broker_url", 5, ["a URL"]),
        ("broker_url", [], ["a URL"]),
        ("broker_transport_options", "{oops", ["a dict"]),
        ("result_backend", 5, ["a URL"]),
        ("worker_log_style", "xml", ["console or json"]),
        ("worker_redirect_stdouts_level", "loud", ["log level"]),
        ("result_expires", b"5", ["seconds"]),
        ("result_expires", object(), ["seconds"]),
        ("worker_max_memory_per_child", "12MB", ["KiB"]),
    ],
)
def test_an_impossible_value_is_refused_with_what_is_wanted(name: str, value: Any, words: list[str]) -> None:
    with pytest.raises(SettingError) as caught:
        conf(**{name: value})
    assert caught.value.setting == name
    for word in [name, *words]:
        assert word in str(caught.value)


@pytest.mark.parametrize(
    ("name", "value", "read"),
    [
        ("worker_concurrency", "4", 4),
        ("worker_concurrency", "auto", "auto"),
        ("worker_concurrency", 4.0, 4),
        ("task_acks_late", "no", False),
        ("task_acks_late", "TRUE", True),
        ("task_acks_late", 1, True),
        ("task_time_limit", dt.timedelta(minutes=2), 120.0),
        ("task_time_limit", "1.5", 1.5),
        ("task_time_limit", 30, 30),
        ("result_expires", dt.timedelta(days=1), 86400.0),
        ("result_expires", 0, 0),
        ("broker_heartbeat", False, 0),
        ("broker_use_ssl", {"ca_certs": "x"}, {"ca_certs": "x"}),
        ("broker_use_ssl", "true", True),
        ("accept_content", "json,pickle", ["json", "pickle"]),
        ("accept_content", {"json"}, ["json"]),
        ("imports", ("a", "b"), ("a", "b")),
        ("imports", '["a"]', ["a"]),
        ("task_default_delivery_mode", "persistent", 2),
        ("task_default_delivery_mode", "1", 1),
        ("task_default_rate_limit", "10 / m", "10/m"),
        ("task_default_rate_limit", 5, 5),
        ("task_protocol", "1", 1),
        ("broker_url", ["redis://a", "redis://b"], ["redis://a", "redis://b"]),
        ("broker_transport_options", '{"visibility_timeout": 5}', {"visibility_timeout": 5}),
        ("worker_redirect_stdouts_level", "info", "INFO"),
        ("worker_redirect_stdouts_level", 10, 10),
        ("worker_state_db", Path("a/b"), "a/b"),
        ("timezone", dt.timezone.utc, dt.timezone.utc),
        ("result_backend_max_retries", "inf", float("inf")),
        ("result_cache_max", "-1", -1),
        ("security_key_password", b"pw", b"pw"),
    ],
)
def test_sensible_forms_of_a_value_are_understood(name: str, value: Any, read: Any) -> None:
    got = conf(**{name: value})[name]
    assert got == read
    assert type(got) is type(read)


def test_a_wrong_secret_is_not_printed() -> None:
    with pytest.raises(SettingError) as caught:
        conf(broker_password=["hunter2"])
    assert "hunter2" not in str(caught.value)
    with pytest.raises(SettingError) as caught:
        conf(task_serializer=["redis://u:hunter2@h"])
    assert "hunter2" not in str(caught.value)


# -- layers -----------------------------------------------------------------------------------------------


def test_the_environment_beats_what_the_program_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CELERY_BROKER_URL", "redis://celery")
    monkeypatch.setenv("CELERY_RESULT_BACKEND", "redis://results")
    monkeypatch.setenv("CELERY_BROKER_READ_URL", "redis://read")
    settings = conf(broker_url="redis://program")
    assert settings.broker_url == settings.broker_write_url == "redis://celery"
    assert settings.broker_read_url == "redis://read"
    assert settings.result_backend == "redis://results"
    monkeypatch.setenv("CELERIAC_BROKER_URL", "redis://celeriac")
    assert conf().broker_url == "redis://celeriac"


def test_an_empty_variable_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CELERY_BROKER_URL", "")
    assert conf(broker_url="redis://h").broker_url == "redis://h"


def test_the_command_line_beats_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CELERY_BROKER_URL", "redis://environment")
    settings = conf()
    settings.override({"broker_url": "redis://line"})
    assert settings.broker_url == "redis://line"


def test_changes_beat_the_source_and_added_defaults_come_after_it() -> None:
    settings = Settings({"task_serializer": "msgpack"}, {"task_serializer": "json", "timezone": "Europe/Berlin"})
    settings.add_defaults({"timezone": "UTC", "enable_utc": False})
    settings.add_defaults(lambda: {"task_time_limit": 5})
    assert settings.task_serializer == "msgpack"
    assert settings.timezone == "Europe/Berlin"
    assert settings.enable_utc is False
    assert settings.task_time_limit == 5
    assert settings.value_set_for("timezone")


def test_nothing_is_read_before_the_first_question() -> None:
    order: list[str] = []

    class Source(dict):  # type: ignore[type-arg]
        def __iter__(self) -> Any:
            order.append("read")
            return super().__iter__()

    settings = Settings(
        {},
        Source(task_serializer="yaml"),
        on_configure=lambda: order.append("before"),
        on_after_configure=lambda conf: order.append(f"after {conf.task_serializer}"),
    )
    settings.update(timezone="UTC")
    settings.task_track_started = True
    assert order == []
    assert not settings.configured
    assert settings.task_serializer == "yaml"
    assert order == ["before", "read", "after yaml"]
    assert settings.timezone == "UTC"
    assert len(order) == 3


def test_the_hook_before_reading_may_still_choose_the_source() -> None:
    settings: Settings

    def choose() -> None:
        settings.update(timezone="UTC")
        settings.config_from_object({"task_serializer": "yaml"})

    settings = Settings({}, on_configure=choose)
    assert (settings.task_serializer, settings.timezone) == ("yaml", "UTC")


def test_importing_settings_imports_no_heavy_library() -> None:
    code = (
        "import sys, celeriac.app.settings as s; s.Settings({}).broker_url;"
        "print([m for m in ('kombu','click','structlog','zoneinfo','rich','pluggy') if m in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert found.stdout.strip() == "[]"


# -- secrets ----------------------------------------------------------------------------------------------


def test_no_secret_is_shown() -> None:
    settings = conf(
        broker_url="amqp://guest:hunter2@h//",
        result_backend="redis://:hunter2@h/0",
        broker_read_url=["amqp://u:hunter2@a//", "amqp://u:hunter2@b//"],
        redis_password="hunter2",
        security_key_password=b"hunter2",
        s3_secret_access_key="hunter2",
        mongodb_backend_settings={"user": "u", "password": "hunter2", "nested": {"api_key": "hunter2"}},
        broker_transport_options={"sentinel_kwargs": {"password": "hunter2"}},
        SECRET_KEY="hunter2",
    )
    settings.finalize()
    for text in (repr(settings), settings.humanize(), str(settings.table(with_defaults=True))):
        assert "hunter2" not in text
    assert "hunter2" in str(settings.table(censored=False))
    assert settings.table()["broker_url"] == "amqp://guest:***@h//"
    assert settings.table(with_defaults=True)["task_default_routing_key"] == "celery"
    assert settings.table()["mongodb_backend_settings"]["user"] == "u"
