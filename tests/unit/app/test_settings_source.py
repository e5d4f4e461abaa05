"""Settings from modules, objects, dicts, environment variables and the command line."""

from __future__ import annotations

import sys
import textwrap
import types
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from celeriac import Celery
from celeriac.app import settings_source
from celeriac.app.settings import Settings
from celeriac.exceptions import CeleriacWarning, ImproperlyConfigured, SettingError, SettingsNotFound


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(settings_source, "_warned", set())
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        del sys.modules[name]


def write(name: str, text: str) -> None:
    path = Path(f"{name}.py")
    path.parent.mkdir(exist_ok=True, parents=True)
    path.write_text(textwrap.dedent(text))


def conf_from(source: Any, **options: Any) -> Settings:
    settings = Settings()
    settings.config_from_object(source, **options)
    return settings


def test_a_module_in_the_current_folder_is_found_by_name() -> None:
    write(
        "celeriacconfig",
        """
        import os
        from datetime import timedelta
        broker_url = 'redis://localhost'
        task_serializer = 'json'
        result_expires = timedelta(hours=1)
        enable_utc = True
        HERE = os.getcwd()
        helper = [1, 2]
        def task_helper(): ...
        """,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        settings = conf_from("celeriacconfig")
        assert settings.broker_url == "redis://localhost"
    assert settings.result_expires == 3600.0
    assert "helper" not in settings
    assert str(Path.cwd()) not in sys.path


def test_an_attribute_of_a_module_is_found_both_ways() -> None:
    write("proj/__init__", "")
    write("proj/conf", "class Prod:\n    timezone = 'Europe/Berlin'\nPLAIN = {'timezone': 'UTC'}\n")
    assert conf_from("proj.conf:Prod").timezone == "Europe/Berlin"
    assert conf_from("proj.conf.Prod").timezone == "Europe/Berlin"
    assert conf_from("proj.conf:PLAIN").timezone == "UTC"
    with pytest.raises(ImproperlyConfigured, match="has no 'Test'"):
        _ = conf_from("proj.conf:Test").timezone


def test_modules_classes_instances_and_dicts_are_sources() -> None:
    module = types.ModuleType("m")
    module.timezone = "Europe/Berlin"  # type: ignore[attr-defined]

    class Base:
        timezone = "Europe/Berlin"

    class Derived(Base):
        task_time_limit = 5

        def method(self) -> None: ...

    for source in (module, Derived, Derived(), {"timezone": "Europe/Berlin"}):
        assert conf_from(source).timezone == "Europe/Berlin"
    assert conf_from(Derived()).task_time_limit == 5


def test_old_names_in_a_module() -> None:
    write("old", "BROKER_URL = 'redis://h'\nCELERY_TASK_SERIALIZER = 'yaml'\nCELERYD_CONCURRENCY = '2'\n")
    settings = conf_from("old")
    assert (settings.broker_url, settings.task_serializer, settings.worker_concurrency) == ("redis://h", "yaml", 2)


def test_old_and_new_names_are_not_mixed() -> None:
    with pytest.raises(ImproperlyConfigured, match="cannot be mixed") as caught:
        _ = conf_from({"broker_url": "x://", "timezone": "UTC", "CELERYD_CONCURRENCY": 2}).timezone
    assert "CELERYD_CONCURRENCY -> worker_concurrency" in str(caught.value)
    with pytest.raises(ImproperlyConfigured) as caught:
        _ = conf_from({"broker_url": "x://", "CELERY_ALWAYS_EAGER": True, "CELERYD_CONCURRENCY": 2}).timezone
    assert "broker_url -> BROKER_URL" in str(caught.value)


def test_one_setting_under_both_names_may_stand() -> None:
    assert conf_from({"timezone": "UTC", "CELERY_TIMEZONE": "Europe/Berlin"}).timezone == "UTC"


def test_a_namespace_takes_only_its_own() -> None:
    class Django:
        CELERY_BROKER_URL = "redis://h"
        CELERY_TASK_ALWAYS_EAGER = True
        TIME_ZONE = "Europe/Berlin"
        BROKER_URL = "redis://not-this"
        SECRET_KEY = "s"
        DATABASES: dict[str, Any] = {}  # noqa: RUF012

    settings = conf_from(Django, namespace="CELERY")
    assert settings.broker_url == "redis://h"
    assert settings.task_always_eager is True
    assert settings.timezone == "Europe/Berlin"
    assert "SECRET_KEY" not in settings


def test_another_namespace() -> None:
    assert conf_from({"QUEUE_BROKER_URL": "redis://h"}, namespace="QUEUE").broker_url == "redis://h"
    assert conf_from({"queue_broker_url": "redis://h"}, namespace="queue").broker_url == "redis://h"


def test_a_slip_in_a_namespace_is_refused() -> None:
    with pytest.raises(SettingError, match="broker_url"):
        _ = conf_from({"CELERY_BROKE_URL": "x"}, namespace="CELERY").timezone
    with pytest.raises(SettingError, match="CELERY_TASK_ALWAYS_EAGER"):
        _ = conf_from({"CELERY_ALWAYS_EAGER": True}, namespace="CELERY").timezone


def test_a_slip_in_a_module_is_refused_and_helpers_are_not_judged() -> None:
    write("slip", "broke_url = 'redis://h'\n")
    with pytest.raises(SettingError, match=r"broke_url.*in 'slip'.*broker_url"):
        _ = conf_from("slip").timezone
    write("strange", "task_colour = 'blue'\nfolder = '/tmp'\nretries = 5\nLIMIT = 3\n")
    with pytest.warns(CeleriacWarning, match="'task_colour'") as seen:
        _ = conf_from("strange").timezone
    assert len(seen) == 1
    assert "folder" not in str(seen[0].message)


def test_a_wrong_value_in_a_module_names_the_setting() -> None:
    write("wrong", "worker_concurrency = 'lots'\n")
    with pytest.raises(SettingError, match="worker_concurrency"):
        _ = conf_from("wrong").timezone


def test_a_missing_module_is_an_error_unless_silent() -> None:
    settings = conf_from("no_such_module")
    with pytest.raises(ImproperlyConfigured, match="no_such_module"):
        _ = settings.timezone
    with pytest.raises(ImproperlyConfigured, match=r"without «\.py»"):
        _ = conf_from("conf.py").timezone
    assert conf_from("no_such_module", silent=True).timezone is None


def test_an_error_inside_the_module_is_told_with_its_place() -> None:
    write("broken", "\n1 / 0")
    with pytest.raises(ImproperlyConfigured, match=r"'broken'.*ZeroDivisionError.*broken\.py, line 2") as caught:
        conf_from("broken", force=True)
    assert isinstance(caught.value.__cause__, ZeroDivisionError)
    write("garbled", "a =")
    with pytest.raises(ImproperlyConfigured, match=r"SyntaxError.*garbled\.py, line 1"):
        conf_from("garbled", force=True)
    write("needs", "import a_module_nobody_has")
    with pytest.raises(ImproperlyConfigured, match=r"a_module_nobody_has.*needs\.py, line 1"):
        conf_from("needs", force=True, silent=True)


def test_a_second_source_replaces_the_first_at_once_when_already_read() -> None:
    settings = conf_from({"task_serializer": "yaml"})
    assert settings.task_serializer == "yaml"
    settings.config_from_object({"timezone": "UTC"})
    assert settings.configured
    assert (settings.task_serializer, settings.timezone) == ("json", "UTC")


def test_the_environment_names_a_module(monkeypatch: pytest.MonkeyPatch) -> None:
    write("from_env", "timezone = 'Europe/Berlin'\n")
    settings = Settings()
    with pytest.raises(ImproperlyConfigured, match="MY_CONFIG"):
        settings.config_from_envvar("MY_CONFIG")
    assert settings.config_from_envvar("MY_CONFIG", silent=True) is False
    monkeypatch.setenv("MY_CONFIG", "from_env")
    assert settings.config_from_envvar("MY_CONFIG") is True
    assert settings.timezone == "Europe/Berlin"


def test_the_command_line_sets_typed_values() -> None:
    settings = Settings()
    settings.config_from_cmdline(
        [
            "worker.prefetch_multiplier=1",
            "task_always_eager=true",
            "concurrency=3",
            'broker_transport_options=(json){"a": 1}',
            'imports=(list)["a"]',
            "timezone=(string)UTC",
            "result_expires=(float)1.5",
        ],
        namespace="worker",
    )
    assert settings.worker_prefetch_multiplier == 1
    assert settings.task_always_eager is True
    assert settings.worker_concurrency == 3
    assert settings.broker_transport_options == {"a": 1}
    assert settings.imports == ["a"]
    assert settings.timezone == "UTC"
    assert settings.result_expires == 1.5


@pytest.mark.parametrize(
    ("word", "says"),
    [
        ("worker.prefetch_multiplier", "write name=value"),
        ("worker.prefetch_multipler=1", "worker_prefetch_multiplier"),
        ("worker_concurrency=lots", "whole number"),
        ("worker_concurrency=(int)lots", "not of the type"),
        ("worker_concurrency=(real)1", "is no type"),
        ("imports=(dict)[1]", "not of the type"),
    ],
)
def test_a_wrong_word_on_the_command_line_is_refused(word: str, says: str) -> None:
    with pytest.raises(SettingError, match=says):
        Settings().config_from_cmdline([word])


def test_flask_settings_can_be_handed_over_whole() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        settings = Settings()
        settings.update({"DEBUG": True, "CELERY_BROKER_URL": "redis://h", "SERVER_NAME": None, "PORT": 80})
    assert settings.broker_url == "redis://h"


def test_a_warning_names_the_line_of_the_program_and_not_of_ours() -> None:
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        Celery("warned", own_place="redis://host", set_as_current=False)
        Settings().update(brokr_too="redis://host")
    assert [one.filename for one in told] == [__file__] * 2


def test_a_module_that_is_missing_is_an_import_error_as_in_celery() -> None:
    write("there", "timezone = 'UTC'\n")
    write("needs_more", "import nowhere_else\n")
    write("takes_what_is_not_there", "from os import nothing_of_the_kind\n")
    for path, missing in (("nowhere.at_all", "nowhere"), ("there:Missing", "there"), ("needs_more", "nowhere_else")):
        app = Celery("moved", set_as_current=False)
        app.config_from_object(path)
        with pytest.raises(ModuleNotFoundError) as caught:
            app.conf.timezone  # noqa: B018
        assert isinstance(caught.value, SettingsNotFound)
        assert caught.value.name == missing
    with pytest.raises(ImportError, match="nothing_of_the_kind"):
        conf_from("takes_what_is_not_there", force=True)


def test_an_app_says_whether_a_variable_named_its_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    write("from_env", "timezone = 'Europe/Berlin'\n")
    app = Celery("told", set_as_current=False)
    assert app.config_from_envvar("MY_CONFIG", silent=True) is False
    monkeypatch.setenv("MY_CONFIG", "from_env")
    assert app.config_from_envvar("MY_CONFIG") is True
    assert app.conf.timezone == "Europe/Berlin"


def test_an_empty_name_is_no_source() -> None:
    assert conf_from("", force=True).timezone is None


@pytest.mark.parametrize(
    ("slip", "meant"), [("brokr", "broker"), ("backends", "backend"), ("taskcls", "task_cls"), ("includes", "include")]
)
def test_a_slip_among_the_keywords_of_an_app_is_refused(slip: str, meant: str) -> None:
    with pytest.raises(SettingError, match=f"Did you mean '{meant}'") as caught:
        Celery("t", set_as_current=False, **{slip: "memory://"})
    assert (caught.value.setting, caught.value.suggestion) == (slip, meant)
