"""An extension plugin hears of the worker's life."""

from __future__ import annotations

from tests.integration.conftest import House, wait_until

MODULE = """
from pathlib import Path
from celeriac.spec import hookimpl

CELERIAC_API = (1, 0)

@hookimpl
def celeriac_worker_ready(worker):
    Path("ready").write_text(worker.hostname)

@hookimpl
def celeriac_worker_stopped(worker):
    Path("stopped").write_text(worker.hostname)
"""


def test_an_installed_extension_hears_of_ready_and_stopped(sqlite_house: House) -> None:
    place = sqlite_house.place
    (place / "noticing_extension.py").write_text(MODULE)
    info = place / "celeriac_extension_noticing-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: celeriac-extension-noticing\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[celeriac.extensions]\nnoticing = noticing_extension\n")
    sqlite_house.env["PYTHONPATH"] += f":{place}"
    worker = sqlite_house.worker("-n", "w1@%h")
    ready = place / "ready"
    wait_until(lambda: ready.exists() and ready.read_text().startswith("w1@"), what="the ready hook")
    assert worker.stop() == 0
    assert (place / "stopped").read_text().startswith("w1@")
