"""`control revoke` and its kin: what is said at a terminal holds as what a program says."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from celeriac import Celery
from celeriac.app.revocations import SPACE, id_key, stamp_key, unpack
from celeriac.cli.group import run
from celeriac.exceptions import DuplicateNodenameWarning
from celeriac.testing.kit import eventually
from celeriac.testing.threaded import start_worker


@pytest.fixture
def app(request: pytest.FixtureRequest) -> Iterator[Celery]:
    url = f"memory://{request.node.name}"
    made = Celery("remote", broker=url, backend=url, set_as_current=False)
    made.task(name="kit.task")(lambda: "done")
    yield made
    made.close()


def kept(app: Celery) -> dict[str, int]:
    """What is revoked in the app's shared state, and by which signals."""
    assert app.shared_state is not None
    entries = app.shared_state.read(SPACE).entries
    return {key: found.signum for key, entry in entries.items() if (found := unpack(entry.value)) is not None}


def test_a_revocation_at_the_terminal_is_kept_for_workers_to_come(
    app: Celery, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["control", "-t", "0.1", "revoke", "one", "two"], app) == 69
    assert "It is kept" in capsys.readouterr().err
    assert run(["control", "-t", "0.1", "terminate", "KILL", "three"], app) == 69
    assert run(["control", "-t", "0.1", "revoke_by_stamped_headers", "customer=a"], app) == 69
    wanted = {id_key("one"): 0, id_key("two"): 0, id_key("three"): 9, stamp_key("customer", "a"): 0}
    assert kept(app) == wanted
    late = app.send_task("kit.task", task_id="one")
    with start_worker(app, pool="threads", perform_ping_check=False) as worker:
        late.get(timeout=60, propagate=False)
        assert late.state == "REVOKED"
        assert run(["control", "-t", "60", "-d", worker.hostname, "revoke", "four"], app) == 0
    assert "tasks four flagged as revoked" in capsys.readouterr().out
    assert kept(app) == wanted, "one that is for some workers only is not for all"


def test_a_signal_or_a_stamp_that_is_none_is_a_usage_error(app: Celery, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["control", "-t", "0.1", "terminate", "NONSENSE", "one"], app) == 2
    assert "there is no signal 'NONSENSE'" in capsys.readouterr().err
    assert run(["control", "-t", "0.1", "revoke_by_stamped_headers", "customer"], app) == 2
    assert kept(app) == {}


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["revoke"], "revoke of what?"),
        (["terminate", "KILL"], "terminate of what?"),
        (["revoke_by_stamped_headers"], "revoke_by_stamped_headers of what?"),
        (["rate_limit"], "task_name is missing"),
        (["add_consumer"], "queue is missing"),
    ],
)
def test_a_command_without_its_object_is_a_usage_error(
    app: Celery, capsys: pytest.CaptureFixture[str], words: list[str], complaint: str
) -> None:
    assert run(["control", "-t", "0.1", *words], app) == 2
    assert complaint in capsys.readouterr().err


def test_two_workers_of_one_name_are_told_of(app: Celery, capsys: pytest.CaptureFixture[str]) -> None:
    with (
        start_worker(app, hostname="w@h", pool="threads", perform_ping_check=False),
        start_worker(app, hostname="w@h", pool="threads", perform_ping_check=False),
    ):

        def told() -> str:
            assert run(["inspect", "-t", "3", "clock"], app) == 0
            said = capsys.readouterr().err
            return said if "several workers are named w@h" in said else ""

        assert "1 node online." in eventually(told, 60)  # both have answered within the three seconds
        with pytest.warns(DuplicateNodenameWarning, match="w@h"):
            assert app.control.inspect(timeout=60, limit=2).ping() == {"w@h": {"ok": "pong"}}


def test_a_command_that_no_node_could_do_has_failed(app: Celery, capsys: pytest.CaptureFixture[str]) -> None:
    with start_worker(app, pool="threads", perform_ping_check=False) as worker:
        ask = ["-t", "60", "-d", worker.hostname]
        assert run(["control", *ask, "rate_limit", "kit.tusk", "10/s"], app) == 1
        said = capsys.readouterr()
        assert "unknown task" in said.out
        assert "rate_limit was answered with errors only" in said.err
        assert run(["control", *ask, "-j", "rate_limit", "kit.tusk", "10/s"], app) == 1
        assert json.loads(capsys.readouterr().out) == [{worker.hostname: {"error": "unknown task"}}]
        assert run(["control", *ask, "rate_limit", "kit.task", "10/s"], app) == 0
