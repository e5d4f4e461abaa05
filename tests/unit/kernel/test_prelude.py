"""A pool may prepare the process before a program is imported: who is asked, and when nobody is."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import pytest

from celeriac import maybe_patch_concurrency
from celeriac.kernel.prelude import prepare_process, prepare_worker

if TYPE_CHECKING:
    from tests.conftest import FakeSite

SOURCE = (
    "from celeriac.spec import hookimpl\nCELERIAC_API = (1, 0)\nheard = []\n"
    "@hookimpl\ndef celeriac_prepare_process(name): heard.append(name)\n"
    "@hookimpl\ndef celeriac_make_pool(name): return None\n"
)


@pytest.mark.parametrize(
    ("words", "asked"),
    [
        (["-A", "proj", "worker", "-P", "eager"], ["eager"]),
        (["-A", "proj", "worker", "-Peager", "-c", "9"], ["eager"]),
        (["worker", "--pool=eager", "-A", "proj"], ["eager"]),
        (["worker", "--pool", "eager@acme-eager"], ["eager"]),
        (["worker", "-P", "other"], []),
        (["worker", "-P"], []),
        (["worker"], []),
        (["multi", "start", "w1", "-P", "eager"], []),
    ],
)
def test_the_pool_of_a_worker_s_words_is_asked(fake_site: FakeSite, words: list[str], asked: list[str]) -> None:
    module = fake_site.install("pool", "eager", SOURCE, dist="acme-eager")
    prepare_worker(words)
    assert (sys.modules[module].heard if module in sys.modules else []) == asked


def test_the_option_s_variable_counts_too(fake_site: FakeSite, monkeypatch: pytest.MonkeyPatch) -> None:
    module = fake_site.install("pool", "eager", SOURCE)
    monkeypatch.setenv("CELERY_WORKER_POOL", "eager")
    prepare_worker(["worker"])
    assert sys.modules[module].heard == ["eager"]


def test_a_start_script_asks_by_celery_s_name_for_it(fake_site: FakeSite) -> None:
    module = fake_site.install("pool", "eager", SOURCE)
    maybe_patch_concurrency(["start.py", "-x", "eager"], ["-x"], ["--xpool"])
    assert sys.modules[module].heard == ["eager"]


@pytest.mark.parametrize("name", ["plain", "broken", "missing"])
def test_one_that_has_no_such_hook_or_cannot_be_had_is_no_matter_yet(fake_site: FakeSite, name: str) -> None:
    fake_site.install(
        "pool", "plain", SOURCE.replace("celeriac_prepare_process", "helper").replace("@hookimpl\n", "", 1)
    )
    fake_site.install("pool", "broken", "raise SystemExit")
    prepare_process(name)
