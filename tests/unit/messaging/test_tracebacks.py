"""From a traceback's text back to frames."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from celeriac import Celery
from celeriac.exceptions import CeleriacWarning
from celeriac.messaging import tracebacks
from celeriac.messaging.tracebacks import frames_of

REMOTE = """Traceback (most recent call last):
  File "/srv/proj/tasks.py", line 7, in fetch
    1 / 0
    ~~^~~
ZeroDivisionError: division by zero

The above exception was the direct cause of the following exception:

Traceback (most recent call last):
  File "/srv/proj/tasks.py", line 12, in report
    fetch()
  File "/srv/proj/util.py", line 3, in wrapped
    raise KeyError("page") from exc
KeyError: 'page'
"""


@pytest.fixture
def app(tmp_path: Path) -> Celery:
    place = f"sqlite:///{tmp_path}/results.db"
    made = Celery("remote", broker=place, backend=place, set_as_current=False)
    made.backend.store_result("a", KeyError("page"), "FAILURE", traceback=REMOTE)
    return made


@pytest.fixture
def without_tblib(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setitem(sys.modules, "tblib", None)
    tracebacks._tblib.cache_clear()
    yield
    tracebacks._tblib.cache_clear()


def raised(app: Celery) -> BaseException:
    with pytest.raises(KeyError) as caught:
        app.AsyncResult("a").get(timeout=30)
    return caught.value


def places(error: BaseException) -> list[Any]:
    return [(frame.filename, frame.lineno, frame.name) for frame in traceback.extract_tb(error.__traceback__)]


def test_an_error_carries_the_worker_s_frames_if_that_is_wanted(app: Celery) -> None:
    plain = raised(app)
    assert "/srv/proj/util.py" in str(plain.__cause__)
    assert all(not place[0].startswith("/srv") for place in places(plain))
    app.conf.task_remote_tracebacks = True
    error = raised(app)
    assert places(error)[-2:] == [("/srv/proj/tasks.py", 12, "report"), ("/srv/proj/util.py", 3, "wrapped")]
    assert error.__cause__ is None, "it is not said twice"


@pytest.mark.usefixtures("without_tblib")
def test_without_the_library_it_is_told_once_and_the_text_is_there(app: Celery) -> None:
    app.conf.task_remote_tracebacks = True
    with pytest.warns(CeleriacWarning, match=r"pip install 'celeriac\[tblib\]'") as told:
        errors = [raised(app), raised(app)]
    assert len(told) == 1
    assert all("/srv/proj/util.py" in str(error.__cause__) for error in errors)


GROUP = """  + Exception Group Traceback (most recent call last):
  |   File "/srv/proj/tasks.py", line 7, in fetch
  | ExceptionGroup: several (1 sub-exception)
  +-+---------------- 1 ----------------
    | ValueError: 1
    +------------------------------------
"""


@pytest.mark.parametrize("text", ["", "nothing of the kind", "Traceback (most recent call last):\nKeyError: 1", GROUP])
def test_what_has_no_frames_gives_none(text: str) -> None:
    assert frames_of(text) is None
