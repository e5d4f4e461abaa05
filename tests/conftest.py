"""Fake distributions: plugins of all sorts, installed in a folder of their own for one test."""

from __future__ import annotations

import itertools
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from celeriac.kernel.discovery import catalog

GOOD = {
    "serializer": """
from celeriac.spec import hookimpl

CELERIAC_API = (1, 0)

class Serializer:
    name = content_type = "application/x-good"
    content_encoding = "utf-8"
    unsafe = False

    def dumps(self, obj):
        return repr(obj).encode()

    def loads(self, data):
        return data.decode()

@hookimpl
def celeriac_make_serializer(name):
    return Serializer()
""",
    "broker": """
from celeriac.spec import hookimpl

CELERIAC_API = (1, 0)

class Transport:
    abilities = frozenset({"shared"})
    joint = None

    def send(self, payloads, *, timeout_s=10.0): pass
    def consumer(self, queues, *, owner, poller, window): pass
    def declare(self, queues): pass
    def delete(self, queue): pass
    def purge(self, queue): return 0
    def depth(self, queue): return 0
    def read_head(self, raw): pass
    def unpack(self, raw): pass
    def ping(self, timeout_s): return "good"
    def after_fork(self): pass
    def close(self): pass

@hookimpl
def celeriac_make_transport(url, settings):
    return Transport()
""",
}
GROUPS = {
    "broker": "celeriac.brokers",
    "backend": "celeriac.backends",
    "serializer": "celeriac.serializers",
    "pool": "celeriac.pools",
    "extension": "celeriac.extensions",
}
_numbers = itertools.count()


class FakeSite:
    """A folder like site-packages, into which tests install plugins without pip."""

    #: kind → the source of a good plugin
    good = GOOD

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.modules: list[str] = []

    def install(
        self,
        kind: str,
        name: str,
        source: str | None = None,
        *,
        dist: str | None = None,
        version: str = "1.0",
        target: str | None = None,
    ) -> str:
        """Install a plugin and return its module's name.

        Args:
            source: The module's text; default: a good plugin of that kind.
            target: What the entry point says; default: the module.
        """
        module = f"fake_plugin_{next(_numbers)}"
        self.modules.append(module)
        (self.folder / f"{module}.py").write_text(GOOD[kind] if source is None else source)
        dist = dist or f"fake-{kind}-{name}"
        info = self.folder / f"{dist.replace('-', '_')}-{version}.dist-info"
        info.mkdir(exist_ok=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {dist}\nVersion: {version}\nSummary: A fake.\n")
        with (info / "entry_points.txt").open("a") as file:
            file.write(f"[{GROUPS[kind]}]\n{name} = {target or module}\n")
        catalog.cache_clear()
        return module

    def environment(self) -> dict[str, str]:
        """For child processes, which shall find the plugins too."""
        path = os.pathsep.join([str(self.folder), *filter(None, [os.environ.get("PYTHONPATH")])])
        return {**os.environ, "PYTHONPATH": path}


@pytest.fixture
def fake_site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeSite]:
    """A `FakeSite` that this process finds plugins in, too."""
    folder = tmp_path / "fake-site"
    folder.mkdir()
    monkeypatch.syspath_prepend(folder)
    catalog.cache_clear()
    site = FakeSite(folder)
    yield site
    for module in site.modules:
        sys.modules.pop(module, None)
    catalog.cache_clear()
