"""The application object beyond tasks and sending: what Celery's users reach on it, and how it is made and copied."""

from __future__ import annotations

import gc
import importlib
import os
import pickle
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
from kombu import Queue
from kombu.common import Broadcast

from celeriac import Celery, Task, _state, current_app, shared_task
from celeriac import app as app_room
from celeriac.app.amqp import AMQP
from celeriac.exceptions import DuplicateTaskNameWarning, ImproperlyConfigured, QueueNotFound, Unsupported
from celeriac.loaders.app import AppLoader
from celeriac.loaders.default import config_module
from celeriac.testing.scripted import descriptors


@pytest.fixture
def app(request: pytest.FixtureRequest) -> Celery:
    place = f"memory://{request.node.name}"
    return Celery("here", broker=place, backend=place, set_as_current=False)


# -- settings ---------------------------------------------------------------------------------------------


def test_either_prefers_what_is_given(app: Celery) -> None:
    assert app.either("task_serializer") == "json"
    assert app.either("task_serializer", None, "yaml") == "yaml"


def test_words_of_a_command_line_are_settings(app: Celery) -> None:
    app.config_from_cmdline(["worker.prefetch_multiplier=7", "task_default_queue=q"])
    assert (app.conf.worker_prefetch_multiplier, app.conf.task_default_queue) == (7, "q")


def test_a_bug_report_hides_passwords() -> None:
    app = Celery("here", broker="amqp://me:sesame@there//", set_as_current=False)
    text = app.bugreport()
    assert "sesame" not in text
    assert "amqp://me:***@there//" in text
    assert "celeriac:" in text
    assert app_room.bugreport(app) == text


# -- copies -----------------------------------------------------------------------------------------------


class Own(Task[..., Any]):
    pass


def test_a_pickled_app_is_made_of_the_same_parts() -> None:
    app = Celery("pickled", broker="memory://p", set_as_current=False, task_cls=Own, strict_typing=False)
    app.conf.task_default_queue = "q"
    app.config_from_object({"task_serializer": "yaml"})
    copy = pickle.loads(pickle.dumps(app))
    assert (copy.main, copy.conf.broker_url, copy.conf.task_default_queue) == ("pickled", "memory://p", "q")
    assert (copy.conf.task_serializer, copy.Task, copy.strict_typing) == ("yaml", Own, False)


def test_a_pickled_task_is_found_in_the_current_app(app: Celery) -> None:
    @app.task(name="pickle.me")
    def me() -> None: ...

    app.set_current()
    assert pickle.loads(pickle.dumps(me)) is me


# -- tasks ------------------------------------------------------------------------------------------------


def test_a_task_of_one_app_is_in_others_that_are_finalized_later(app: Celery) -> None:
    @app.task(name="shared.by.default")
    def one(x: int) -> int:
        return x

    @app.task(name="kept.to.itself", shared=False)
    def other() -> None: ...

    later = Celery("later", broker="memory://later", set_as_current=False)
    assert "shared.by.default" in later.tasks
    assert later.tasks["shared.by.default"].app is later
    assert later.tasks["shared.by.default"] is not app.tasks["shared.by.default"]
    assert "kept.to.itself" not in later.tasks


def test_tasks_of_an_app_that_is_gone_are_nobody_elses() -> None:
    gone = Celery("gone", broker="memory://gone", set_as_current=False)

    @gone.task(name="of.the.gone")
    def task() -> None: ...

    del gone, task
    gc.collect()
    assert "of.the.gone" not in Celery("later", broker="memory://later", set_as_current=False).tasks


def test_register_task_takes_a_name_over_and_says_so(app: Celery) -> None:
    class First(Task[..., str]):
        name = "twice"

        def run(self) -> str:
            return "first"

    class Second(Task[..., str]):
        name = "twice"

        def run(self) -> str:
            return "second"

    app.register_task(First())
    with pytest.warns(DuplicateTaskNameWarning, match=r"Second takes it over from .*First"):
        app.register_task(Second())
    assert app.tasks["twice"].apply().get() == "second"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        app.register_task(Second())


def test_a_subclass_may_take_more_attributes_from_settings(app: Celery) -> None:
    class Tagged(Task[..., Any]):
        abstract = True
        from_config = (*Task.from_config, ("tag", "x_tag"))
        tag: str | None = None

    app.conf.update(x_tag="blue", task_ignore_result=True)

    @app.task(base=Tagged)
    def one() -> None: ...

    app.finalize()
    assert (one.tag, one.ignore_result) == ("blue", True)  # type: ignore[attr-defined]


