"""`python -m celeriac.testing.conformance`: an installed plugin, tried clause by clause."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from celeriac.testing.broker_suite import BrokerConformance
from celeriac.testing.conformance import clauses_of, report, table


def run(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "celeriac.testing.conformance", *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=110, cwd="/tmp")


def test_a_test_s_name_says_its_clauses() -> None:
    assert clauses_of("test_B11_B13_a_killed_worker_s_message_comes_back") == ["B11", "B13"]
    assert clauses_of("test_B01_what_send_returned_for") == ["B1"]
    assert clauses_of("test_ping_names_the_broker") == ["verbs"]


def test_a_broken_clause_and_a_missing_ability_stand_in_the_table() -> None:
    class Poor(BrokerConformance):
        plugin = "poor"
        abilities = frozenset({"attempts"})

    outcomes = {"test_B18_an_acknowledged_message_never_comes_back": "failed", "test_S3_whole": "passed"}
    rows = report(Poor, outcomes)
    assert rows["B18"].verdict == "BROKEN"
    assert rows["S3"].verdict == "kept"
    assert rows["B23"].verdict == "not declared"
    assert "delay" in rows["B23"].left_out.values()
    assert "broken: test_B18_an_acknowledged_message_never_comes_back" in table(rows)


def test_the_command_tries_an_installed_plugin_and_prints_the_contract() -> None:
    done = run("--serializer", "json")
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr
    assert "clause by clause" in done.stdout
    assert "B26     kept" in done.stdout


def test_it_runs_a_broker_s_suite_on_the_url_that_it_was_given(tmp_path: Path) -> None:
    done = run("--broker", f"sqlite:///{tmp_path}/kit.db", "--", "-k", "B18 or B24")
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr
    assert "B18     kept" in done.stdout


def test_a_backend_that_compresses_as_its_page_says_breaks_nothing(tmp_path: Path) -> None:
    done = run("--backend", f"sqlite:///{tmp_path}/kit.db", "--", "-k", "compressed and gzip")
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr
    assert "R1      kept" in done.stdout


@pytest.mark.parametrize("spread", [(), ("-n", "2")], ids=["in one process", "spread over two"])
def test_a_plugin_s_own_test_run_ends_with_the_table(tmp_path: Path, spread: tuple[str, ...]) -> None:
    (tmp_path / "test_mine.py").write_text(
        "from celeriac.testing.serializer_suite import SerializerConformance\n"
        "class TestMine(SerializerConformance):\n"
        "    plugin, name, content_type = 'celeriac_serializer_json', 'json', 'application/json'\n"
        "    content_encoding, unsafe = 'utf-8', False\n"
        "def test_of_something_else():\n"
        "    pass\n"
    )
    words = ["-p", "celeriac.testing.conformance", "-p", "no:cacheprovider", f"--rootdir={tmp_path}", *spread]
    command = [sys.executable, "-m", "pytest", "-q", *words, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=110, cwd=tmp_path)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr
    assert "TestMine: the delivery contract, clause by clause" in done.stdout
    assert "B26     kept" in done.stdout
    assert "of_something_else" not in done.stdout.partition("clause by clause")[2]


@pytest.mark.parametrize(
    "words",
    [
        ("--broker", "nothing://host"),
        ("--pool", "nopool"),
        ("--broker", "redis://:secret@127.0.0.1:1/0"),
        ("--backend", "redis://:secret@127.0.0.1:1/0"),
    ],
)
def test_what_is_not_installed_or_not_there_is_one_sentence(words: tuple[str, str]) -> None:
    done = run(*words)
    assert done.returncode == 2
    assert "cannot try" in done.stderr
    assert "Traceback" not in done.stderr
    assert "secret" not in done.stderr


def test_what_is_broken_is_told_with_its_values(tmp_path: Path) -> None:
    """By the command, and in a plugin's own tests."""
    (tmp_path / "acme_text.py").write_text(
        "import json\nfrom celeriac.spec import hookimpl\nCELERIAC_API = (1, 0)\nclass Text:\n"
        "    name, content_type, content_encoding, unsafe = 'text', 'text/x-acme', 'utf-8', False\n"
        "    def dumps(self, obj): return json.dumps(obj)\n"
        "    def loads(self, data): return json.loads(data)\n"
        "@hookimpl\ndef celeriac_make_serializer(name): return Text() if name == 'text' else None\n"
    )
    info = tmp_path / "acme_text-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: acme-text\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[celeriac.serializers]\ntext = acme_text\n")
    (tmp_path / "test_text.py").write_text(
        "from celeriac.testing.serializer_suite import SerializerConformance\n"
        "class TestText(SerializerConformance):\n    plugin, name = 'acme_text', 'text'\n"
        "    content_type, content_encoding, unsafe = 'text/x-acme', 'utf-8', False\n"
    )
    command = [sys.executable, "-m", "celeriac.testing.conformance", "--serializer", "text", "--"]
    own = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--rootdir={tmp_path}", str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    for words in (command, own):
        done = subprocess.run(
            [*words, "-k", "plain_values"], capture_output=True, text=True, timeout=110, cwd=tmp_path, env=environment
        )
        assert done.returncode == 1, done.stdout[-2000:] + done.stderr
        assert "where False = isinstance('null', bytes)" in done.stdout
