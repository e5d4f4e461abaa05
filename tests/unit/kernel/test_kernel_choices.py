"""Which plugin the kernel takes, and what it knows afterwards."""

from __future__ import annotations

import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

import celeriac.spec as spec
from celeriac.exceptions import ImproperlyConfigured, PluginNotFound
from celeriac.kernel.discovery import catalog
from celeriac.kernel.kernel import Kernel
from celeriac.spec.abilities import ABILITIES

if TYPE_CHECKING:
    from tests.conftest import FakeSite


def chosen(kernel: Kernel) -> list[str]:
    return [info.name for info in kernel.loaded()]


def test_a_urls_scheme_chooses(fake_site: FakeSite) -> None:
    fake_site.install("broker", "good")
    kernel = Kernel({})
    kernel.make_transport("GOOD://host")
    assert chosen(kernel) == ["good"]


def test_the_setting_beats_the_scheme_and_the_argument_beats_the_setting(fake_site: FakeSite) -> None:
    for name in ("one", "two", "three"):
        fake_site.install("broker", name)
    settings = {"broker_url": "one://", "broker_plugin": "two"}
    kernel = Kernel(settings)
    kernel.make_transport()
    kernel.make_transport(plugin="three")
    del settings["broker_plugin"]
    kernel.make_transport()
    assert chosen(kernel) == ["two", "three", "one"]


def test_a_scheme_with_a_plus_is_tried_whole_and_then_up_to_it(fake_site: FakeSite) -> None:
    fake_site.install("broker", "good")
    fake_site.install("broker", "good+special")
    kernel = Kernel({})
    kernel.make_transport("good+special:///x")
    kernel.make_transport("good+socket:///x")
    assert chosen(kernel) == ["good+special", "good"]


def test_several_urls_are_one_choice_by_the_first(fake_site: FakeSite) -> None:
    fake_site.install("broker", "good")
    kernel = Kernel({"broker_url": ["good://a", "good://b"]})
    kernel.make_transport()
    assert chosen(kernel) == ["good"]


def test_without_a_url_the_setting_to_set_is_named() -> None:
    with pytest.raises(ImproperlyConfigured, match="broker_url"):
        Kernel({}).make_transport()


def test_two_names_of_one_module_are_one_plugin(fake_site: FakeSite) -> None:
    module = fake_site.install("broker", "good", dist="acme-good")
    with (fake_site.folder / "acme_good-1.0.dist-info" / "entry_points.txt").open("a") as file:
        file.write(f"goods = {module}\n")
    catalog.cache_clear()
    kernel = Kernel({})
    kernel.make_transport("good://")
    kernel.make_transport("goods://")
    assert chosen(kernel) == ["good"]


def test_one_module_may_serve_two_kinds(fake_site: FakeSite) -> None:
    both = fake_site.good["broker"] + fake_site.good["serializer"].replace("CELERIAC_API = (1, 0)", "")
    module = fake_site.install("broker", "both", both, dist="acme-both")
    with (fake_site.folder / "acme_both-1.0.dist-info" / "entry_points.txt").open("a") as file:
        file.write(f"[celeriac.serializers]\nboth = {module}\n")
    catalog.cache_clear()
    kernel = Kernel({})
    assert kernel.make_transport("both://").ping(1) == "good"
    assert kernel.make_serializer("both").loads(b"x") == "x"
    assert [info.kind for info in kernel.loaded()] == ["broker", "serializer"]


def test_a_plugin_gets_the_url_and_the_settings(fake_site: FakeSite) -> None:
    source = fake_site.good["broker"].replace(
        "return Transport()", "made = Transport(); made.got = url, settings; return made"
    )
    fake_site.install("broker", "good", source)
    settings = {"x": 1}
    transport = Kernel(settings).make_transport("good://u:p@h/1")
    assert transport.got == ("good://u:p@h/1", settings)  # type: ignore[attr-defined]


def test_a_serializer_is_made_once(fake_site: FakeSite) -> None:
    fake_site.install("serializer", "good")
    kernel = Kernel({})
    assert kernel.make_serializer("good") is kernel.make_serializer("good")


def test_a_content_type_finds_its_serializer_past_a_broken_one(fake_site: FakeSite) -> None:
    fake_site.install("serializer", "aaa", "raise SystemExit")
    fake_site.install("serializer", "good")
    kernel = Kernel({})
    assert kernel.serializer_for_content_type("application/x-good") is kernel.make_serializer("good")
    with pytest.raises(PluginNotFound, match=r"application/x-none.*application/x-good"):
        kernel.serializer_for_content_type("application/x-none")


def test_extensions_are_notified_and_those_not_enabled_are_not_loaded(fake_site: FakeSite) -> None:
    source = (
        "from celeriac.spec import hookimpl\nCELERIAC_API = (1, 0)\nheard = []\n"
        "@hookimpl\ndef celeriac_worker_ready(worker): heard.append(worker)\n"
    )
    module = fake_site.install("extension", "metrics", source)
    fake_site.install("extension", "other", "raise SystemExit")
    kernel = Kernel({"plugins_enabled": ["metrics"]})
    for info in kernel.extensions():
        kernel.load(info)
    kernel.notify("celeriac_worker_ready", worker="w")
    assert sys.modules[module].heard == ["w"]


def test_who_made_an_object_is_known(fake_site: FakeSite) -> None:
    fake_site.install("broker", "good", dist="acme-good", version="1.5")
    kernel = Kernel({})
    assert str(kernel.maker_of(kernel.make_transport("good://"))) == "broker:good (acme-good 1.5)"
    with pytest.raises(LookupError):
        kernel.maker_of(object())


def test_making_a_kernel_scans_and_imports_nothing() -> None:
    code = (
        "import sys; from celeriac.kernel.kernel import Kernel; Kernel({});"
        "print([name for name in ('importlib_metadata', 'structlog', 'kombu', 'rich', 'click') if name in sys.modules])"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert ran.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("kind", "module"), [("broker", spec.transport), ("backend", spec.backend), ("pool", spec.pool)]
)
def test_the_known_abilities_are_those_the_contract_explains(kind: str, module: object) -> None:
    text = str(module.__doc__).partition("bilities")[2]
    assert {name for name in ABILITIES[kind] if f"`{name}`" not in text} == set()


def test_a_pool_that_celery_has_and_nobody_here_is_answered_with_what_to_take() -> None:
    with pytest.raises(PluginNotFound, match="Greenlets run in the pool gevent: pip install celeriac-pool-gevent"):
        Kernel({}).find("pool", "eventlet")


def test_a_url_without_a_scheme_is_not_taken_for_the_name_of_a_package(fake_site: FakeSite) -> None:
    fake_site.install("broker", "good")
    with pytest.raises(PluginNotFound, match=r"'localhost'.*A URL begins with its scheme") as refused:
        Kernel({"broker_url": "localhost"}).make_transport()
    assert "pip install" not in str(refused.value)


def test_several_threads_may_load_a_plugin_at_once(fake_site: FakeSite, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_site.install("broker", "good")
    kernel = Kernel({})
    manager = kernel._loader.manager
    register = manager.register

    def register_slowly(plugin: object, name: str | None = None) -> str | None:
        time.sleep(0.02)  # long enough for the others to come
        return register(plugin, name)

    monkeypatch.setattr(manager, "register", register_slowly)
    with ThreadPoolExecutor(4) as threads:
        made = list(threads.map(lambda _: kernel.make_transport("good://"), range(4)))
    assert len(made) == 4
    assert chosen(kernel) == ["good"]