# -- the current app --------------------------------------------------------------------------------------


def test_a_program_that_made_no_app_gets_one_with_the_settings_of_celeriacconfig(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "house_config.py").write_text("broker_url = 'memory://default'\nresult_backend = 'memory://default'\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("CELERIAC_CONFIG_MODULE", "house_config")
    monkeypatch.setattr(_state, "_default_app", None)
    monkeypatch.setattr(_state, "_local", type(_state._local)())

    @shared_task(name="of.no.app")
    def double(x: int) -> int:
        return 2 * x

    assert double(4) == 8
    assert current_app.main == "default"
    assert current_app.conf.broker_url == "memory://default"
    assert double.apply((5,)).get() == 10
    assert app_room.default_app.main == "default"


def test_without_that_module_the_default_app_has_default_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CELERIAC_CONFIG_MODULE", raising=False)
    monkeypatch.delenv("CELERY_CONFIG_MODULE", raising=False)
    monkeypatch.setattr(_state, "_default_app", None)
    monkeypatch.setattr(_state, "_local", type(_state._local)())
    assert config_module() == "celeriacconfig"
    assert current_app.conf.broker_url == "sqlite://"


def test_without_that_module_one_with_celerys_name_is_read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("CELERIAC_CONFIG_MODULE", raising=False)
    monkeypatch.delenv("CELERY_CONFIG_MODULE", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "celeryconfig.py").write_text("task_default_queue = 'old'\n")
    assert config_module() == "celeryconfig"
    (tmp_path / "celeriacconfig.py").write_text("task_default_queue = 'new'\n")
    importlib.invalidate_caches()
    assert config_module() == "celeriacconfig"


def test_whoever_relies_on_the_current_app_can_be_found(app: Celery) -> None:
    app.set_current()
    app_room.enable_trace()
    try:
        with pytest.warns(UserWarning, match="test_whoever_relies_on_the_current_app"):
            assert app_room.app_or_default() is app
        assert app_room.app_or_default(app) is app
    finally:
        app_room.disable_trace()


def test_a_test_may_say_which_task_is_current(app: Celery) -> None:
    @app.task
    def one() -> None: ...

    app_room.push_current_task(one)
    assert app.current_task is one
    assert app.current_worker_task is None
    app_room.pop_current_task()
    assert app.current_task is None


# -- parts by class or path -------------------------------------------------------------------------------


class OwnAMQP(AMQP):
    pass


class OwnLoader(AppLoader):
    pass


def test_parts_may_be_replaced_by_class_or_path() -> None:
    path = f"{__name__}:OwnAMQP"
    sys.modules.setdefault(__name__, sys.modules[OwnAMQP.__module__])
    app = Celery("parts", broker="memory://parts", set_as_current=False, amqp=path, loader=OwnLoader)
    assert type(app.amqp).__name__ == "OwnAMQP"
    assert isinstance(app.loader, OwnLoader)
    assert app.loader.conf is app.conf
    assert not app.loader.has_task_hooks


def test_a_class_can_be_given_the_app(app: Celery) -> None:
    kind = app.subclass_with_self("celeriac.loaders.base:BaseLoader", name="Mine", extra=1)
    assert (kind.app, kind.extra, kind.__name__) == (app, 1, "Mine")


# -- queues, connections ----------------------------------------------------------------------------------


def test_queues_are_kombus_and_changes_count(app: Celery) -> None:
    app.conf.task_queues = [Queue("a", routing_key="a.#"), Broadcast("news", queue="bcast.1")]
    app.conf.task_default_queue = "a"
    queues = app.amqp.queues
    assert isinstance(queues["a"], Queue)
    assert (app.amqp.default_queue.name, app.amqp.default_exchange.name) == ("a", "a")
    assert queues["news"].name == "bcast.1"
    assert list(queues.aliases) == ["news"]
    queues.add("b", routing_key="b", exchange="x", exchange_type="topic")
    assert app.router.route("t", (), {}, {"queue": "b"})[0].exchange == "x"
    assert sorted(queues.consume_from) == ["a", "b", "bcast.1"]
    app.conf.task_serializer = "yaml"  # the router is made anew; what was added stays
    assert "b" in app.amqp.queues
    queues.deselect("a")
    assert sorted(queues.consume_from) == ["b", "bcast.1"]
    app.select_queues(["b"])
    queues.select_add("c")
    assert list(queues.consume_from) == ["b", "c"]
    assert ".> b" in queues.format()
    del queues["b"]
    assert "b" not in app.amqp.queues


def test_a_missing_queue_is_an_error_where_none_may_be_made(app: Celery) -> None:
    app.conf.task_create_missing_queues = False
    with pytest.raises(KeyError):
        app.amqp.queues["typo"]
    with pytest.raises(QueueNotFound):
        app.send_task("t", queue="typo")
    assert app.amqp.queues.new_missing("typo").name == "typo"


def test_a_message_can_be_made_changed_and_sent(app: Celery) -> None:
    message = app.amqp.create_task_message("id-1", "t", (1,), {"k": 2}, countdown=0)
    assert message.body[:2] == ([1], {"k": 2})
    message.headers["tenant"] = "a"
    app.amqp.send_task_message(None, "t", message, queue="q")
    assert app.transport.depth("q") == 1


def test_brokers_that_kombu_does_not_know_are_named(app: Celery) -> None:
    with pytest.raises(Unsupported, match="kombu cannot speak to the broker 'memory://"):
        app.connection_for_read()
    there = Celery("t", broker="amqp://me:x@there:1/v", set_as_current=False, broker_connection_timeout=0.1)
    connection = there.connection_for_write()
    assert (connection.hostname, connection.port, connection.virtual_host) == ("there", 1, "v")
    with there.connection_or_acquire(connection) as same:
        assert same is connection


@pytest.mark.services
def test_kombu_publishes_by_the_apps_own_pool(redis_url: str) -> None:
    def sockets() -> set[str]:
        return {name for name in descriptors().values() if name.startswith("socket:")}

    app, before = Celery("t", broker=redis_url, set_as_current=False), sockets()
    for count in (1, 2):
        with app.producer_or_acquire() as producer:
            producer.publish({"a": 1}, exchange="", routing_key="by-kombu", serializer="json", retry=True)
        assert app.transport.depth("by-kombu") == count
        assert sockets() > before
        app.close()
        assert sockets() <= before, "kombu's connections are closed too"
    app.transport.purge("by-kombu")
    app.close()


# -- logging ----------------------------------------------------------------------------------------------


def test_what_is_printed_becomes_lines_of_the_log(
    app: Celery, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdout", sys.stdout)
    monkeypatch.setattr(sys, "stderr", sys.stderr)
    stream = app.log.redirect_stdouts_to_logger(app.log.get_default_logger("celeriac.redirected"), "INFO")
    caplog.set_level("INFO")
    print("a line", end="")
    print(" in two parts")
    sys.stderr.write("another\n")
    assert [record.message for record in caplog.records] == ["a line in two parts", "another"]
    assert not stream.isatty()


def test_annotations_that_are_none_are_refused(app: Celery) -> None:
    app.conf.task_annotations = 5
    app.task(lambda: None, name="t")  # type: ignore[call-overload]
    with pytest.raises(ImproperlyConfigured, match="task_annotations: 5 is neither"):
        app.finalize()


def test_an_app_that_names_no_settings_takes_those_that_the_environment_names(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "named_config.py").write_text("task_default_queue = 'from-the-environment'\ntask_repr_maxlevels = 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("CELERY_CONFIG_MODULE", "named_config")
    app = Celery("t", broker="memory://named", set_as_current=False)
    assert app.conf.task_default_queue == "from-the-environment"
    assert app.make_payload("t", [{"a": [[1]]}], {}, "i", {}).headers["argsrepr"] == "[{...}]"
    own = Celery("t", broker="memory://named", set_as_current=False, config_source={"task_default_queue": "own"})
    assert own.conf.task_default_queue == "own"


def test_a_forked_child_does_not_take_its_parents_kombu_connections() -> None:
    import kombu.pools

    app = Celery("t", broker="amqp://there:1//", set_as_current=False)
    assert app.pool is app.pool
    assert len(kombu.pools.connections) > 0
    child = os.fork()
    if child == 0:
        os._exit(len(kombu.pools.connections))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
