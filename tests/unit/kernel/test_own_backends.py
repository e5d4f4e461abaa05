"""Result backends that a program names itself: by a class, an object, or the path of one."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from types import ModuleType
from typing import Any

import pytest
from tests.conftest import FakeSite

from celeriac import Celery, states
from celeriac.contrib.testing.worker import start_worker
from celeriac.exceptions import ImproperlyConfigured, SettingError
from celeriac.kernel.kernel import Kernel
from celeriac.spec import Host
from celeriac.testing.kit import KitHost
from celeriac_backend_memory.backend import MemoryBackend


class Backend(MemoryBackend):
    """Keeps the contract, and remembers with which URL it was made."""

    def __init__(self, url: str, settings: Mapping[str, Any], host: Host) -> None:
        self.url = url
        super().__init__("memory://own-backends", settings, host)


class OfCelery:
    """As Celery's: other methods, other promises."""

    def __init__(self, app: Any = None, url: str | None = None) -> None: ...

    def get_task_meta(self, task_id: str) -> None: ...

    def store_result(self, task_id: str) -> None: ...

    def on_chord_part_return(self) -> None: ...


class Lame:
    """Neither the one nor the other."""

    def __init__(self, url: str, settings: Any, host: Any) -> None: ...


def function(url: str, settings: Mapping[str, Any], host: Host) -> Backend:
    return Backend(url, settings, host)


@pytest.fixture(autouse=True)
def module() -> Iterator[None]:
    """All of these as a program has them: in a module of its own."""
    made: Any = ModuleType("my_results")
    made.Backend, made.OfCelery, made.Lame, made.function = Backend, OfCelery, Lame, function
    sys.modules["my_results"] = made
    yield
    del sys.modules["my_results"]


def make(wanted: Any, **settings: Any) -> Any:
    return Kernel({"result_backend": wanted, **settings}).make_backend(None, None, KitHost())


@pytest.mark.parametrize(
    ("wanted", "url"),
    [
        (Backend, ""),
        (function, ""),
        ("my_results.Backend", ""),
        ("my_results:Backend", ""),
        ("my_results:function", ""),
        ("my_results.Backend://there/1", "my_results.Backend://there/1"),
        ("my_results:Backend+mine://user@there/1", "mine://user@there/1"),
    ],
    ids=str,
)
def test_a_class_or_its_path_is_called_as_a_hook_is(wanted: Any, url: str) -> None:
    backend = make(wanted)
    assert type(backend) is Backend
    assert backend.url == url


def test_an_object_is_taken_as_it_is() -> None:
    backend = Backend("", {}, KitHost())
    assert make(backend) is backend


@pytest.mark.parametrize("what", [Backend, "my_results:Backend"], ids=str)
@pytest.mark.parametrize("url", ["redis://there/1", "mine://there/1"])
def test_override_backends_comes_before_the_plugins(what: Any, url: str) -> None:
    overrides = {"redis": what, "mine": what}
    assert make(url, override_backends=overrides).url == url
    assert type(make("sqlite://", override_backends=overrides)) is not Backend


def test_a_plugin_that_is_chosen_by_name_comes_before_everything() -> None:
    made = Kernel({}).make_backend("memory://", "memory", KitHost())
    assert type(made) is type(make("memory://", override_backends={"other": Backend}, backend_plugin="memory"))


def test_celerys_entry_points_are_read_after_the_plugins(fake_site: FakeSite) -> None:
    info = fake_site.folder / "others_backend-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: others-backend\nVersion: 1.0\n")
    points = {"others": "Backend", "redis": "Lame", "old": "OfCelery"}
    lines = ["[celery.result_backends]", *(f"{name} = my_results:{kind}" for name, kind in points.items()), ""]
    (info / "entry_points.txt").write_text("\n".join(lines))
    assert make("others://there").url == "others://there"
    assert type(make("redis://there")).__name__ == "RedisBackend"
    with pytest.raises(ImproperlyConfigured, match=r"an entry point of others-backend.*written for Celery"):
        make("old://there")


@pytest.mark.parametrize(
    ("wanted", "told"),
    [
        (OfCelery, "written for Celery.*installed: .*redis"),
        ("my_results:OfCelery", "written for Celery"),
        ("celery.backends.redis:RedisBackend", "written for Celery"),
        ("my_results:Lame", "no result backend: the Lame it made lacks abilities"),
        ("my_results:Nobody", "the module my_results has no 'Nobody'"),
        ("no_such_module:Backend", "No module named 'no_such_module'"),
    ],
    ids=str,
)
def test_what_is_no_result_backend_is_refused_with_what_to_do(wanted: Any, told: str) -> None:
    with pytest.raises(ImproperlyConfigured, match=told) as caught:
        make(wanted)
    assert "result_backend" in str(caught.value)


def test_a_constructor_that_takes_something_else_is_told_how_it_was_called() -> None:
    with pytest.raises(ImproperlyConfigured, match=r"called with \('', settings, host\), raised TypeError"):
        make(lambda: None)


@pytest.fixture
def app_of() -> Iterator[Callable[..., Celery]]:
    apps = []

    def make_app(kind: type[Celery] = Celery, **parameters: Any) -> Celery:
        apps.append(kind("own", broker="memory://own-backends", set_as_current=False, **parameters))
        return apps[-1]

    yield make_app
    for app in apps:
        app.close()


class WithClass(Celery):
    backend_cls = "my_results:Backend"


@pytest.mark.parametrize("given", ["class", "object", "path", "setting", "subclass"])
def test_an_app_keeps_its_results_there(app_of: Callable[..., Celery], given: str) -> None:
    if given == "setting":
        app = app_of()
        app.conf.result_backend = Backend
    elif given == "subclass":
        app = app_of(WithClass, backend="redis://not-this-one")
    else:
        backends = {"class": Backend, "object": Backend("", {}, KitHost()), "path": "my_results:Backend"}
        app = app_of(backend=backends[given])
    app.backend.store_result(f"kept by {given}", 42, states.SUCCESS)
    assert app.AsyncResult(f"kept by {given}").get(timeout=30) == 42
    assert type(app.backend.plugin) is Backend
    info = app.kernel.maker_of(app.backend.plugin)
    assert str(info).endswith("(the program's own)")
    assert "Backend" in info.name
    assert app._parts.fingerprint.rpartition(":")[2] == "Backend", "the same in every process"


def test_a_worker_stores_there_and_its_client_is_told(app_of: Callable[..., Celery]) -> None:
    app = app_of(backend="my_results:Backend")

    @app.task(name="own.add")
    def add(x: int, y: int) -> int:
        return x + y

    with start_worker(app, perform_ping_check=False):
        assert add.delay(2, 3).get(timeout=20) == 5


def test_a_number_is_no_result_backend(app_of: Callable[..., Celery]) -> None:
    with pytest.raises(SettingError, match="or a class or its path"):
        app_of(backend=5).conf.finalize()
